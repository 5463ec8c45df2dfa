"""The documents that the reader learns from: what they say is where they say it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproduce.documents.kinds import AS_JSON, DRILLS, KINDS, draw, eased
from reproduce.documents.score import character_errors
from reproduce.documents.targets import NONE, spread, targets
from reproduce.documents.texts import is_held_out, open_texts
from trimode.vision import VisionConfig, process

FACES = ("DejaVuSans", "DejaVuSansMono")
CONFIG = VisionConfig(text_size=64, patch_size=10, hidden_size=32, num_heads=2, num_layers=1)
SENTENCES = (
    "The ferry to the island leaves at noon and comes back before dark.",
    "A good map says what it leaves out.",
    "Three of the nine bridges were closed for repair last winter.",
    "Nobody asked the baker why the bread was late.",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of texts in the layout of the public sets."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("flan_cot", "gsm8k", "mbpp", "self_instruct"):
        (folder / name).mkdir()
    lines = [
        f"{text} {n}\tyes\t{text} Number {n} of many." for n in range(40) for text in SENTENCES
    ]
    (folder / "flan_cot/a.tsv").write_text("\n".join(lines) + "\n")
    rows = [{"question": f"How many are {n} and {n}?", "answer": f"They are <<2*{n}>>{2 * n}."}
            for n in range(40)]  # fmt: skip
    (folder / "gsm8k/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = [{"output": f"It is sorted {n} times."} for n in range(20)]
    rows = [{"instruction": "Sort a list.", "instances": [answer]} for answer in answers]
    (folder / "self_instruct/seed_tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code = [f"def f{n}(a, b):\n    if a > {n}:\n        return b\n    return a" for n in range(60)]
    rows = [{"task_id": 500 + n, "code": text} for n, text in enumerate(code)]
    (folder / "mbpp/mbpp.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def letters():
    """A tokenizer with a token for each character."""
    return SimpleNamespace(
        encode=lambda text: [ord(c) for c in text], decode=lambda ids: "".join(map(chr, ids))
    )


@pytest.mark.parametrize("kind", [*KINDS, *DRILLS])
def test_each_character_of_a_page_is_placed_where_it_is_drawn(kind, data):
    texts = open_texts(data, 3, held_out=False)
    for _ in range(4):
        page = draw(texts, kind, FACES)
        assert len(page.centres) == len(page.text)
        height, width = page.image.height, page.image.width
        assert (page.centres[:, 1] > 0).all()
        assert (page.centres[:, 1] < height).all()
        pixels = np.asarray(page.image.convert("L"), dtype=float)
        paper = np.median(pixels)
        for character, (x, y) in zip(page.text, page.centres, strict=True):
            if character.isalnum() and abs(page.angle) < 0.5 and 4 < x < width - 4:
                around = pixels[int(y) - 9 : int(y) + 9, int(x) - 4 : int(x) + 5]
                assert around.min() < paper - 25, (character, x, y)


def test_a_question_asks_for_what_the_page_says(data):
    texts = open_texts(data, 4, held_out=False)
    for kind in ("receipt", "invoice", "form", "table"):
        page = draw(texts, kind, FACES)
        assert page.questions
        for question, answer in page.questions:
            if question == AS_JSON:
                assert json.loads(answer) == page.fields
            else:
                assert answer in page.text


def test_held_out_documents_share_no_sentence_with_those_of_training(data):
    ours, theirs = (open_texts(data, 5, held_out=held_out) for held_out in (False, True))
    assert theirs.sentences
    assert theirs.code
    assert not set(ours.sentences) & set(theirs.sentences)
    assert not set(ours.code) & set(theirs.code)
    for make in ("name", "thing", "company", "email"):
        assert not is_held_out(getattr(ours, make)())
        assert is_held_out(getattr(theirs, make)())


def test_the_same_seed_draws_the_same_page(data):
    one, two = (draw(open_texts(data, 6, held_out=True), "invoice", FACES) for _ in range(2))
    assert one.text == two.text
    assert one.image.tobytes() == two.image.tobytes()


@pytest.mark.parametrize("ease", [1.0, 0.5, 0.0])
def test_squares_hold_the_text_in_reading_order(ease, data, letters):
    texts = open_texts(data, 7, held_out=False)
    for _ in range(5):
        page = eased(texts, ease)
        image = process(page.image, CONFIG)
        found = targets(page, image, CONFIG, letters)
        assert found.tokens.shape == found.begins.shape == (image.tokens,)
        assert found.glyphs.shape == (4 * image.tokens, 2)
        read = letters.decode(found.tokens[found.begins].tolist())
        # With two letters in a square, a line that fills the page loses its end.
        if ease == 1:
            wanted = "".join(f"{line}\n"[: image.columns] for line in page.text.split("\n"))
            assert read == wanted[: len(read)]
            assert len(wanted) - len(read) <= 1


def test_a_word_is_repeated_where_it_stands_and_gaps_are_spaces(letters):
    words = SimpleNamespace(
        encode=lambda text: [ord(c) for c in text] if text in " \n" else [1, 2, 10, 3],
        decode=lambda ids: {1: "wide", 2: " b", 10: "\n", 3: "c"}[ids[0]],
    )
    places = [10, 25, 45, 55, 57, 90, 95, 10]  # of the characters of "wide b\nc"
    heights = [10] * 7 + [30]
    page = SimpleNamespace(
        text="wide b\nc",
        centres=np.array(list(zip(places, heights, strict=True)), dtype=float),
        angle=0.0,
        image=SimpleNamespace(width=120, height=60),
    )
    image = SimpleNamespace(width=120, height=60, rows=3, columns=6, tokens=18)
    found = targets(page, image, CONFIG, words)
    space, line_break = ord(" "), ord("\n")
    assert found.tokens.view(3, 6).tolist() == [
        [1, 1, 1, space, 2, line_break],
        [3, line_break, line_break, line_break, line_break, line_break],
        [line_break] * 6,
    ]
    assert found.begins.view(3, 6).int().tolist() == [[1, 0, 0, 0, 1, 1], [1] + [0] * 5, [0] * 6]


@given(st.lists(st.integers(0, 9), max_size=14).map(sorted))
def test_tokens_are_spread_in_their_order(wanted):
    found = spread(wanted, 10)
    assert len(found) == min(len(wanted), 10)
    assert found == sorted(set(found))
    assert all(0 <= place < 10 for place in found)
    if len(set(wanted)) == len(wanted):
        assert found == wanted


def test_tokens_that_want_the_same_square_move_to_the_right_and_then_to_the_left():
    assert spread([2, 2, 2, 7], 10) == [2, 3, 4, 7]
    assert spread([8, 8, 9], 10) == [7, 8, 9]


def test_a_glyph_is_taught_where_it_is_seen_on_a_turned_page(data, letters):
    texts = open_texts(data, 8, held_out=False)
    page = next(p for p in (draw(texts, "prose", FACES) for _ in range(200)) if abs(p.angle) > 1)
    image = process(page.image, CONFIG)
    found = targets(page, image, CONFIG, letters)
    pixels = np.asarray(page.image.convert("L"), dtype=float)
    dark = pixels < np.median(pixels) - 40
    scale = page.image.width / image.width
    side = CONFIG.patch_size * scale
    patches = [i for i, row in enumerate(found.glyphs) if (row != NONE).any()]
    columns = image.width // CONFIG.patch_size
    inked = [dark[int(i // columns * side) : int((i // columns + 1) * side) + 1,
                  int(i % columns * side) : int((i % columns + 1) * side) + 1].any()
             for i in patches]  # fmt: skip
    assert np.mean(inked) > 0.95


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_character_errors_are_a_distance(a, b):
    found = character_errors(a, b)
    assert found == character_errors(b, a)
    assert (found == 0) == (a == b)
    assert abs(len(a) - len(b)) <= found <= max(len(a), len(b))


def test_character_errors_of_known_texts():
    assert character_errors("kitten", "sitting") == 3
    assert character_errors("", "abc") == 3
