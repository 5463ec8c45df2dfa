"""A draft head, kept in an adapter's directory as `draft_head.safetensors`."""

from pathlib import Path

from torch import Tensor

from trimode.checkpoints.small_nets import read_net, reading, write_net
from trimode.config import ModelConfig
from trimode.model import Runner
from trimode.model.draft_head import DraftHeadConfig, DraftHeadNet, PackedDraftHead

FILE = "draft_head.safetensors"
_CONFIG = "trimode_draft_head"
_TOKENS = "tokens"


def read_draft_head(directory: Path, runner: Runner) -> PackedDraftHead | None:
    """The draft head of an adapter directory for a model that runs, or None if it has none.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    found = read_draft_head_net(directory, runner.transformer.config)
    if found is None:
        return None
    net, tokens = found
    return PackedDraftHead(net, tokens.to(runner.device), runner)


def read_draft_head_net(directory: Path, model: ModelConfig) -> tuple[DraftHeadNet, Tensor] | None:
    """The same in floats, and the tokens that it can guess `[K]`.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    with reading(path, "draft head"):
        sizes, tensors = read_net(path, _CONFIG)
        config, tokens = DraftHeadConfig(**sizes), tensors.pop(_TOKENS).long()
        if config.dim != model.hidden_size or int(tokens.max()) >= model.vocab_size:
            raise ValueError(f"of a model with hidden states of {config.dim} numbers")
        net = DraftHeadNet(config)
        net.load_state_dict(tensors)
    return net, tokens


def save_draft_head(directory: Path, net: DraftHeadNet, tokens: Tensor) -> Path:
    """Write a draft head into an adapter directory, whole or not at all. Matrices become int8."""
    return write_net(directory / FILE, _CONFIG, net.config, net, **{_TOKENS: tokens.int()})
