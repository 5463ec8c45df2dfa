"""Pictures on the command line: `--image`, `/image`, and the column `images`."""

import base64
import json

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.reference.pictures import picture
from trimode.checkpoints import load
from trimode.engine import generate
from trimode.testing import write_tiny_vision_checkpoint

FEW = ("--max-tokens", 8)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeing") / "model"
    return str(write_tiny_vision_checkpoint(path, eos_token_ids=()))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scans")
    for i in range(3):
        picture(i).save(directory / f"{i}.png")
    (directory / "drawing.svg").write_text("<svg/>")
    return directory


@pytest.fixture(scope="module")
def expected(seeing):
    model = load(seeing)
    return lambda *images, text="What?": generate(model, text, images=images, max_tokens=8)


def test_generate_answers_about_pictures(cli, seeing, scans, expected):
    one, two = scans / "0.png", scans / "1.png"
    found = cli("generate", "-m", seeing, "--image", one, "What?", "--json", *FEW).json()
    assert (found["text"], found["prompt_tokens"]) == (
        expected(one).text,
        expected(one).prompt_tokens,
    )
    both = cli("generate", "-m", seeing, "--image", one, "--image", two, "What?", "--json", *FEW)
    assert both.json()["text"] == expected(one, two).text
    for mode in ("linear", "quadratic", "auto"):
        words = ("generate", "-m", seeing, "--image", one, "What?", "--mode", mode, "--json", *FEW)
        assert cli(*words).json()["text"] == expected(one).text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", "missing.png is not a file"),
        ("drawing.svg", "an SVG drawing"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(name, words, cli, seeing, scans):
    found = cli("generate", "-m", seeing, "--image", scans / name, "What?", *FEW)
    assert_one_line_error(found, 2, words)


def test_a_text_model_reads_no_pictures(cli, nld, scans):
    found = cli("generate", "-m", nld, "--image", scans / "0.png", "What?", *FEW)
    assert_one_line_error(found, 2, "reads none: it has no vision part")


def test_rows_name_their_pictures(cli, seeing, scans, expected):
    url = "data:image/png;base64," + base64.b64encode((scans / "2.png").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    place = [{"type": "text", "text": "What?"}, {"type": "image"}]
    rows = [
        {"prompt": "What?", "images": ["0.png"]},
        {"prompt": "What?", "images": ["0.png", url]},
        {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]},
        {"messages": [{"role": "user", "content": place}], "images": ["1.png"]},
        {"prompt": "What?"},
    ]
    (scans / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (scans / "rows.csv").write_text('prompt,images\nWhat?,0.png\nWhat?,"[""0.png"", ""2.png""]"\n')
    found = cli("generate", "-m", seeing, "--input", scans / "rows.jsonl", *FEW)
    texts = [row["text"] for row in found.rows()]
    one, two, three = (scans / f"{i}.png" for i in range(3))
    assert texts[0] == expected(one).text
    assert texts[1] == expected(one, three).text
    assert texts[2] == expected(three).text
    assert texts[4] == expected().text
    assert len(set(texts)) == 5
    table = cli("generate", "-m", seeing, "--input", scans / "rows.csv", *FEW)
    assert [row["text"] for row in table.rows()] == texts[:2]
    assert two.exists()


def test_rows_are_checked_before_the_model_is_loaded(cli, scans, tmp_path):
    for row, words in [
        ({"prompt": "a", "images": ["none.png"]}, "line 1: images[0]: "),
        ({"prompt": "a", "images": [7]}, "line 1: images[0]: 7; must be the path"),
    ]:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        found = cli("generate", "-m", "no/such/model", "--input", tmp_path / "rows.jsonl")
        assert_one_line_error(found, 2, words)
    found = cli("generate", "--input", tmp_path / "rows.jsonl", "--image", scans / "0.png")
    assert_one_line_error(found, 2, "goes with one prompt; rows have `images`")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "a", "images": [str(scans / "0.png")]})
    )
    found = cli("bench", tmp_path / "rows.jsonl")
    assert_one_line_error(found, 2, "bench measures texts alone")


def test_compare_shows_a_picture_to_every_mode(cli, seeing, scans, expected):
    wanted = expected(scans / "0.png")
    found = cli("compare", "-m", seeing, "--image", scans / "0.png", "What?", "--json", *FEW).json()
    texts = {row["mode"]: row["text"] for row in found["results"]}
    assert {"ar", "linear", "quadratic", "diffusion", "auto"} == set(texts)
    assert all(texts[mode] == wanted.text for mode in ("ar", "linear", "quadratic", "auto"))
    gone = cli("compare", "-m", seeing, "--image", scans / "none.png", "What?")
    assert_one_line_error(gone, 2, "none.png")


def test_a_file_that_changes_while_it_waits_is_an_error(seeing, scans, tmp_path):
    from trimode.config import GenerationOptions
    from trimode.engine import Engine, read_prompt

    path = tmp_path / "a.png"
    picture(0).save(path)
    model = load(seeing, dtype="fp32")
    engine, read = Engine(model), read_prompt(model, "What?", images=[path])
    sequence = engine.add(read.tokens, GenerationOptions(max_tokens=2), images=read.images)
    picture(1).save(path)
    while engine.busy:
        engine.step()
    assert "has changed" in str(sequence.error)


def test_chat_shows_pictures_with_the_next_message(cli, seeing, scans, expected, tmp_path):
    lines = f"/image {scans / '0.png'}\nWhat?\n/save {tmp_path / 'chat.json'}\n"
    found = cli("chat", seeing, *FEW, stdin=lines)
    assert found.code == 0, found.err
    assert expected(scans / "0.png").text in found.out
    assert "24 x 16, goes with the next message" in found.err
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert saved[0]["content"][0] == {"type": "image", "image": str(scans / "0.png")}
    wrong = cli("chat", seeing, *FEW, stdin=f"/image {scans / 'drawing.svg'}\n/image\n")
    assert "an SVG drawing" in wrong.err
    assert "/image: " in wrong.err.splitlines()[-1]


def test_serve_checks_its_hosts_before_it_loads(cli):
    found = cli("serve", "no/such/model", "--allow-image-hosts", "http://a.org/", "--no-progress")
    assert_one_line_error(found, 2, "allow_image_hosts: 'http://a.org/'")
