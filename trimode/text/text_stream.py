"""The text of one answer as its tokens are committed."""

from trimode.text.detokenizer import Detokenizer
from trimode.text.stop_strings import StopStrings
from trimode.text.tokenizer import Tokenizer


class TextStream:
    """Detokenizes token by token and ends at a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: tuple[str, ...] = (),
        shown_special_ids: tuple[int, ...] = (),
    ) -> None:
        self.detokenizer = Detokenizer(tokenizer, shown_special_ids)
        self._stops = StopStrings(stops)
        self._pieces: list[str] = []
        self.stopped = False
        """Whether a stop string was completed; nothing is shown after it."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.found

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Text that this token makes final."""
        return self._show(self.detokenizer.push([token]))

    def finish(self) -> str:
        """The text that was held back, at the end of the answer."""
        if self.stopped:
            return ""
        shown = self._show(self.detokenizer.flush())
        if not self.stopped:
            rest = self._stops.flush()
            self._pieces.append(rest)
            shown += rest
        return shown

    def _show(self, text: str) -> str:
        if self.stopped:
            return ""
        shown, self.stopped = self._stops.push(text)
        self._pieces.append(shown)
        return shown
