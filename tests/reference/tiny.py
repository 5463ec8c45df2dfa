"""Tiny random models in two forms: transformers' class as the oracle, and ours in an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.reference import families
from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions, ModelConfig
from trimode.engine import Engine, drain
from trimode.engine.sequence import Sequence as Running
from trimode.model import build_runner
from trimode.model.adapter import AdapterWeights
from trimode.text import Tokenizer

THINK_END = 5
MASK = 7


ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@lru_cache
def letters(*, thinks: bool = True) -> Tokenizer:
    """A tokenizer of single characters: id i is the i-th letter, one id is `</think>`."""
    tokens, types = list(ALPHABET), [1] * len(ALPHABET)
    if thinks:
        tokens[THINK_END], types[THINK_END] = "</think>", 4
    return Tokenizer.from_gguf(tokens, types, [], "gpt-2")


@dataclass(frozen=True)
class Tiny:
    """One set of random weights, twice."""

    oracle: nn.Module
    model: LoadedModel
    """What an engine takes as a loaded model."""
    adapter: AdapterWeights | None = None

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @torch.inference_mode()
    def forward(
        self, tokens: list[int], positions: list[int], mask: Tensor, adapted: set[int]
    ) -> Tensor:
        """Logits `[n, vocab]` of transformers' model under a boolean mask."""
        attention_mask: Any = _bias(mask)
        windows = set(self.config.layer_windows) - {None}
        if windows:  # one window at most
            places = torch.tensor(positions)
            near = places[:, None] - places[None, :] < windows.pop()
            narrow = _bias(mask & near)
            if self.config.local_rope is None:  # the window is that of all layers
                attention_mask = narrow
            else:
                attention_mask = {"full_attention": attention_mask, "sliding_attention": narrow}
        hooks = self._hooks(tokens, adapted)
        try:
            output = self.oracle(
                torch.tensor([tokens]),
                position_ids=torch.tensor([positions]),
                attention_mask=attention_mask,
                use_cache=False,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return output.logits[0]

    def _hooks(self, tokens: list[int], adapted: set[int]) -> list[Any]:
        """Forward hooks that add the adapter's delta on the adapted rows only."""
        if self.adapter is None or not adapted:
            return []
        rows = torch.tensor(sorted(adapted))
        scale = self.adapter.scale

        def delta(a: Tensor, b: Tensor, start: int) -> Any:
            place = slice(start, start + len(b))

            def hook(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                output = output.clone()
                output[0, rows, place] += inputs[0][0, rows] @ a.T @ b.T * scale
                return output

            return hook

        base = self.oracle.get_submodule("model")
        modules = dict(base.named_modules())
        hooks = []
        for name, (a, b) in self.adapter.targets.items():
            home, start = (name, 0) if name in modules else self._fused(name)
            hooks.append(modules[home].register_forward_hook(delta(a, b, start)))
        embedding = self.adapter.mask_embedding
        if embedding is not None:
            masked = [row for row in sorted(adapted) if tokens[row] == self.config.mask_token_id]

            def embed(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
                output = output.clone()
                output[0, masked] = embedding * getattr(module, "embed_scale", 1.0)
                return output

            hooks.append(base.get_submodule("embed_tokens").register_forward_hook(embed))
        return hooks

    def _fused(self, name: str) -> tuple[str, int]:
        """Where Phi-3's modules hold a linear: the module, and the linear's first row."""
        layer, _, part = name.rpartition(".")
        config = self.config
        queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        starts = {
            "q_proj": 0, "k_proj": queries, "v_proj": queries + keys,
            "gate_proj": 0, "up_proj": config.intermediate_size,
        }  # fmt: skip
        home = "qkv_proj" if "self_attn" in layer else "gate_up_proj"
        return f"{layer}.{home}", starts[part]

    def engine(self, **limits: Any) -> Engine:
        return Engine(self.model, **limits)

    def generate(self, prompt: Sequence[int], **options: Any) -> Running:
        """Run one request alone and return its finished sequence."""
        return run_alone(self.model, prompt, **options)


def _bias(mask: Tensor) -> Tensor:
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return bias[None, None]


def run_alone(model: LoadedModel, prompt: Sequence[int], **options: Any) -> Running:
    """Run one request alone and return its finished sequence."""
    engine = Engine(model)
    sequence = engine.add(tuple(prompt), GenerationOptions(**options))
    for _ in drain(engine):
        pass
    return sequence


@lru_cache(maxsize=64)
def _weights(
    family: str, seed: int, vocab: int, sharpness: float, common: float, limit: int
) -> tuple[nn.Module, ModelConfig, dict[str, Tensor]]:
    """Random weights; `sharpness` scales the head, `common` a direction all tokens share.

    The larger `common`, the more every position predicts the same few tokens, whatever it sees,
    so that drafts agree with the verifier more often.
    """
    sizes = {
        "vocab_size": vocab,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "max_position_embeddings": limit,
    }
    with patch.dict(families.SIZES, sizes):
        oracle, config, tensors = families.build(family, seed)
    oracle.requires_grad_(False)
    with torch.no_grad():
        embedding = oracle.get_submodule("model.embed_tokens").weight
        embedding += common * torch.randn(embedding.shape[1])
        oracle.get_submodule("lm_head").weight.mul_(sharpness)
    return oracle, config, tensors


def tiny(
    family: str = "llama",
    seed: int = 0,
    *,
    vocab: int = 31,
    sharpness: float = 4.0,
    common: float = 0.0,
    limit: int = 4096,
    eos: tuple[int, ...] = (2,),
    adapter: AdapterWeights | None = None,
    scope: str | None = None,
    trained: bool = True,
    thinks: bool = True,
    dtype: str = "fp32",
    **fields: Any,
) -> Tiny:
    """A random model of a family; `fields` replace fields of its config."""
    oracle, config, tensors = _weights(family, seed, vocab, sharpness, common, limit)
    fields = {"eos_token_ids": eos, "trained_to_denoise": trained, **fields}
    if adapter is not None:
        fields = {"draft_form": adapter.draft_form, **fields}
    config = replace(config, **fields)
    model = LoadedModel(
        name=f"tiny-{family}",
        config=config,
        runner=build_runner(config, tensors.__getitem__, dtype=dtype, adapter=adapter),
        tokenizer=letters(thinks=thinks),
        chat_template=None,
        adapter_scope=scope if scope is not None else (adapter.scope if adapter else None),
    )
    return Tiny(oracle, model, adapter)


def random_adapter(
    config: ModelConfig, seed: int = 0, *, scale: float = 2.0, scope: Any = "draft", rank: int = 4
) -> AdapterWeights:
    """A random low-rank delta on every attention and MLP linear, with a mask embedding."""
    from trimode.model import expected_tensors

    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    targets = {}
    for name, shape in expected_tensors(config).items():
        if "_proj.weight" in name:
            targets[name.removesuffix(".weight")] = (noise(rank, shape[1]), noise(shape[0], rank))
    return AdapterWeights(
        scale=scale,
        targets=targets,
        scope=scope,
        mask_embedding=noise(config.hidden_size),
        draft_form="led" if scope == "denoise" else "seeded",
    )
