"""Building and saving a tiny random model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from trimode.checkpoints import LoadedModel, save_checkpoint
from trimode.checkpoints.families import FAMILIES
from trimode.checkpoints.hf_config import from_hf
from trimode.config import ModelConfig
from trimode.model import AdapterWeights, build_runner, expected_tensors
from trimode.text import ChatTemplate, Tokenizer

SPECIAL_TOKENS = ("<|mask|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
"""Ids 256 to 260, after the 256 bytes."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(more: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer with one token a byte and a few special tokens: 261 ids, then those of `more`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIAL_TOKENS, *more])
    return Tokenizer(backend)


def tiny_config(family: str = "nemotron_labs_diffusion", **overrides: Any) -> ModelConfig:
    """A config of a few thousand parameters; any field may be overridden."""
    tokenizer = byte_tokenizer()
    row = FAMILIES[family]
    yarn = {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    fields: dict[str, Any] = {
        "model_type": family,
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": overrides.get("num_layers", 2),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        row.norm_eps_field: 1e-5,
        "max_position_embeddings": 1024,
        "rope_parameters": yarn if row.trained_to_denoise else None,
        "sliding_window": 6 if row.window_layers else None,
        "sliding_window_pattern": 2,
        "no_rope_layer_interval": 2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.5,
        "tie_word_embeddings": False,
        "mask_token_id": tokenizer.token_id("<|mask|>"),
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_id("<|im_end|>"),
    }
    return replace(from_hf(fields), **overrides)


def tiny_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, large enough that argmaxes are not near-ties."""
    generator = torch.Generator().manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return values * 0.1 + (0.0 if name.endswith("bias") else 1.0)
        return values if name.startswith("embed") else values * 2 * shape[-1] ** -0.5

    return {name: random(name, shape) for name, shape in expected_tensors(config).items()}


def tiny_model(
    family: str = "nemotron_labs_diffusion",
    *,
    seed: int = 0,
    adapter: AdapterWeights | None = None,
    **overrides: Any,
) -> LoadedModel:
    """A random model in memory, fp32 on CPU.

    Args:
        family: any supported model family; NLD ones count as trained to denoise.
        seed: of the weights.
        adapter: a draft adapter to load with it.
        overrides: fields of `ModelConfig`.
    """
    if adapter is not None:
        overrides = {"draft_form": adapter.draft_form, **overrides}
    config = tiny_config(family, **overrides)
    tensors = tiny_tensors(config, seed)
    return LoadedModel(
        name=f"tiny-{family}",
        config=config,
        runner=build_runner(config, tensors.__getitem__, dtype="fp32", adapter=adapter),
        tokenizer=byte_tokenizer(),
        chat_template=ChatTemplate(CHAT_TEMPLATE),
        adapter_scope=adapter.row_scope if adapter else None,
    )


def write_tiny_checkpoint(
    directory: Path, family: str = "nemotron_labs_diffusion", *, seed: int = 0, **overrides: Any
) -> Path:
    """Save a random model with tokenizer and chat template; returns the directory."""
    config = tiny_config(family, **overrides)
    save_checkpoint(
        directory,
        config,
        tiny_tensors(config, seed).items(),
        tokenizer=byte_tokenizer(),
        chat_template=ChatTemplate(CHAT_TEMPLATE),
    )
    return directory
