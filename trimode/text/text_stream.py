"""The text of one answer as its tokens are committed."""

from collections.abc import Collection, Sequence

from trimode.text.detokenizer import Detokenizer
from trimode.text.stop_strings import StopStrings
from trimode.text.tokenizer import Tokenizer


class TextStream:
    """Detokenizes token by token and ends at a stop string.

    Special tokens are not shown unless told otherwise, but a stop string may spell one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: tuple[str, ...] = (),
        prompt: Sequence[int] = (),
        *,
        shown_special_ids: Collection[int] = (),
    ) -> None:
        """Nothing is decoded yet.

        Args:
            tokenizer: the model's.
            stops: strings that end the answer.
            prompt: tokens before the answer, in whose text the answer's first word stands.
            shown_special_ids: special tokens that are shown.
        """
        self.detokenizer = Detokenizer(tokenizer, prompt, shown_special_ids=shown_special_ids)
        self._stops = StopStrings(stops)
        spelled = tokenizer.special_tokens_in(stops)
        self._spelled = {i: text for i, text in spelled.items() if i not in shown_special_ids}
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
        shown = self._show(self.detokenizer.push([token]))
        if token in self._spelled:
            shown += self._show(self._spelled[token], hidden=True)
        return shown

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

    def _show(self, text: str, *, hidden: bool = False) -> str:
        if self.stopped:
            return ""
        shown, self.stopped = self._stops.push(text, hidden=hidden)
        self._pieces.append(shown)
        return shown
