"""What plots share."""

from typing import Any


def rate_bars(axis: Any, rows: list[dict[str, Any]], title: str) -> None:
    """Tokens a second of engines and modes as bars, the first row above; ours are blue."""
    rows = rows[::-1]
    names = [f"{row['engine'].replace('-', ' ', 1)} {row['mode']}" for row in rows]
    colours = ["tab:blue" if row["engine"].startswith("trimode") else "0.6" for row in rows]
    axis.barh(names, [row["tokens_per_second"] for row in rows], color=colours)
    axis.bar_label(axis.containers[0], fmt="%.0f", padding=2, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.set(title=title, xlabel="tokens / s")
    axis.margins(x=0.15)  # room for the labels at the ends of bars
