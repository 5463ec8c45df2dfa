"""Prompts with pictures: from messages, texts and files to tokens."""

import io

import pytest

from tests.reference.pictures import picture
from trimode.engine import encode_prompt, generate, read_prompt, stream
from trimode.errors import InputError
from trimode.testing import tiny_model, tiny_vision_model
from trimode.text import ChatTemplate

PARTS_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content | sort(attribute='type') %}"
    "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
"""Shows pictures before the text, wherever they stand."""


@pytest.fixture(scope="module")
def model():
    return tiny_vision_model(eos_token_ids=())


def asked(*parts):
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def spelled(model, prompt):
    """A prompt's text, with `#` for each token that stands for a part of a picture."""
    tokens, vision = prompt.tokens, model.vision.tokens
    pieces = {vision.image: "#", vision.row_break: "|", vision.end: "!"}
    return "".join(pieces.get(t) or model.tokenizer.token_text(t) for t in tokens)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


TINY = picture(1, (24, 16))  # 3 x 2 squares
WIDE = picture(2, (32, 8))
START, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def test_pictures_stand_where_the_message_has_them(model):
    prompt = read_prompt(model, asked("What is ", TINY, " and ", WIDE, "?"))
    assert spelled(model, prompt) == f"{START}What is ###|###! and ####!?{END}"
    starts = [len(f"{START}What is ") - len("<|im_start|>") + 1]
    assert prompt.images[0].start == starts[0]
    assert [one.image.tokens for one in prompt.images] == [6, 4]


def test_a_template_that_knows_pictures_decides_where_they_stand():
    from dataclasses import replace

    model = replace(tiny_vision_model(), chat_template=ChatTemplate(PARTS_TEMPLATE))
    prompt = read_prompt(model, asked("What is ", TINY, " and ", WIDE, "?"))
    assert spelled(model, prompt) == f"{START}###|###!####!What is  and ?<|im_end|>\n"
    assert [one.image.columns for one in prompt.images] == [3, 4]


def test_a_picture_that_the_template_loses_is_an_error():
    from dataclasses import replace

    lost = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}")
    model = replace(tiny_vision_model(), chat_template=lost)
    with pytest.raises(InputError, match="a picture that the model's chat template leaves out"):
        read_prompt(model, asked("What is ", TINY))
    twice = ChatTemplate("{% for m in messages %}{{ m.content + m.content }}{% endfor %}")
    with pytest.raises(InputError, match="a picture that the model's chat template repeats"):
        read_prompt(replace(model, chat_template=twice), asked("What is ", TINY))


def test_the_letters_of_the_picture_token_are_no_picture(model):
    prompt = read_prompt(model, asked("[IMG] ", TINY))
    assert len(prompt.images) == 1
    assert prompt.tokens.count(model.vision.tokens.image) == 7  # of a program's own text one more


def test_a_string_has_its_pictures_before_it_and_raw_where_it_spells_them(model):
    prompt = read_prompt(model, "What?", images=[TINY])
    assert spelled(model, prompt) == f"{START}###|###!What?{END}"
    raw = read_prompt(model, "Look: [IMG] and [IMG].", images=[TINY, WIDE], raw=True)
    assert spelled(model, raw) == "Look: ###|###! and ####!."
    before = read_prompt(model, "Look.", images=[WIDE, WIDE], raw=True)
    assert spelled(model, before) == "####!####!Look."
    with pytest.raises(InputError, match=r"images: 2 beside a text with 1 \[IMG\]"):
        read_prompt(model, "[IMG]", images=[TINY, WIDE], raw=True)


def test_pictures_come_as_files_bytes_or_data_urls(model, tmp_path):
    import base64

    data = png(TINY)
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    expected = read_prompt(model, "What?", images=[TINY])
    for source in (data, tmp_path / "a.png", str(tmp_path / "a.png"), url):
        found = read_prompt(model, "What?", images=[source])
        assert found.tokens == expected.tokens
        assert found.images[0].image.key == expected.images[0].image.key


def test_pictures_beside_messages_take_the_places_that_these_have(model):
    place = {"type": "image"}
    text = {"type": "text", "text": "or"}
    messages = [{"role": "user", "content": [place, text, place]}]
    prompt = read_prompt(model, messages, images=[TINY, WIDE])
    assert spelled(model, prompt) == f"{START}###|###!or####!{END}"
    plain = read_prompt(model, [{"role": "user", "content": "What?"}], images=[WIDE])
    assert spelled(model, plain) == f"{START}####!What?{END}"
    with pytest.raises(InputError, match="images: 1 beside messages with places for 2"):
        read_prompt(model, messages, images=[TINY])
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\]\.image: None"):
        read_prompt(model, messages)
    with pytest.raises(InputError, match="images: given; the messages need a turn of the user"):
        read_prompt(model, [{"role": "system", "content": "a"}], images=[TINY])
    with pytest.raises(InputError, match="images: given beside token ids"):
        read_prompt(model, [1, 2], images=[TINY])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.png", "missing.png is not a file"),
        ("https://example.org/a.png", "must be a file: fetch the picture first"),
        ("data:text/html,hello", "a data: URL of text/html"),
        ("data:image/png;base64,!!!", "not base64"),
        (b"<svg>", "an SVG drawing"),
        (7, "int; must be a path"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(source, words, model):
    with pytest.raises(InputError, match=rf"messages\[0\]\.content\[0\].*{words}"):
        read_prompt(model, "What?", images=[source])


def test_answers_with_pictures_are_the_same_by_every_way(model):
    found = generate(model, "What?", images=[TINY], max_tokens=8)
    assert generate(model, asked(TINY, "What?"), max_tokens=8).text == found.text
    assert generate(model, "What?", images=[WIDE], max_tokens=8).text != found.text
    streamed = [u.text for u in stream(model, "What?", images=[TINY], max_tokens=8)]
    assert "".join(streamed) == found.text


def test_pictures_stand_in_turns_of_users_and_tools_only(model):
    system = [{"role": "system", "content": asked(TINY)[0]["content"]}, *asked("Hi")]
    with pytest.raises(InputError, match=r"messages\[0\]\.content: a picture in one of system"):
        read_prompt(model, system)


def test_a_text_model_names_the_part_that_is_a_picture():
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[1\]: a picture; .*reads none"):
        encode_prompt(tiny_model(), asked("What is ", TINY))
