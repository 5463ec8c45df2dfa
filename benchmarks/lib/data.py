"""The public data sets that benchmarks and recipes read: where each comes from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a data set."""

    name: str
    origin: str
    """Its path in the repository that publishes it."""
    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """A public repository at one commit, and what is taken from it."""

    repository: str
    commit: str
    licence: str
    files: tuple[DataFile, ...]

    def url(self, file: DataFile) -> str:
        """Where a file is published."""
        base = "https://raw.githubusercontent.com"
        return f"{base}/{self.repository}/{self.commit}/{file.origin}"


SOURCES = {
    "gsm8k": Source(
        "openai/grade-school-math",
        "3101c7d5072418e28b9008a6636bde82a006892c",
        "MIT",
        (
            DataFile(
                "train.jsonl",
                "grade_school_math/data/train.jsonl",
                4_166_206,
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            ),
            DataFile(
                "test.jsonl",
                "grade_school_math/data/test.jsonl",
                749_738,
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
        ),
    ),
    "humaneval": Source(
        "openai/human-eval",
        "6d43fb980f9fee3c892a914eda09951f772ad10d",
        "MIT",
        (
            DataFile(
                "HumanEval.jsonl.gz",
                "data/HumanEval.jsonl.gz",
                44_877,
                "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            ),
        ),
    ),
    "mbpp": Source(
        "deepseek-ai/DeepSeek-Coder",
        "2f9fd85927c669dae3c0fbb2d607274023af243e",
        "CC-BY-4.0",
        (
            DataFile(
                "mbpp.jsonl",
                "Evaluation/MBPP/data/mbpp.jsonl",
                563_743,
                "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
            ),
        ),
    ),
    "ifeval": Source(
        "josejg/instruction_following_eval",
        "0c495b2f95155e8b10acb919ae283bfb4d5be6e2",
        "Apache-2.0",
        (
            DataFile(
                "input_data.jsonl",
                "instruction_following_eval/data/input_data.jsonl",
                207_111,
                "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
            ),
        ),
    ),
    "self_instruct": Source(
        "yizhongw/self-instruct",
        "0b26ccaa415992100fa32df62d41b994cf928e23",
        "Apache-2.0",
        (
            DataFile(
                "seed_tasks.jsonl",
                "data/seed_tasks.jsonl",
                110_934,
                "7779004fa198fdf27cf70a159363879d8a26c53329e11b436af17b3941875f48",
            ),
            DataFile(
                "user_oriented_instructions.jsonl",
                "human_eval/user_oriented_instructions.jsonl",
                170_193,
                "81d60a117db495cecedecd9193504fd07c5b5a42f6699ef6b0f9da10fc22f42e",
            ),
        ),
    ),
    "flan_cot": Source(
        "google-research/FLAN",
        "e9e4ec6e2701182c7a91af176f705310da541277",
        "Apache-2.0; each task has its own",
        (
            DataFile(
                "aqua_train.tsv",
                "flan/v2/cot_data/aqua_train.tsv",
                869_494,
                "2e43bd7900e739a78d7b7b7444e19bae4259399327eb76b78a30f4e4fb7dfdda",
            ),
            DataFile(
                "creak_train.tsv",
                "flan/v2/cot_data/creak_train.tsv",
                1_506_933,
                "ee6b9a3d88fbc1bdf7cd751c7f266edfc4c15e475560408ffb79490b2fe7bdea",
            ),
            DataFile(
                "ecqa_train.tsv",
                "flan/v2/cot_data/ecqa_train.tsv",
                1_960_741,
                "cf6967d587851f25a834cdd16c73f17a4da08bae5b8821922a64b3107160e01c",
            ),
            DataFile(
                "qasc_train.tsv",
                "flan/v2/cot_data/qasc_train.tsv",
                418_177,
                "566ba8c3945b5fe8e3125ca4919c15f36e1067b881c251e75d071ad38c861b9a",
            ),
            DataFile(
                "sensemaking_train.tsv",
                "flan/v2/cot_data/sensemaking_train.tsv",
                1_523_556,
                "c978b40455ed62b1755956f25327c7cec6f9d4954f7185e6fb14b03db74c65af",
            ),
            DataFile(
                "strategyqa_train.tsv",
                "flan/v2/cot_data/strategyqa_train.tsv",
                492_554,
                "0e56b9f46b4d1569e45bf4c7f10d7854be81ae62303098fbd03d3e0bf912201f",
            ),
        ),
    ),
}
"""Each data set by the name of its folder."""


def is_right(path: Path, file: DataFile) -> bool:
    """Whether a file is there, and is the one that the results were made with."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def data_file(folder: Path, name: str) -> Path:
    """A file of a data set.

    Args:
        folder: that holds a folder for each data set.
        name: its path in there, such as `gsm8k/test.jsonl`.

    Raises:
        SystemExit: it is missing; says which command fetches it.
    """
    path = folder / name
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing; `python benchmarks/fetch_data.py {folder}` fetches it"
        )
    return path
