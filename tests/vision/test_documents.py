"""The built-in reader of documents on a page of its kind."""

from pathlib import Path

import pytest

from reproduce.documents.score import character_errors
from trimode import generate, load

pytestmark = pytest.mark.real

PAGE = Path(__file__).parents[2] / "docs/pictures/document.png"
TEXT = """Howard Inc
Invoice: A-7406283
Issued: April 18, 1999
Customer: Dennis Paul
5 x sd card 50 g 34.25
Tax 6.85
Total 41.10"""


@pytest.fixture(scope="module")
def reader(real_cache):
    return load("smollm2-documents", progress=False)


def read(reader, mode):
    return generate(reader, "Transcribe the document.", images=[PAGE], mode=mode, max_tokens=150)


@pytest.mark.slow
def test_it_reads_a_page_and_drafts_change_nothing(reader):
    answer = read(reader, "ar")
    assert character_errors(answer.text.strip(), TEXT) <= 0.1 * len(TEXT)
    for mode in ("linear", "quadratic", "auto"):
        assert read(reader, mode).token_ids == answer.token_ids


def test_diffusion_reads_it_in_fewer_passes(reader):
    answer = read(reader, "diffusion")
    assert character_errors(answer.text.strip(), TEXT) <= 0.15 * len(TEXT)
    assert answer.stats.tokens_per_forward > 2
