"""Stop strings over a stream of text pieces."""


class StopStrings:
    """Cuts text before the first complete stop string, and holds back what may become one.

    The first stop string is the one that ends first in the text, or the longer one if two end
    together. So the outcome is known at once, and does not depend on how the text is cut into
    pieces.

    Args:
        stops: the strings; empty ones are ignored.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._visible: list[bool] = []
        """Which characters of the held text may be shown."""
        self.found: str | None = None
        """The stop string that was completed."""

    def push(self, text: str, *, hidden: bool = False) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was completed, now or before.

        Args:
            text: the next piece.
            hidden: whether it can be part of a stop string, but is never shown.
        """
        if self.found is not None:
            return "", True
        self._held += text
        self._visible += [not hidden] * len(text)
        places = ((self._held.find(stop), stop) for stop in self._stops)
        ends = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        if ends:
            _, at, self.found = min(ends)
            return self._release(at, rest_too=True), True
        return self._release(len(self._held) - self._possible_start()), False

    def flush(self) -> str:
        """The text that was held back, at the end of the text."""
        return self._release(len(self._held))

    def _release(self, length: int, *, rest_too: bool = False) -> str:
        """The visible part of the first `length` held characters, which are no longer held."""
        shown = "".join(c for c, v in zip(self._held[:length], self._visible, strict=False) if v)
        kept = len(self._held) if rest_too else length
        self._held, self._visible = self._held[kept:], self._visible[kept:]
        return shown

    def _possible_start(self) -> int:
        """Length of the longest suffix that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            suffix = self._held[-length:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return length
        return 0
