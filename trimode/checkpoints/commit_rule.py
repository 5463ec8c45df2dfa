"""A learned commit rule, kept in an adapter's directory as `commit_rule.safetensors`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimode.checkpoints.atomic import write_tensors
from trimode.decoding import BlockView, CommitScorer
from trimode.errors import CheckpointError
from trimode.model.commit_scorer import CommitScorerNet, ScorerConfig, block_features

FILE = "commit_rule.safetensors"
_CONFIG = "trimode_commit_rule"


def as_scorer(network: CommitScorerNet) -> CommitScorer:
    """The network as decoders call it."""

    def score(view: BlockView) -> Tensor:
        ids, scalars = block_features(view.tokens, view.masked, view.probabilities)
        device = view.probabilities.device
        logits = network(ids[None].to(device), scalars[None].to(device))[0]
        return logits[list(view.masked)].sigmoid()

    return score


def read_commit_rule(
    directory: Path, embedding_matrix: Callable[[], Tensor]
) -> CommitScorer | None:
    """The rule of an adapter directory, or None if it has none.

    `embedding_matrix` gives the model's embeddings `[V, D]`. It is called only if there is a rule.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            config = ScorerConfig(**json.loads((file.metadata() or {})[_CONFIG]))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        embedding = embedding_matrix()
        network = CommitScorerNet(config, embedding)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            str(path), f"not readable ({reason})", "a rule that was trained for this model"
        ) from None
    return as_scorer(network.to(embedding.device).eval())


def save_commit_rule(directory: Path, network: CommitScorerNet) -> Path:
    """Write the rule into an adapter directory, whole or not at all."""
    path = directory / FILE
    tensors = {name: t.detach().half().contiguous() for name, t in network.state_dict().items()}
    write_tensors(path, tensors, {_CONFIG: json.dumps(asdict(network.config))})
    return path
