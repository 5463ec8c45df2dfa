"""Chat templates against transformers' own rendering."""

import json
import re
import time

import pytest
import transformers

from trimode.errors import CheckpointError, InputError
from trimode.testing import byte_tokenizer
from trimode.text import ChatTemplate, chat_template, find_chat_templates

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


def test_the_templates_are_found_in_each_of_their_places(tmp_path):
    assert find_chat_templates(tmp_path) == {}
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert find_chat_templates(tmp_path) == {"default": "config"}
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert find_chat_templates(tmp_path) == {"rag": "r", "default": "d"}
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("tools")
    assert find_chat_templates(tmp_path) == {"default": "file", "tool_use": "tools"}


@pytest.mark.parametrize("value", [[{"name": "x"}], 3, {"a": "b"}, [["x"]]])
def test_templates_of_another_form_are_named(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template"):
        find_chat_templates(tmp_path)


def test_a_template_of_its_own_renders_conversations_with_tools():
    template = chat_template({"default": "plain", "tool_use": "{{ tools | tojson }}"})
    assert template.render(MESSAGES) == template.render(MESSAGES, tools=[]) == "plain"
    assert json.loads(template.render(MESSAGES, tools=[TOOL])) == [TOOL]


def test_the_first_template_stands_in_for_a_default():
    assert chat_template({"tool_use": "a", "rag": "b"}).render(MESSAGES) == "a"
    assert chat_template({}) is None


PARTS = """{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}
{{- p.text }}{% endif %}{% endfor %}
{% endfor %}"""
USER_PARTS = """{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}
{%- for p in m.content %}{{ p['text'] }}{% endfor %}{% else %}{{ m.content }}{% endif %}
{% endfor %}"""
EITHER = """{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}
{%- else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}
{% endfor %}"""


@pytest.mark.parametrize("source", [PARTS, USER_PARTS, EITHER])
def test_a_template_that_reads_parts_is_given_parts(source):
    text = ChatTemplate(source).render(MESSAGES)
    assert text == "".join(f"<{m['role']}>{m['content']}" for m in MESSAGES)


def test_a_template_that_refuses_some_roles_is_tried_with_the_others():
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    assert "hi <b>" in ChatTemplate(source + PARTS).render(MESSAGES[1:])


def repeated(first, following):
    loop = "{% for i in range(60) %}{% set n.t = " + following + " %}{% endfor %}"
    return "{% set n = namespace(t=" + first + ") %}" + loop


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = 1 %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [1] * 10**9 }}",
    "{{ 'a' | center(3 * 10**9) }}",
    "{{ 'a'.center(3 * 10**9) }}",
    "{{ 'a'.ljust(3 * 10**9) }}",
    "{{ lipsum(n=10**7) }}",
    repeated("'aa'", "n.t ~ n.t"),
    repeated("'aa'", "n.t + n.t"),
    repeated("[1]", "n.t + n.t"),
    repeated("'aa'", "n.t | replace('a', n.t)"),
    repeated("'aa'", "n.t.replace('a', n.t)"),
    "{{ 'a b' | indent(2 * 10**9, first=true) }}",
    "{{ [[1]] | tojson(indent=10**9) }}",
    "{{ strftime_now('%' * 5000) }}",
    "{{ 9 ** 9 ** 9 ** 9 ** 9 ** 9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "{{ range(99999) | join('a' * 99999) }}",
    "{{ ('a' * 99999).join(range(99999) | map('string') | list) }}",
    "{% set t %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}{{ t }}",
    "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_can_neither_run_for_ever_nor_fill_the_memory(source, monkeypatch):
    monkeypatch.setattr("trimode.text.template_sandbox.MOST_SECONDS", 0.2)
    began = time.thread_time()
    with pytest.raises((InputError, CheckpointError)):
        ChatTemplate(source).render(MESSAGES)
    assert time.thread_time() - began < 30  # without limits hours, or all the memory


def test_long_conversations_are_far_from_the_limits():
    messages = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "x"}]
    text = ChatTemplate(SMOLLM2).render(messages * 300)
    assert text.count("word") == 600_000
