"""The parts of the document reader, and the checkpoint that they make together."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

import torch
from safetensors.torch import save_file
from torch import Tensor

from reproduce.documents.lora import add_lora, exported
from reproduce.documents.teach import CONFIG
from trimode.checkpoints import (
    Checkpoint,
    open_checkpoint,
    read_adapter,
    save_adapter,
    save_checkpoint,
)
from trimode.checkpoints.adapters import NLD_DRAFT_ADAPTER
from trimode.checkpoints.loader import ADDED_LORA
from trimode.checkpoints.sources import BUILT_IN, DOCUMENTS_MODEL
from trimode.checkpoints.vision import PROCESSOR_FILE, vision_tensors
from trimode.config import DEFAULT_MODEL, ModelConfig
from trimode.model import AdapterWeights, Transformer, as_floats, expected_tensors, merged
from trimode.text import ChatTemplate, Tokenizer
from trimode.vision import ImageTokens, Vision, VisionModel

TEMPLATE = Path(__file__).with_name("template.jinja")
IMAGE, ROW_BREAK, END = "<file_sep>", "<issue_start>", "<issue_closed>"
"""Tokens that stand for a square, a row's end and a picture's end. The base never learned them."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The built-in model and the adapter that makes it denoise."""

    checkpoint: Checkpoint
    adapter: AdapterWeights
    template: ChatTemplate

    @property
    def config(self) -> ModelConfig:
        """Of the language model."""
        return self.checkpoint.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the language model."""
        return self.checkpoint.tokenizer


def open_base() -> Base:
    """Open the built-in model."""
    checkpoint = open_checkpoint(DEFAULT_MODEL)
    adapter = read_adapter(BUILT_IN[DEFAULT_MODEL].adapter)
    mask = adapter.mask_token_id or checkpoint.config.mask_token_id
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, mask_token_id=mask))
    return Base(checkpoint, adapter, ChatTemplate(TEMPLATE.read_text(encoding="utf-8")))


def taught(path: Path, base: Base) -> Vision:
    """Tower and projector as teach.py left them, frozen."""
    saved = torch.load(path, weights_only=False)["teacher"]
    prefix = "vision."
    return vision_of(
        {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}, base
    )


def trained(path: Path, base: Base) -> tuple[Transformer, Vision]:
    """Language model with its LoRA, and vision, as train.py left them."""
    saved = torch.load(path, weights_only=False)
    model = base.checkpoint.build(dtype="fp32", device="cpu", adapter=base.adapter, plain=True)
    lora = add_lora(model.transformer, saved["rank"])
    for parameter, value in zip(lora, saved["lora"], strict=True):
        parameter.data.copy_(value)
    return model.transformer, vision_of(saved["vision"], base)


def vision_of(weights: dict[str, Tensor], base: Base) -> Vision:
    """Tower and projector with these weights, and the tokens that stand for pictures."""
    model = VisionModel(CONFIG)
    model.load_state_dict(weights)
    model = model.eval().requires_grad_(False)
    return Vision(config=CONFIG, tokens=image_tokens(base), layout="mistral3", model=model)


def image_tokens(base: Base) -> ImageTokens:
    """The tokens that stand for pictures."""
    ids = [base.tokenizer.token_id(name) for name in (IMAGE, ROW_BREAK, END)]
    assert ids[0] is not None
    return ImageTokens(ids[0], ids[1], ids[2])


def main() -> None:
    """Write the reader that train.py left in `run/reader.pt`.

    `run/checkpoint` is whole: `trimode generate -m run/checkpoint --image ...` reads it.
    `run/smollm2-documents` has only what is added to the built-in model, as it is shipped.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    base = open_base()
    transformer, vision = trained(arguments.output / "reader.pt", base)
    lora = exported(transformer)
    whole = arguments.output / "checkpoint"
    _save_whole(whole, base, lora, vision)
    _save_additions(arguments.output / DOCUMENTS_MODEL, base, lora, vision, whole)


def _save_whole(directory: Path, base: Base, lora: AdapterWeights, vision: Vision) -> None:
    read = merged(base.config, base.checkpoint.read, lora)
    tensors = (
        (name, as_floats(read(name)).to(torch.bfloat16)) for name in expected_tensors(base.config)
    )
    save_checkpoint(directory, base.config, tensors, tokenizer=base.tokenizer,
                    chat_template=base.template, vision=vision, overwrite=True)  # fmt: skip
    save_adapter(directory / NLD_DRAFT_ADAPTER, base.adapter, base.config)
    print(directory)


def _save_additions(
    directory: Path, base: Base, lora: AdapterWeights, vision: Vision, whole: Path
) -> None:
    directory.mkdir(exist_ok=True)
    save_adapter(directory / ADDED_LORA, lora.to(torch.bfloat16), base.config, overwrite=True)
    for name in ("config.json", PROCESSOR_FILE, "chat_template.jinja"):
        copyfile(whole / name, directory / name)
    weights = {name: w.to(torch.bfloat16) for name, w in vision_tensors(vision).items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    print(directory)


if __name__ == "__main__":
    main()
