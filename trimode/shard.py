"""A share of a list that one of several processes works on, such as one task of a SLURM array."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from trimode.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Shard:
    """Items `index`, `index + count`, `index + 2 count`, ... of a list.

    The shards of a list hold each item once, and one after the other by turns they are the list.
    """

    index: int
    """From 0."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `I/N`.

        Raises:
            InputError: it is something else, or there is no such shard.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or int(found[1]) >= int(found[2]):
            raise InputError("shard", repr(text), "must be I/N with I from 0 to N - 1, such as 0/4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Its items, in their order."""
        return items[self.index :: self.count]
