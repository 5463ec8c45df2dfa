"""Pictures over HTTP, in every protocol, through the official client."""

import base64
import io
import threading
from dataclasses import replace

import openai
import pytest

from tests.reference.pictures import picture
from tests.server.asking import MODES, ask, client_of, decoding, refused, send, text_of
from tests.server.conftest import serving
from trimode.engine import generate
from trimode.server import fetch
from trimode.testing import tiny_model, tiny_vision, tiny_vision_model
from trimode.vision import ImageLimits

TOKENS = 6 + 2
"""Of a picture of 24 x 16 pixels: 3 x 2 squares, a break and an end."""


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


ONE, TWO = picture(1), picture(2, (32, 8))


def url_of(image):
    return f"data:image/png;base64,{encoded(image)}"


def part(image, **more):
    return {"type": "image_url", "image_url": {"url": url_of(image), **more}}


def text(words):
    return {"type": "text", "text": words}


def said(*parts):
    return [{"role": "user", "content": list(parts)}]


def told(*parts):
    """The same for the Python API."""
    content = [text(p) if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def model():
    return tiny_vision_model(eos_token_ids=())


@pytest.fixture(scope="module")
def served(model):
    with serving(model, max_images=3, image_limits=ImageLimits(bytes=2**17, pixels=20_000)) as s:
        yield s


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_that_of_the_python_api(mode, client, model):
    asked = {"max_tokens": 12, **decoding(mode)}
    expected = generate(model, told("What is ", ONE, "beside", TWO, "?"), **asked)
    messages = said(text("What is "), part(ONE), text("beside"), part(TWO), text("?"))
    extra = {"decoding": decoding(mode)}
    answer = ask(client, messages=messages, max_tokens=12, extra_body=extra)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.prompt_tokens_details.image_tokens == 6 + 4
    streamed = ask(client, messages=messages, max_tokens=12, extra_body=extra, stream=True)
    assert text_of(list(streamed)) == expected.text


def test_usage_counts_the_tokens_of_pictures(client):
    plain = ask(client, messages=said(text("What?")), max_tokens=1).usage.prompt_tokens
    found = ask(client, messages=said(part(ONE), text("What?")), max_tokens=1).usage
    assert found.prompt_tokens == plain + TOKENS


def test_low_detail_is_a_smaller_picture(model):
    large = tiny_vision_model()
    large = replace(large, vision=tiny_vision(large.config, image_size=1024))
    with serving(large) as (url, _):
        client = client_of(url)
        image = picture(3, (640, 8))
        counts = [
            ask(client, messages=said(part(image, **detail)), max_tokens=1).usage.prompt_tokens
            for detail in ({}, {"detail": "auto"}, {"detail": "high"}, {"detail": "low"})
        ]
        assert counts[0] == counts[1] == counts[2]
        assert counts[0] - counts[3] == 80 - 64


def test_a_second_turn_finds_the_picture_in_the_cache(client):
    first = said(part(picture(7)), text("What is it, and what is it for?"))
    ask(client, messages=first, max_tokens=2)
    again = [*first, {"role": "assistant", "content": "A"}, {"role": "user", "content": "More?"}]
    assert ask(client, messages=again, max_tokens=2).usage.prompt_tokens_details.cached_tokens > 40
    other = said(part(picture(8)), text("What is it, and what is it for?"))
    assert ask(client, messages=other, max_tokens=2).usage.prompt_tokens_details.cached_tokens == 0


def test_responses_take_input_image(client, model):
    expected = generate(model, told("What is ", ONE, "?"), max_tokens=8).text
    content = [
        {"type": "input_text", "text": "What is "},
        {"type": "input_image", "image_url": url_of(ONE), "detail": "auto"},
        {"type": "input_text", "text": "?"},
    ]
    found = client.responses.create(
        model="tiny", input=[{"role": "user", "content": content}], max_output_tokens=8,
        temperature=0,
    )  # fmt: skip
    assert found.output_text == expected


def test_anthropic_takes_blocks(url, model):
    expected = generate(model, told("What is ", ONE, "?"), max_tokens=8).text
    source = {"type": "base64", "media_type": "image/png", "data": encoded(ONE)}
    content = [text("What is "), {"type": "image", "source": source}, text("?")]
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0,
            "messages": [{"role": "user", "content": content}]}  # fmt: skip
    status, found = send(f"{url}/v1/messages", body)
    assert status == 200
    assert found["content"] == [{"type": "text", "text": expected}]
    block = {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "image", "source": source}],
    }
    status, _ = send(
        f"{url}/v1/messages", {**body, "messages": [{"role": "user", "content": [block]}]}
    )
    assert status == 200


def test_ollama_takes_images(url, model):
    expected = generate(model, told(ONE, "What?"), max_tokens=8).text
    options = {"num_predict": 8, "temperature": 0}
    asked = {"model": "tiny", "stream": False, "options": options}
    messages = [{"role": "user", "content": "What?", "images": [encoded(ONE)]}]
    status, found = send(f"{url}/api/chat", {**asked, "messages": messages})
    assert (status, found["message"]["content"]) == (200, expected)
    status, found = send(
        f"{url}/api/generate", {**asked, "prompt": "What?", "images": [encoded(ONE)]}
    )
    assert (status, found["response"]) == (200, expected)
    assert "vision" in send(f"{url}/api/show", {"model": "tiny"})[1]["capabilities"]


def test_letters_of_the_picture_token_are_letters(client, model):
    """A stranger who writes `[IMG]` gets neither a picture nor another one's place."""
    asked = said(text("[IMG] [IMG_END]"), part(ONE), text("[IMG]"))
    found = ask(client, messages=asked, max_tokens=4).usage
    assert found.prompt_tokens_details.image_tokens == 6
    letters = len("[IMG] [IMG_END]") + len("[IMG]")
    plain = ask(client, messages=said(part(ONE)), max_tokens=1).usage.prompt_tokens
    assert found.prompt_tokens == plain + letters


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "an SVG drawing"),
        ("data:image/svg+xml,%3Csvg%20xmlns='a'/%3E", "an SVG drawing"),
        ("data:image/heic;base64," + base64.b64encode(b"\0\0\0\x18ftypheic" + bytes(9)).decode(),
         "a HEIC picture"),
        ("data:image/png;base64,@@@", "not base64"),
        ("data:text/plain,hello", "a data: URL of text/plain"),
        ("data:image/png;base64," + encoded(ONE)[:200], "a damaged or truncated PNG"),
        ("data:image/png;base64," + encoded(picture(0, (200, 150))), "200 x 150 pixels; at most"),
        ("data:image/png;base64," + "A" * 400_000, "at most 0.125 MiB a picture"),
        ("https://example.org/a.png", "the host example.org; allowed: none: send a data: URL"),
        ("http://127.0.0.1:80/a.png", "the host 127.0.0.1; allowed: none"),
        ("file:///etc/passwd", "must be a data:, http: or https: URL"),
        ("", "an empty file"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_a_400_that_says_why(source, words, client):
    messages = said(text("a"), {"type": "image_url", "image_url": {"url": source}})
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=messages)
    assert caught.value.param == "messages[0].content[1]"
    assert words in caught.value.message


def test_limits_and_forms_of_parts_are_named(client):
    assert refused(client, messages=said(*[part(ONE)] * 4)) == "messages[0].content[3]"
    detail = said(part(ONE, detail="much"))
    assert refused(client, messages=detail) == "messages[0].content[0].detail"
    system = [{"role": "system", "content": [part(ONE)]}, *said(text("a"))]
    assert refused(client, messages=system) == "messages[0].content"


def test_a_text_model_says_that_it_reads_none(tmp_path):
    with serving(tiny_model()) as (url, _):
        client = client_of(url)
        with pytest.raises(openai.BadRequestError, match="reads none: it has no vision part"):
            ask(client, messages=said(text("a"), part(ONE)))
        picture = {"type": "input_image", "image_url": "data:,"}
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(
                model="tiny", instructions="Be brief.",
                input=[{"role": "user", "content": [picture]}],
            )  # fmt: skip
        assert caught.value.param == "input[0].content[0]"
        assert "vision" not in send(f"{url}/api/show", {"model": "tiny"})[1]["capabilities"]


def test_a_body_with_pictures_may_be_larger(served, client):
    _, service = served
    assert service.max_body_bytes == 8 * 2**20 + 2 * 2**17


def test_a_listed_host_is_asked(model, monkeypatch):
    buffer = io.BytesIO()
    ONE.save(buffer, "PNG")
    asked = []

    async def fetched(url, hosts, limits, *, name):
        asked.append((url, hosts, name))
        return buffer.getvalue()

    monkeypatch.setattr("trimode.server.pictures.fetch_picture", fetched)
    with serving(model, allow_image_hosts=("example.org",)) as (url, _):
        link = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        found = ask(client_of(url), messages=said(link, text("?")), max_tokens=6)
    assert asked == [("https://example.org/a.png", ("example.org",), "messages[0].content[0]")]
    assert found.choices[0].message.content == generate(model, told(ONE, "?"), max_tokens=6).text
    assert fetch.is_public  # the real one is tested beside it


def test_texts_and_pictures_of_many_clients_mix(served, model):
    """No answer depends on what else is asked, and nothing is left behind."""
    url, service = served
    asked = [
        (said(text(f"{i}: "), part(picture(i)), text("?")), told(f"{i}: ", picture(i), "?"))
        if i % 2
        else (said(text(f"Say {i}.")), told(f"Say {i}."))
        for i in range(12)
    ]
    found = [None] * len(asked)

    def run(i):
        extra = {"decoding": decoding(MODES[i % len(MODES)])}
        answer = ask(client_of(url), messages=asked[i][0], max_tokens=10, extra_body=extra)
        found[i] = answer.choices[0].message.content

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (_, prompt) in enumerate(asked):
        mode = MODES[i % len(MODES)]
        assert found[i] == generate(model, prompt, max_tokens=10, **decoding(mode)).text
    images = service.worker.engine.images
    assert not images.waiting
    assert all(made.users == 0 for made in images._made.values())
