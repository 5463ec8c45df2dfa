"""A run on disk: its configuration, metrics, and checkpoints that a killed run continues from.

run/config.json     every field of the configuration, the revision and the data's hash
run/metrics.jsonl   one line a step, and one an evaluation
run/checkpoints/step-000100/    safetensors of one process, or the shards of several
run/final/          the adapter or model
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimode.checkpoints.atomic import atomic_directory, write_text
from trimode.errors import CheckpointError, InputError
from trimode.training.config import TrainConfig, parse_train_config
from trimode.training.distributed import Processes, sharded_like
from trimode.training.sharded import Groups
from trimode.training.sharded import read as read_shards
from trimode.training.sharded import write as write_shards
from trimode.version import __version__

_CHANGEABLE_FIELDS = (
    "output",
    "steps",
    "evaluation",
    "save_every",
    "keep_checkpoints",
    "tensorboard",
    "device",
    "export_dtype",
    "recompute",
    "replicate",
    "mask_token",  # the token that it names is compared
    "optimiser.learning_rate",
    "optimiser.clip",
)
"""What a continued run may change."""
_CONFIG, _STATE, _SHARDS = "config.json", "state.json", "shards"


def recorded_precision(directory: Path) -> str | None:
    """The precision of the run in a directory; None if there is no run."""
    path = directory / _CONFIG
    return _read_record(path)["config"].get("precision") if path.is_file() else None


def _read_record(path: Path) -> dict[str, Any]:
    """A run's `config.json`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["config"], dict):
            return record
        reason = "no config in it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise InputError("output", f"{path} is not the config of a run ({reason})", "another directory")


def check_output(config: TrainConfig) -> None:
    """Raise InputError if the output directory holds something else than this run.

    Data and model are not compared: `RunDirectory` does that once they are read.
    """
    path = Path(config.output)
    if (path / _CONFIG).exists():
        _check_same(path, _read_record(path / _CONFIG), {"config": asdict(config)})
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError("output", f"{path} is not empty", "a new directory, or a run's")


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise InputError if a run's record differs from a new one in a field that must not change."""
    # A field that was added after the run began had its default value then.
    config = asdict(parse_train_config(old["config"]))
    # The mask token was the model's own before it was recorded.
    old = {"mask_token_id": new.get("mask_token_id")} | old | {"config": config}
    before, now = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
    for name, value in now.items():
        free = any(
            name == f"config.{f}" or name.startswith(f"config.{f}.") for f in _CHANGEABLE_FIELDS
        )
        if not free and before.get(name) != value:
            raise InputError(
                "output",
                f"{path} holds a run with {name} {before.get(name)!r}, not {value!r}",
                "continue it as it was, or choose another directory",
            )


class RunDirectory:
    """Reads and writes one run.

    Raises:
        InputError: the directory holds another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model_fingerprint: str,
        data_sha256: str,
        mask_token_id: int,
        writes: bool = True,
    ) -> None:
        """`writes`: whether this process is the one that writes."""
        self.writes = writes
        self._board = None
        self.path = Path(config.output)
        self.keep = config.keep_checkpoints
        record = {
            "config": asdict(config),
            "model_sha256": model_fingerprint,
            "data_sha256": data_sha256,
            "mask_token_id": mask_token_id,
        }
        self._config_path = self.path / _CONFIG
        if not writes:  # the one that writes may be at it; what it refuses ends all processes
            return
        check_output(config)
        if self._config_path.exists():
            _check_same(self.path, _read_record(self._config_path), record)
        self.path.mkdir(parents=True, exist_ok=True)
        killed_saves = (self.path / "checkpoints").glob(".step-*.partial-*")
        for left in killed_saves:
            shutil.rmtree(left, ignore_errors=True)
        record |= {"trimode": __version__, "git_revision": _revision()}
        write_text(self._config_path, json.dumps(record, indent=2) + "\n")
        if config.tensorboard:
            self._board = _open_board(self.path)

    @property
    def final(self) -> Path:
        """Where the result goes."""
        return self.path / "final"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps done and directory of each complete checkpoint, oldest first."""
        found = []
        for path in (self.path / "checkpoints").glob("step-*"):
            match = re.fullmatch(r"step-(\d+)", path.name)
            if match and (path / _STATE).is_file():
                found.append((int(match[1]), path))
        return sorted(found)

    def save(self, step: int, groups: Groups, processes: Processes) -> None:
        """Write a checkpoint of named groups of tensors, then delete the oldest ones.

        Several processes write their shards, and all of them call this. The checkpoint has its name
        once all have written.

        Raises:
            OSError: it could not be written; nothing of it is left.
        """
        target = self.path / "checkpoints" / f"step-{step:06d}"
        if not self.writes:
            write_shards(Path(processes.agree("")) / _SHARDS, groups)
            return
        with atomic_directory(target, replaceable=lambda _: True) as temporary:
            if processes.count == 1:
                _write_whole(temporary, groups)
            else:
                processes.agree(str(temporary))
                write_shards(temporary / _SHARDS, groups)
            (temporary / _STATE).write_text(json.dumps({"step": step}) + "\n")
        for _, old in self.checkpoints()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(
        self, path: Path, group: str, owner: Callable[[str], Tensor | None]
    ) -> dict[str, Tensor]:
        """One group of a checkpoint, whoever wrote it; several processes all call this.

        Args:
            path: of the checkpoint.
            group: the group.
            owner: the parameter that a tensor belongs to, by name, if there is one.

        Returns:
            Tensors by name, where their owner is; sharded as it is if they have its shape.

        Raises:
            CheckpointError: it is damaged.
        """
        shards, file = path / _SHARDS, path / f"{group}.safetensors"
        try:
            if shards.is_dir():
                return read_shards(shards, group, lambda name, shape: _empty(shape, owner(name)))
            found = {_current_name(name): tensor for name, tensor in load_file(file).items()}
        except Exception as error:  # noqa: BLE001 - damage shows in as many ways as there are readers
            where = shards if shards.is_dir() else file
            allowed = f"remove {path.name} to continue from the one before"
            raise CheckpointError(str(where), f"not readable ({error})", allowed) from None
        return {name: _like(tensor, owner(name)) for name, tensor in found.items()}

    def cut_metrics(self, step: int) -> None:
        """Drop the metrics of steps that will run again."""
        path = self.path / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # a line that a killed run left unfinished
        write_text(path, "".join(kept))

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        if not self.writes:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()


def _write_whole(directory: Path, groups: Groups) -> None:
    for name, tensors in groups.items():
        try:
            save_file(dict(tensors), directory / f"{name}.safetensors")
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{directory}: could not be written ({error})") from None


def _like(tensor: Tensor, owner: Tensor | None) -> Tensor:
    return tensor if owner is None else sharded_like(tensor, owner)


def _empty(shape: torch.Size, owner: Tensor | None) -> Tensor:
    """A tensor to read into."""
    if owner is None:
        return torch.empty(shape)
    if owner.shape == shape:
        return torch.empty_like(owner.detach())
    return torch.empty(shape, device=owner.device)


def _current_name(name: str) -> str:
    """Today's name of a parameter or of its moments: the embedding was not always a module."""
    first, dot, rest = name.partition(".")
    if first == "embedding" and rest.partition(".")[0] != "weight":
        return f"embedding.weight{dot}{rest}"
    return name


def _open_board(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "tensorboard", "not installed", "pip install 'trimode[tensorboard]'"
        ) from None
    return SummaryWriter(path / "tensorboard")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _revision() -> str | None:
    """The git revision of this source tree, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
