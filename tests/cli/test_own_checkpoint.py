"""docs/training.md, "Your own checkpoint, from nothing", followed literally on a stock model."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SMALLER = {
    "convert": ["--conversations", "40", "--steps", "2", "--answer-tokens", "8",
                "--set", "adapter.rank=2"],
    "generate": ["--max-tokens", "4"],
    "compare": ["--max-tokens", "4"],
    "verify": ["--max-tokens", "2"],
}  # fmt: skip
"""Options that make each command small; all of them are in its --help."""
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def commands():
    """The commands of the section, word by word."""
    section = DOCS.read_text(encoding="utf-8").split("## Your own checkpoint, from nothing")[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


@pytest.fixture
def stock(tmp_path):
    """A Llama as transformers saves it, with a tokenizer of its own and no mask token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = ["the sea keeps what it takes and gives back what it does not want "] * 9
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(text, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    path = tmp_path / "path" / "to" / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    assert "mask_token_id" not in json.loads((path / "config.json").read_text())
    return path


def test_the_section_works_as_it_is_written(cli, stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = {}
    for program, command, *words in commands():
        assert program == "trimode"
        outcome = cli(command, *words, *SMALLER[command])
        assert outcome.code == 0, (command, outcome.err)
        outcomes[command] = outcome
    assert list(outcomes) == ["convert", "generate", "compare", "verify"]
    converted = outcomes["convert"].err
    assert "mask token: " in converted
    assert "--mask-token takes another one" in converted
    assert re.search(r"linear +│ +\d\.\d\d │ +\d\.\d\d │ +\d+/\d+", converted)
    assert 'trimode generate -m path/to/model --adapter run/final --mode linear "Why' in converted
    assert outcomes["convert"].out == "run/final\n"
    assert "lossless: 0 of" in outcomes["verify"].out
    rows = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert len(rows) == 40


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--mask-token", "<nope>"), "mask_token: '<nope>'"),
        (("--prompts", "none.csv"), "prompts: none.csv is not a file"),
        (("--sampled-share", "2"), "sampled_share: 2"),
        (("--set", "step.blocks.noisy_tokens=40"), "step.blocks.noisy_tokens: 40; must be"),
    ],
)
def test_what_can_be_refused_is_refused_before_weights_are_read(
    cli, stock, tmp_path, monkeypatch, more, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trimode.checkpoints.loader.Checkpoint.build", None)
    outcome = cli("convert", "path/to/model", "-o", "run", *more)
    assert outcome.code == 2
    assert words in outcome.err
    assert not Path("run.jsonl").exists()


def test_a_conversion_that_is_interrupted_while_it_writes_says_how_to_go_on(
    cli, stock, tmp_path, monkeypatch
):
    from trimode.training.self_generate import _Writer

    monkeypatch.chdir(tmp_path)
    arguments = ("convert", "path/to/model", "-o", "run", *SMALLER["convert"])
    run = _Writer.run

    def interrupted(writer, ids, file):
        for count, reason in enumerate(run(writer, ids, file)):
            if count == 2:
                raise KeyboardInterrupt
            yield reason

    with monkeypatch.context() as patch:
        patch.setattr(_Writer, "run", interrupted)
        outcome = cli(*arguments)
    assert outcome.code == 130
    said = "stopped: 3 of 40 conversations are in run.jsonl; the same command continues"
    assert outcome.err.splitlines()[-1] == said
    assert cli(*arguments).code == 0
    assert len(Path("run.jsonl").read_text().splitlines()) == 40


def test_a_conversion_names_the_prompts_it_uses_and_keeps_their_columns(
    cli, stock, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("key,prompt\na,the sea\nb,what it takes\nc,back\n")
    small = [word for word in SMALLER["convert"] if word != "40"]
    small.insert(1, "3")
    outcome = cli("convert", "path/to/model", "-o", "run", "--prompts", "mine.csv",
                  "--sampled-share", 0, "--mask-token", "7", *small)  # fmt: skip
    assert outcome.code == 0, outcome.err
    expected = "3 conversations: 3 of 3 prompts, 0 user turns sampled from the model"
    assert expected in outcome.err
    rows = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert {row["prompt_row"]["key"] for row in rows if "messages" in row} <= {"a", "b", "c"}
    from trimode import load

    assert load("path/to/model", adapter="run/final").config.mask_token_id == 7
