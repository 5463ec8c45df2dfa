"""A Markov head, kept in an adapter's directory as `markov_head.safetensors`."""

from pathlib import Path

from trimode.checkpoints.small_nets import read_net, reading, write_net
from trimode.model import Transformer
from trimode.model.markov_head import MarkovHeadConfig, MarkovHeadNet, PackedMarkovHead

FILE = "markov_head.safetensors"
_CONFIG = "trimode_markov_head"


def read_markov_head(directory: Path, transformer: Transformer) -> PackedMarkovHead | None:
    """The Markov head of an adapter directory, or None if it has none.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    with reading(path, "Markov head"):
        sizes, tensors = read_net(path, _CONFIG)
        config = MarkovHeadConfig(**sizes)
        if config.dim != transformer.config.hidden_size:
            raise ValueError(f"of a model with hidden states of {config.dim} numbers")
        net = MarkovHeadNet(config)
        net.load_state_dict(tensors)
    return PackedMarkovHead(net, transformer)


def save_markov_head(directory: Path, net: MarkovHeadNet) -> Path:
    """Write a Markov head into an adapter directory, whole or not at all. Matrices become int8."""
    return write_net(directory / FILE, _CONFIG, net.config, net)
