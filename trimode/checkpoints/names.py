"""Tensor names: from the names of each published layout to the canonical ones, and back."""

import difflib
from collections.abc import Iterable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from trimode.checkpoints.families import (
    FAMILIES,
    HUGGING_FACE,
    VISION_LAYOUTS,
    Family,
    Layout,
)
from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.model import LAYER_NORMS, expected_tensors

_LAYOUTS = (
    Layout(body="language_model.model.", head="language_model.lm_head."),  # multimodal, published
    Layout(body="model.language_model.", head="lm_head."),  # the same as transformers 5 has it
    Layout(body="encoder.language_model.", head="diffusion_head."),  # NLD, if its encoder is one
    *dict.fromkeys(family.layout for family in FAMILIES.values() if family.layout != HUGGING_FACE),
    HUGGING_FACE,
)
"""Most specific first."""
_VISION = ("vision_tower.", "multi_modal_projector.")
"""Parts of a vision-language checkpoint that the text model does not use."""

_GGUF_TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
}
_GGUF_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
}


def from_published(name: str) -> str | None:
    """Canonical name of a tensor in a safetensors file.

    None if the text model has no use for it: vision tower, draft adapter, RoPE tables.
    """
    if name.startswith("base_model.") or name.endswith("rotary_emb.inv_freq"):
        return None
    if any(part in name for part in _VISION):
        return None
    for layout in _LAYOUTS:
        if name.startswith(layout.head):
            return "lm_head." + name.removeprefix(layout.head)
        if name.startswith(layout.body):
            return name.removeprefix(layout.body)
    return name


def vision_name(name: str) -> str | None:
    """Canonical name of a tensor of tower or projector; None if it is another one's."""
    for part in _VISION:
        prefix, found, rest = name.partition(part)
        if found and prefix in ("", "model.", "encoder."):
            return part + rest
    return None


def to_published_vision(name: str, layout: str) -> str:
    """Name under which a canonical tensor of tower or projector is saved."""
    return VISION_LAYOUTS[layout].vision + name


def to_published(name: str, family: str, vision_layout: str | None = None) -> str:
    """Name under which a canonical tensor is saved for a family, or beside a vision part."""
    outer = None if vision_layout is None else VISION_LAYOUTS[vision_layout]
    layout = FAMILIES[family].layout if outer is None else outer.text
    if name.startswith("lm_head."):
        return layout.head + name.removeprefix("lm_head.")
    return layout.body + name


_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Linears that some families' files hold in one tensor, stacked along their outputs."""


def split_fused(name: str, config: ModelConfig) -> dict[str, slice | None]:
    """Canonical tensors that a file's tensor holds, and their rows; None is all of them."""
    stem, _, kind = name.rpartition(".")
    fused = next((whole for whole in _FUSED if stem.endswith(whole)), None)
    if fused is None or not FAMILIES[config.family].fused_linears:
        return {name: None}
    queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    inner = config.intermediate_size
    sizes = (queries, keys, keys) if "qkv" in fused else (inner, inner)
    layer = stem.removesuffix(fused)
    ends = list(accumulate(sizes))
    return {
        f"{layer}{part}.{kind}": slice(end - size, end)
        for part, size, end in zip(_FUSED[fused], sizes, ends, strict=True)
    }


def rows_of(shape: tuple[int, ...], rows: slice | None) -> tuple[int, ...]:
    """The shape of some rows of a tensor."""
    if rows is None or not shape:
        return shape
    return (len(range(*rows.indices(shape[0]))), *shape[1:])


def stored_parts(names: Iterable[str], family: str) -> dict[str, tuple[str, ...]]:
    """What the family's files call each tensor, and the canonical tensors stacked in it."""
    first = {parts[0]: (whole, parts) for whole, parts in _FUSED.items()}
    later = tuple(part for parts in _FUSED.values() for part in parts[1:])
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, _, kind = name.rpartition(".")
        part = next((part for part in first if stem.endswith(part)), None)
        if not FAMILIES[family].fused_linears or (part is None and not stem.endswith(later)):
            found[name] = (name,)
        elif part is not None:
            whole, parts = first[part]
            layer = stem.removesuffix(part)
            found[f"{layer}{whole}.{kind}"] = tuple(f"{layer}{each}.{kind}" for each in parts)
    return found


def published_layout(
    shapes: Mapping[str, tuple[int, ...]], family: str, vision_layout: str | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """How files hold the tensors of a family, or beside a vision part: their parts and shapes."""
    parts = {
        to_published(name, family, vision_layout): pieces
        for name, pieces in stored_parts(shapes, family).items()
    }
    return parts, {name: _stacked([shapes[p] for p in pieces]) for name, pieces in parts.items()}


def _stacked(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of tensors that are stacked along their first dimension."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def fuse(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Canonical tensors as the family's files hold them; the reverse of `split_fused`."""
    parts = stored_parts(tensors, family)
    return {
        name: tensors[pieces[0]] if len(pieces) == 1 else torch.cat([tensors[p] for p in pieces])
        for name, pieces in parts.items()
    }


def from_gguf(name: str, family: str = "llama") -> str | None:
    """Canonical name of a GGUF tensor, or None if it is not a weight of the model."""
    if name == "rope_freqs.weight":  # read into RopeConfig
        return None
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blk."):
        layer, _, part = stem.removeprefix("blk.").partition(".")
        return f"layers.{layer}.{_gguf_part(part, FAMILIES[family])}.{kind}"
    return f"{_GGUF_TENSORS.get(stem, stem)}.{kind}"


def _gguf_part(part: str, family: Family) -> str:
    if part == "ffn_norm":
        return LAYER_NORMS[family.norm_placement].before_mlp or part
    if part == "ffn_up" and family.fused_linears:
        return "mlp.gate_up_proj"
    return _GGUF_LAYER_TENSORS.get(part, part)


def check_tensors(
    config: ModelConfig, found: dict[str, tuple[int, ...]], where: str, ignore: Iterable[str] = ()
) -> None:
    """Compare a checkpoint's canonical names and shapes with what the model needs.

    Raises:
        CheckpointError: it names every kind of mismatch: missing, unknown and misshapen tensors.
    """
    if config.num_layers > len(found):  # a damaged count would fill the memory with names
        raise CheckpointError(
            where, f"{len(found)} tensors", f"must hold those of {config.num_layers} layers"
        )
    expected = expected_tensors(config)
    ignored = set(ignore)
    known = {name: shape for name, shape in found.items() if name not in ignored}
    what = f"the {len(expected)} tensors of a {config.family} model"
    compare_tensors(expected, known, where, what)


def compare_tensors(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    where: str,
    what: str,
) -> None:
    """Compare canonical names and shapes of tensors with those that are needed.

    Raises:
        CheckpointError: it names every kind of mismatch: missing, unknown and misshapen tensors.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if extra:
        close = difflib.get_close_matches(extra[0], expected, n=1)
        hint = f", nearest expected name {close[0]}" if close else ""
        problems.append(f"{len(extra)} unknown ({_some(extra)}{hint})")
    if wrong:
        shapes = [f"{n} is {list(found[n])}, expected {list(expected[n])}" for n in wrong]
        problems.append(f"{len(wrong)} misshapen ({_some(shapes)})")
    if problems:
        raise CheckpointError(where, "; ".join(problems), f"must hold {what}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
