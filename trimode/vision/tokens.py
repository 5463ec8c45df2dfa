"""The tokens that stand for a picture in a prompt."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Token ids by which a model's prompts hold pictures."""

    image: int
    """One for each square of patches; the picture's embeddings stand in its place."""
    row_break: int | None = None
    """After each row of them but the last; None if rows follow each other without a sign."""
    end: int | None = None
    """After the last row; None if there is no sign."""

    def layout(self, rows: int, columns: int) -> list[int]:
        """The tokens of a picture of so many rows and columns of squares."""
        row = [self.image] * columns
        between = [] if self.row_break is None else [self.row_break]
        end = [] if self.end is None else [self.end]
        return [*(rows - 1) * (row + between), *row, *end]
