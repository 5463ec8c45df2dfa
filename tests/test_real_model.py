"""The embedded SmolLM2 against transformers reading the same GGUF: an outside oracle."""

import json
from pathlib import Path

import pytest
import torch

from trimode import generate_batch, load
from trimode.checkpoints import open_checkpoint, save_checkpoint
from trimode.decoding import Stats
from trimode.engine import encode_prompt
from trimode.model import CachedAttention, KVCache, Segment, as_floats, expected_tensors

pytestmark = pytest.mark.real

PROMPTS = 4
"""200 of them, in every mode and block length: `make lossless`."""
NEW_TOKENS = 24
LOGIT_TOLERANCE = 2e-5
"""Relative to the largest logit, fp32 on both sides."""


@pytest.fixture(scope="module")
def ours(real_cache):
    return load(dtype="fp32", progress=False)


@pytest.fixture(scope="module")
def theirs(ours):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        ours.path.parent, gguf_file=ours.path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def prompts(ours):
    data = Path(__file__).parents[2] / "shared" / "data"
    path = data / "self_instruct" / "user_oriented_instructions.jsonl"
    if not path.exists():
        texts = [f"Write {n} short sentences about the number {n}." for n in range(PROMPTS)]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()[:PROMPTS]]
        texts = [f"{row['instruction']}\n{row['instances'][0]['input']}" for row in rows]
    return [encode_prompt(ours, text) for text in texts]


@pytest.mark.slow
@torch.inference_mode()
def test_logits_equal_those_of_transformers(ours, theirs, prompts):
    transformer = ours.transformer
    for prompt in prompts:
        cache = KVCache(ours.config, len(prompt))
        attend = CachedAttention(
            [Segment(0, len(prompt), cache, "causal")], transformer.dtype, "cpu"
        )
        hidden = transformer(torch.tensor(prompt), torch.arange(len(prompt)), attend)
        logits = transformer.logits(hidden)
        oracle = theirs(torch.tensor([prompt])).logits[0]
        error = (logits - oracle).abs().max() / oracle.abs().max()
        assert error < LOGIT_TOLERANCE, f"relative error {error:.1e}"


def greedy(model, prompt):
    """Tokens of a model of transformers."""
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
        )
    return tuple(made[0, len(prompt) :].tolist())


@pytest.mark.slow
def test_greedy_tokens_equal_those_of_transformers(ours, theirs, prompts):
    results = generate_batch(ours, prompts, max_tokens=NEW_TOKENS)
    assert [result.token_ids for result in results] == [greedy(theirs, p) for p in prompts]


@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_speculation_emits_exactly_the_ar_tokens(ours, prompts, temperature):
    prompts = prompts[: PROMPTS // 2]
    options = {"max_tokens": 16, "temperature": temperature, "top_p": 0.95, "seed": 11}
    reference = generate_batch(ours, prompts, **options)
    for mode, block_length in (("linear", 8), ("linear", 32), ("quadratic", 4)):
        found = generate_batch(ours, prompts, mode=mode, block_length=block_length, **options)
        assert [r.token_ids for r in found] == [r.token_ids for r in reference]


def test_the_saved_checkpoint_opens_in_transformers(ours, prompts, tmp_path):
    import transformers

    opened, path = open_checkpoint(), tmp_path / "saved"
    save_checkpoint(
        path,
        opened.config,
        ((name, as_floats(opened.read(name))) for name in expected_tensors(opened.config)),
        tokenizer=opened.tokenizer,
        chat_template=opened.chat_template,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = "How many are 12 and 345?"
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(ours, text)
    (result,) = generate_batch(ours, prompts[:1], max_tokens=NEW_TOKENS)
    assert result.token_ids == greedy(model.eval(), prompts[0])


@pytest.mark.slow
def test_the_adapter_that_ships_leaves_ar_as_it_was_and_drafts(ours, prompts):
    plain = load(dtype="fp32", adapter="none", progress=False)
    assert (plain.adapter_scope, ours.adapter_scope) == (None, "denoise")
    assert ours.config.block_length == 16
    assert not ours.config.trained_to_denoise
    options = {"max_tokens": 32, "logprobs": 2}
    bare, with_adapter = (generate_batch(m, prompts[:4], **options) for m in (plain, ours))
    assert [r.token_ids for r in bare] == [r.token_ids for r in with_adapter]
    assert [r.logprobs for r in bare] == [r.logprobs for r in with_adapter]
    drafted = generate_batch(ours, prompts[:4], mode="linear", max_tokens=32)
    assert [r.token_ids for r in drafted] == [r.token_ids for r in bare]
    assert Stats.pooled(r.stats for r in drafted).acceptance_length > 2.3
