"""Errors a user can cause. Each says which field, what was found and what is allowed."""

from typing import Self


class TrimodeError(Exception):
    """A failure while working (a download, a full disk): exit code 1."""

    exit_code = 1


class FetchError(TrimodeError):
    """A model could not be fetched, or the fetched file is not the one that was asked for."""


class GrammarError(TrimodeError):
    """An answer could not be held to its grammar, so it was ended."""


class NotFiniteError(TrimodeError):
    """A model computed infinity or not a number, from which no token can be chosen."""


class InputError(TrimodeError, ValueError):
    """Bad usage or bad input, found before any work starts: exit code 2.

    Args:
        field: the option, file, tensor or config field at fault.
        found: what was given.
        allowed: what would have been accepted, or what to do.
    """

    exit_code = 2

    def __init__(self, field: str, found: str, allowed: str) -> None:
        super().__init__(f"{field}: {found}; {allowed}")
        self.field = field
        self.found = found
        self.allowed = allowed


class ContextLengthError(InputError):
    """A prompt is longer than the model's context."""

    @classmethod
    def of(cls, found: str, limit: int) -> Self:
        """The error of a prompt, in the words that clients look for."""
        allowed = f"this model's maximum context length is {limit} tokens, the answer included"
        return cls("prompt", found, allowed)


class CheckpointError(InputError):
    """A checkpoint file is missing or damaged, or this program does not read its form."""
