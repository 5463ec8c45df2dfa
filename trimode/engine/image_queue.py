"""Sequences whose pictures are still to be read, and what pictures became.

The tower runs in slices between passes, in the engine's thread. A thread of its own would fight
with the passes for the same cores.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from trimode.engine.pictures import PlacedImage
from trimode.engine.sequence import Sequence
from trimode.errors import InputError
from trimode.vision import ProcessedImage, Vision


@dataclass(slots=True, eq=False)
class _Made:
    """What a picture became, and how many places of sequences use it."""

    embeddings: Tensor
    users: int = 0


class ImageQueue:
    """Reads the pictures of waiting sequences, first come first served, within a limit of bytes.

    What a picture became is kept until the memory is needed, so a conversation's next turn need not
    read it again.
    """

    def __init__(self, vision: Vision | None, most_bytes: int) -> None:
        """`most_bytes`: of all embeddings, those kept included."""
        self.waiting: deque[Sequence] = deque()
        self._vision, self._most_bytes = vision, most_bytes
        self._made: OrderedDict[int, _Made] = OrderedDict()
        """By the picture's key, the one used longest ago first."""
        self._work: Generator[None, None, Tensor] | None = None
        """The picture that is being read: the first one missing of the first sequence."""

    @property
    def bytes_held(self) -> int:
        """Of all embeddings."""
        return sum(made.embeddings.nbytes for made in self._made.values())

    def check(self, images: Seq[PlacedImage]) -> None:
        """Raise InputError if the pictures of a request alone are above the limit."""
        needed = sum({p.image.key: self._bytes(p.image) for p in images}.values())
        if needed > self._most_bytes:
            found = f"pictures whose embeddings take {needed / 2**20:.0f} MiB"
            raise InputError("images", found, f"at most {self._most_bytes / 2**20:.0f} MiB")

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence with pictures."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended; what its pictures became may be freed."""
        if sequence in self.waiting:
            if sequence is self.waiting[0]:
                self._work = None
            self.waiting.remove(sequence)
        for placed in sequence.images:
            if placed.embeddings is not None:
                placed.embeddings = None
                self._made[placed.image.key].users -= 1

    def run(self, seconds: float) -> tuple[list[Sequence], list[tuple[Sequence, Exception]]]:
        """Read pictures for about so long, at least one slice.

        Returns:
            Sequences whose pictures are all read, and those whose reading failed. They are no
            longer in the queue.
        """
        until = time.monotonic() + seconds
        ready: list[Sequence] = []
        failed: list[tuple[Sequence, Exception]] = []
        while self.waiting:
            sequence = self.waiting[0]
            try:
                missing = self._take(sequence)
                if missing is None:
                    ready.append(self.waiting.popleft())
                    continue
                if not self._advance(missing):
                    break  # no room until a sequence ends
            except Exception as error:  # noqa: BLE001 - whatever it is, only this one has it
                self._work = None
                self.waiting.popleft()
                failed.append((sequence, error))
            if time.monotonic() >= until:
                break
        return ready, failed

    def _take(self, sequence: Sequence) -> ProcessedImage | None:
        """Give a sequence the embeddings that there are; returns the first picture missing."""
        for placed in sequence.images:
            if placed.embeddings is not None:
                continue
            made = self._made.get(placed.image.key)
            if made is None:
                return placed.image
            self._made.move_to_end(placed.image.key)
            made.users += 1
            placed.embeddings = made.embeddings
        return None

    def _advance(self, image: ProcessedImage) -> bool:
        """Run one slice of a picture; False if there is no room for it."""
        if self._work is None:
            if not self._make_room(self._bytes(image)):
                return False
            assert self._vision is not None
            self._work = self._vision.encode(image)
        try:
            next(self._work)
        except StopIteration as done:
            self._work = None
            self._made[image.key] = _Made(done.value)
        return True

    def _make_room(self, needed: int) -> bool:
        """Free what nobody uses, the oldest first, until so many bytes fit."""
        unused = [key for key, made in self._made.items() if not made.users]
        free = self._most_bytes - self.bytes_held
        for key in unused:
            if free >= needed:
                break
            free += self._made.pop(key).embeddings.nbytes
        return free >= needed

    def _bytes(self, image: ProcessedImage) -> int:
        assert self._vision is not None
        weight = self._vision.model.multi_modal_projector.linear_2.weight
        return image.tokens * len(weight) * weight.itemsize
