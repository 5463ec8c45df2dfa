"""Fetch the public data sets that benchmarks and recipes read, 13 MB in all.

    python benchmarks/fetch_data.py data

Each file comes from the repository that publishes it, at a fixed commit, and is checked by size and
SHA-256. A file that is there and right is not fetched again.
"""

import argparse
import http.client
import urllib.request
from pathlib import Path

from benchmarks.lib.data import SOURCES, is_right

TIMEOUT = 60
"""Seconds without an answer."""


def fetch(folder: Path) -> None:
    """Bring every file to its place.

    Raises:
        SystemExit: a file cannot be fetched, or is another one than the results were made with.
    """
    for name, source in SOURCES.items():
        print(f"{name}: github.com/{source.repository}, {source.licence}")
        for file in source.files:
            path = folder / name / file.name
            if is_right(path, file):
                continue
            url = source.url(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")  # an interrupted file must not look whole
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                    part.write_bytes(answer.read())
            except (OSError, http.client.HTTPException) as error:
                raise SystemExit(f"{url} cannot be fetched: {error}") from None
            if not is_right(part, file):
                part.unlink()
                raise SystemExit(f"{url} is not the file that the results were made with")
            part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    fetch(parser.parse_args().folder)


if __name__ == "__main__":
    main()
