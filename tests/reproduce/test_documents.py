"""The documents that the reader learns from: what they say is where they say it."""

import itertools
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from reproduce.documents import kinds
from reproduce.documents.answers import Speller
from reproduce.documents.fonts import font, letter_width
from reproduce.documents.kinds import AS_JSON, DRILLS, KINDS, draw, eased
from reproduce.documents.lora import add_lora, exported, restore
from reproduce.documents.pages import LETTER, PITCH
from reproduce.documents.prepare import prepared
from reproduce.documents.score import character_errors
from reproduce.documents.targets import spread, targets
from reproduce.documents.teach import example, strips
from reproduce.documents.texts import is_held_out, open_texts
from reproduce.documents.train import ROW, rows
from trimode.model import build_runner
from trimode.testing import tiny_config, tiny_tensors
from trimode.training.data import Document
from trimode.vision import VisionConfig, process

FACES = ("DejaVuSans", "DejaVuSansMono")
CONFIG = VisionConfig(text_size=64, patch_size=5, hidden_size=32, num_heads=2, num_layers=1)
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


class Letters:
    """A tokenizer with a token for each letter, for two, and for a space before them."""

    def __init__(self):
        self.texts = []

    def encode(self, text):
        whole = 0 < len(text.strip()) == len(text) <= 2 or (len(text) == 2 and text[1].isalpha())
        return [self._id(part) for part in ([text] if whole else text)]

    def _id(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def read(found, image, tokenizer):
    """The lines of a page as its squares have them."""
    rows = found.tokens.view(image.rows, image.columns), found.filled.view(image.rows, -1)
    lines = [
        tokenizer.decode(tokens[filled].tolist()) for tokens, filled in zip(*rows, strict=True)
    ]
    return [line for line in lines if line]


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


def test_letters_are_as_wide_as_their_squares(data):
    """Or nearly: more letters than squares would not stand where they are seen."""
    texts = open_texts(data, 3, held_out=False)
    assert 14 * letter_width("DejaVuSans") < 0.9 * LETTER
    steps = []
    for _ in range(20):
        page = draw(texts, "words", ("DejaVuSans",))
        steps += [
            page.centres[i + 1, 0] - page.centres[i, 0]
            for i, pair in enumerate(pairwise(page.text))
            if "".join(pair).isalnum()
        ]
    assert 0.95 * LETTER < np.mean(steps) < 1.2 * LETTER


def scanned(size, pitch, angle, darkest):
    """Three lines of print with a rule and a gap, turned, and with a shadow at one side."""
    drawn, lines = font("DejaVuSans", size), ["Invoice No. 20931", "Rope 12 mm", "Total due 58"]
    image = Image.new("L", (round(drawn.getlength(lines[0])) + 2 * size, pitch * 6), 250)
    pencil = ImageDraw.Draw(image)
    for y, line in zip((1, 2, 4), lines, strict=True):
        pencil.text((size, y * pitch), line, font=drawn, fill=20)
    pencil.line((size, 3.6 * pitch, image.width - size, 3.6 * pitch), fill=60, width=3)
    image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=250)
    shadow = np.linspace(1, darkest, image.width)
    return Image.fromarray((np.asarray(image) * shadow).astype(np.uint8)), lines, drawn


@pytest.mark.parametrize(
    ("size", "pitch", "angle", "darkest"), [(16, 22, 0, 1), (40, 60, 1.3, 0.6), (90, 110, -2, 0.8)]
)
def test_a_scan_is_brought_to_lines_and_letters_of_one_size(size, pitch, angle, darkest):
    scan, lines, drawn = scanned(size, pitch, angle, darkest)
    page = prepared(scan)
    assert page.height == len(lines) * PITCH
    dark = np.asarray(page.convert("L"), dtype=float) < 150
    longest = max(map(drawn.getlength, lines))
    for row, line in zip(np.split(dark, len(lines)), lines, strict=True):
        down, across = np.flatnonzero(row.any(1)), np.flatnonzero(row.any(0))
        assert down[0] > 0
        assert down[-1] < PITCH - 1
        assert abs(row.sum(1) @ np.arange(PITCH) / row.sum() - PITCH / 2) < 2.5
        width = across[-1] - across[0]
        assert abs(width / len(line) / LETTER - 1) < 0.25
        whole = np.flatnonzero(dark[:PITCH].any(0))
        assert abs(width / (whole[-1] - whole[0]) - drawn.getlength(line) / longest) < 0.05


def test_wide_gaps_of_a_scan_are_cut():
    drawn = font("DejaVuSans", 32)
    image = Image.new("L", (2400, 200), 255)
    pencil = ImageDraw.Draw(image)
    for x, y, text in ((40, 20, "Rope 12 mm"), (2200, 20, "40.00"), (40, 100, "Shackle")):
        pencil.text((x, y), text, font=drawn, fill=0)
    page = prepared(image)
    assert page.size == (440, 2 * PITCH)
    dark = np.asarray(page.convert("L")) < 150
    letters = [
        np.flatnonzero(np.diff(row.any(0).astype(int)) > 0).size for row in np.split(dark, 2)
    ]
    assert letters[0] >= 8 + 4
    assert letters[1] >= 6


def test_a_scan_without_print_is_refused():
    with pytest.raises(ValueError, match="no print"):
        prepared(Image.new("RGB", (300, 200), "white"))


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


@pytest.mark.parametrize("kind", [1.0, 0.5, 0.0, *KINDS])
def test_squares_spell_the_text_in_reading_order(kind, data, monkeypatch):
    monkeypatch.setattr(kinds, "TRAINED", FACES)
    monkeypatch.setattr(kinds, "EQUAL_WIDTHS", FACES[1:])
    texts, letters = open_texts(data, 7, held_out=False), Letters()
    for _ in range(5):
        page = eased(texts, kind) if isinstance(kind, float) else draw(texts, kind, FACES)
        image = process(page.image, CONFIG)
        assert (image.height, image.width) == page.image.size[::-1]  # nothing is scaled
        found = targets(page, image, CONFIG, letters)
        assert found.tokens.shape == found.filled.shape == (image.tokens,)
        wanted = [" ".join(line.split()) for line in page.text.split("\n")]
        assert [line.strip() for line in read(found, image, letters)] == wanted
        lower = found.filled.view(image.rows, image.columns)[1 :: PITCH // CONFIG.merged_patch]
        assert not lower.any()


def test_narrow_letters_share_a_square_and_digits_move_aside():
    letters = Letters()
    text = "ill 123 b\nc"
    places = [3, 6, 9, 14, 24, 26, 28, 33, 45, 50, 5]
    page = SimpleNamespace(
        text=text,
        centres=np.array([(x, 30 if i == 10 else 11) for i, x in enumerate(places)], dtype=float),
        angle=0.0,
        image=SimpleNamespace(width=100, height=40),
    )
    image = SimpleNamespace(width=100, height=40, rows=4, columns=10, tokens=40)
    found = targets(page, image, CONFIG, letters)
    rows = [[letters.texts[i] for i in row] for row in found.tokens.view(4, 10).tolist()]
    blank = ["\n"] * 10
    first = ["il", "l", " ", "12", "3", " b", "\n", "\n", "\n", "\n"]
    assert rows == [first, blank, ["c", *blank[1:]], blank]
    assert found.filled.view(4, 10)[0].tolist() == [True] * 6 + [False] * 4


@pytest.mark.parametrize(
    ("second", "squares"), [("b", ["a", " ", " ", "b"]), ("5", ["a", " ", " ", "5"])]
)
def test_a_space_stands_at_the_left_of_its_word(second, squares):
    letters = Letters()
    page = SimpleNamespace(
        text=f"a {second}",
        centres=np.array([(5, 11), (14, 11), (35, 11)], dtype=float),
        image=SimpleNamespace(width=40, height=20),
    )
    image = SimpleNamespace(width=40, height=20, rows=2, columns=4, tokens=8)
    found = targets(page, image, CONFIG, letters)
    assert [letters.texts[i] for i in found.tokens[:4]] == squares
    assert found.filled[:4].tolist() == [True, False, True, True]


def test_an_answer_has_the_letters_for_which_a_line_has_no_squares():
    letters = Letters()
    places = [4, 6, 8, 14, 17, 19, 20, 5]
    page = SimpleNamespace(
        text="a-b-c-\nd",
        image=SimpleNamespace(width=20, height=40),
        centres=np.array([(x, 31 if i == 7 else 11) for i, x in enumerate(places)], dtype=float),
    )
    image = SimpleNamespace(width=20, height=40, rows=4, columns=2, tokens=8)
    speller = Speller(page, targets(page, image, CONFIG, letters), 2, letters)
    assert letters.decode(speller.answer(page.text)) == page.text


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_in_the_tokens_of_the_squares(kind, data):
    texts, letters = open_texts(data, 9, held_out=False), Letters()
    for _ in range(4):
        page = draw(texts, kind, FACES)
        image = process(page.image, CONFIG)
        seen = targets(page, image, CONFIG, letters)
        speller = Speller(page, seen, image.columns, letters)
        said = speller.answer(page.text)
        assert letters.decode(said) == page.text
        squares = seen.tokens[seen.filled].tolist()
        line_break = letters.encode("\n")[0]
        if kind != "code":  # its lines may be indented
            assert [token for token in said if token != line_break] == squares
        for _, answer in page.questions:
            assert letters.decode(speller.answer(answer)) == answer


def test_a_strip_has_the_targets_of_its_part_of_the_page(data):
    texts, letters = open_texts(data, 10, held_out=False), Letters()
    page = draw(texts, "invoice", FACES)
    _, whole = example(page, letters)
    parts = list(strips(page, letters, 2))
    assert len(parts) > 1
    assert torch.equal(torch.cat([seen.tokens for _, seen in parts]), whole.tokens)
    for image, seen in parts:
        assert seen.tokens.shape == seen.filled.shape == (image.tokens,)


def test_a_lora_is_exported_and_restored():
    config = tiny_config("llama")
    weights = tiny_tensors(config)
    model, other = (
        build_runner(config, weights.__getitem__, dtype="fp32", plain=True).transformer
        for _ in range(2)
    )
    for parameter in add_lora(model, 3):
        torch.nn.init.normal_(parameter)
    saved = exported(model)
    assert saved.scope == "merged"
    again = add_lora(other, 3)
    restore(other, saved)
    assert any(bool(parameter.any()) for parameter in again)
    for name, (down, up) in exported(other).targets.items():
        assert torch.equal(down, saved.targets[name][0])
        assert torch.equal(up, saved.targets[name][1])


@given(st.integers(0, 99))
def test_rows_are_full_and_hold_whole_documents(seed):
    rng = random.Random(seed)

    def some():
        for number in itertools.count(1):
            length = rng.randrange(1, ROW + 200)
            yield Document(np.full(length, number, np.int32), np.ones(length, bool))

    seen, used = set(), 0
    for batch in itertools.islice(rows(some()), 20):
        tokens = batch.tokens[0][batch.documents[0] >= 0].tolist()
        numbers = dict.fromkeys(tokens)
        assert seen.isdisjoint(numbers)
        seen |= set(numbers)
        used += len(tokens)
    assert used > 0.7 * 20 * ROW


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


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_character_errors_are_a_distance(a, b):
    found = character_errors(a, b)
    assert found == character_errors(b, a)
    assert (found == 0) == (a == b)
    assert abs(len(a) - len(b)) <= found <= max(len(a), len(b))


def test_character_errors_of_known_texts():
    assert character_errors("kitten", "sitting") == 3
    assert character_errors("", "abc") == 3


def test_pages_are_the_same_in_every_process(data):
    """Faker's choice among several countries, and some of its lists, follow Python's hash seed."""
    code = """
import hashlib, sys
from pathlib import Path
from reproduce.documents.kinds import KINDS, draw
from reproduce.documents.texts import open_texts
texts = open_texts(Path(sys.argv[1]), 1, held_out=False)
pages = [draw(texts, kind, ("DejaVuSans", "DejaVuSansMono")) for kind in KINDS for _ in range(8)]
print(hashlib.sha256(b"".join(page.image.tobytes() for page in pages)).hexdigest())
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(data)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
