"""Settings that are compared: a mode with its block length and threshold, at a load."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from trimode.config import DEFAULT_BLOCK_LENGTH, GenerationOptions, Mode
from trimode.decoding import MODE_SPECS, inherited
from trimode.errors import InputError

LOCAL = "local"
"""The target of settings that run in this process."""
AS_IT_IS = "as it is"
"""What stands for the mode of a server whose modes we cannot choose."""
DEFAULT_MODES: tuple[Mode, ...] = ("ar", "linear", "quadratic", "auto")
_LINEAR_LENGTHS = (4, 8)
_QUADRATIC_LENGTHS = (4, 8)
_SEARCHED_LENGTHS: dict[str, tuple[int, ...]] = {
    "linear": (3, 4, 5, 6, 8, 12, 16, 32),
    "quadratic": (3, 4, 5, 6, 8),
}
_THRESHOLDS = (0.3, 0.6, 0.9)


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to answer the workload."""

    target: str
    """`local`, or the URL of a server."""
    mode: str
    """A mode, or `as it is`."""
    concurrency: int
    block_length: int | None = None
    threshold: float | None = None

    @property
    def way(self) -> str:
        """The setting without its load, as people and results name it."""
        place = "" if self.target == LOCAL else f"{self.target} "
        block = "" if self.block_length is None else f" block {self.block_length}"
        bar = "" if self.threshold is None else f" threshold {self.threshold:g}"
        return f"{place}{self.mode}{block}{bar}"

    @property
    def short(self) -> str:
        """The same in few letters, for plots: b is the block length, t the threshold."""
        place = "" if self.target == LOCAL else f"{self.target.partition('://')[2]} "
        block = "" if self.block_length is None else f" b{self.block_length}"
        bar = "" if self.threshold is None else f" t{self.threshold:g}"
        return f"{place}{self.mode}{block}{bar}"

    @property
    def key(self) -> str:
        """The setting with its load."""
        return f"{self.way} x{self.concurrency}"

    @property
    def lossless(self) -> bool:
        """Whether it promises AR's tokens."""
        return any(name == self.mode and spec.lossless for name, spec in MODE_SPECS.items())

    def options(self, base: GenerationOptions) -> GenerationOptions:
        """The options of a request in this setting; the base's are those of its row.

        Raises:
            InputError: there is no such mode.
        """
        found = inherited(base, self.mode)
        given = {"block_length": self.block_length, "threshold": self.threshold}
        return replace(found, **{name: v for name, v in given.items() if v is not None})

    def to_json(self) -> dict[str, Any]:
        """As results have it."""
        return {"key": self.key, **asdict(self)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The setting of a result."""
        return cls(**{name: value for name, value in row.items() if name != "key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is to be compared, as the user says it. None: the usual values."""

    modes: tuple[str, ...] | None = None
    block_lengths: tuple[int, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    concurrency: tuple[int, ...] = (1,)
    lossy: bool = False
    """Whether diffusion is among the usual modes."""
    search: bool = False
    """Whether the usual block lengths are many."""

    def settings(self, target: str, own_block_length: int | None = None) -> list[Setting]:
        """All settings of a target, `ar` first at each load.

        Args:
            target: `local` or a URL.
            own_block_length: of the model, if it is known.

        Raises:
            InputError: a mode is unknown or named twice, or a value has no effect in any mode.
        """
        modes = self._modes()
        if "ar" not in modes:
            modes = ["ar", *modes]  # all others are compared with it
        modes.sort(key=lambda mode: mode != "ar")
        self._refuse_unread(modes)
        return [
            Setting(target, mode, concurrency, length, bar)
            for concurrency in self.concurrency
            for mode in modes
            for length in self._lengths(mode, own_block_length or DEFAULT_BLOCK_LENGTH)
            for bar in self._bars(mode)
        ]

    def _modes(self) -> list[str]:
        usual = (*DEFAULT_MODES, "diffusion") if self.lossy else DEFAULT_MODES
        named = [GenerationOptions(mode=mode).mode for mode in self.modes or usual]  # type: ignore[arg-type]
        if len({*named}) < len(named):
            raise InputError("modes", ",".join(named), "name each mode once")
        return list(named)

    def _refuse_unread(self, modes: Sequence[str]) -> None:
        if self.thresholds and "diffusion" not in modes:
            found = ",".join(f"{bar:g}" for bar in self.thresholds)
            raise InputError("thresholds", found, "only diffusion is compared by them; name it")
        if self.block_lengths and not any(mode not in ("ar", "auto") for mode in modes):
            found = ",".join(map(str, self.block_lengths))
            raise InputError("block_lengths", found, f"not read by {', '.join(modes)}")

    def _lengths(self, mode: str, own: int) -> Sequence[int | None]:
        if mode in ("ar", "auto"):
            return (None,)
        if self.block_lengths:
            return self.block_lengths
        if self.search and mode in _SEARCHED_LENGTHS:
            return [n for n in _SEARCHED_LENGTHS[mode] if n <= max(own, 8)]
        if mode == "linear":
            return sorted({*_LINEAR_LENGTHS, own})
        return _QUADRATIC_LENGTHS if mode == "quadratic" else (own,)

    def _bars(self, mode: str) -> Sequence[float | None]:
        if mode != "diffusion":
            return (None,)
        return self.thresholds or _THRESHOLDS


def baseline_of(settings: Sequence[Setting]) -> Setting:
    """What the others are compared with: our own `ar`, else a server's, else the first one."""
    order = [s for s in settings if s.mode == "ar"]
    local = [s for s in order if s.target == LOCAL]
    return next(iter((*local, *order, *settings)))
