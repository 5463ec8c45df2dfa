"""Chat templates against transformers' own rendering."""

import json
import re

import pytest
import transformers

from trimode.errors import CheckpointError, InputError
from trimode.testing import byte_tokenizer
from trimode.text import ChatTemplate, find_chat_template

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = """{%- for m in messages %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {{- '<' ~ m.role ~ '>' ~ m.content | trim }}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
    {%- if enable_thinking is defined and enable_thinking %}{{ '<think>\n' }}
    {%- else %}{{ '<think></think>' }}{% endif %}
{%- endif %}"""
TOOLS = """{% if tools %}{{ tools | tojson }}|{{ tools | tojson(indent=2) }}{% endif %}
{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}
{%- endfor %}"""
TOOL = {"type": "function", "function": {"name": "f", "description": "<a> & 'b' é"}}
MESSAGES = [
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": "hi <b>"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "more"},
]


def oracle(source, messages, **variables):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend, eos_token="<|im_end|>", chat_template=source
    )
    return tokenizer.apply_chat_template(messages, tokenize=False, **variables)


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        (SMOLLM2, {}),
        (SMOLLM2, {"add_generation_prompt": False}),
        (THINKING, {}),
        (THINKING, {"enable_thinking": True}),
        (TOOLS, {"tools": [TOOL]}),
    ],
)
@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:2]])
def test_rendering_equals_that_of_transformers(source, variables, messages):
    variables = {"add_generation_prompt": True, **variables}
    ours = ChatTemplate(source, eos_token="<|im_end|>").render(messages, **variables)
    assert ours == oracle(source, messages, **variables)


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    text = ChatTemplate(SMOLLM2).render([{"role": "user", "content": parts}])
    assert "user\nab<|im_end|>" in text


def test_a_developer_message_is_a_system_message_where_the_template_knows_no_developer():
    text = ChatTemplate(SMOLLM2).render([{"role": "developer", "content": "x"}])
    assert text.startswith("<|im_start|>system\nx")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages: empty"),
        (["x"], "messages[0]: str"),
        ([{"role": "king", "content": "x"}], "messages[0].role: 'king'"),
        ([MESSAGES[1], {"role": "user"}], "messages[1].content: missing"),
        ([{"role": "user", "content": 3}], "messages[0].content: int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "content[0].text"),
    ],
)
def test_a_wrong_message_is_named(messages, words):
    with pytest.raises(InputError, match=re.escape(words)):
        ChatTemplate(SMOLLM2).render(messages)


def test_a_template_may_refuse_messages():
    template = ChatTemplate("{{ raise_exception('only one turn') }}")
    with pytest.raises(InputError, match="only one turn"):
        template.render(MESSAGES)


def test_a_template_cannot_reach_out_of_its_sandbox():
    template = ChatTemplate("{{ messages.__class__.__mro__ }}")
    with pytest.raises(InputError, match="unsafe"):
        template.render(MESSAGES)


def test_a_broken_template_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match="chat_template"):
        ChatTemplate("{% for %}")


def test_the_template_is_found_in_each_of_its_places(tmp_path):
    assert find_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert find_chat_template(tmp_path) == "config"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert find_chat_template(tmp_path) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert find_chat_template(tmp_path) == "file"
