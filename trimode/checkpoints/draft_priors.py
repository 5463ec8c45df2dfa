"""How often an adapter's drafts are right, kept in its directory as `draft_priors.json`.

Mode `auto` begins with these figures, so its first answer need not find them out.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trimode.checkpoints.atomic import write_text
from trimode.errors import CheckpointError
from trimode.files import json_object_or_empty

FILE = "draft_priors.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPriors:
    """Chances of a draft before any was judged."""

    by_place: tuple[float, ...] = ()
    """That each token of the model's own draft is accepted once those before it were."""
    head_nodes: float = 1.5
    """Nodes of a draft head's draft."""
    head_accepted: float = 0.6
    """Tokens accepted of it."""


def read_draft_priors(directory: Path) -> DraftPriors:
    """The priors of an adapter directory; ordinary ones if it has none.

    Raises:
        CheckpointError: the file holds something else.
    """
    path = directory / FILE
    if not path.is_file():
        return DraftPriors()
    fields = json_object_or_empty(path)
    try:
        priors = DraftPriors(**{**fields, "by_place": tuple(map(float, fields["by_place"]))})
        fits = all(0 <= chance <= 1 for chance in priors.by_place)
        fits = fits and priors.head_nodes >= 0 and priors.head_accepted >= 0
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        allowed = "by_place: chances from 0 to 1; head_nodes and head_accepted: from 0"
        raise CheckpointError(str(path), "no draft priors", allowed)
    return priors


def save_draft_priors(directory: Path, priors: DraftPriors) -> Path:
    """Write the priors into an adapter directory, whole or not at all."""
    path = directory / FILE
    write_text(path, json.dumps(asdict(priors), indent=2) + "\n")
    return path
