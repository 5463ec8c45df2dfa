"""Our class in lm-evaluation-harness, beside its own class for transformers."""

from pathlib import Path

import pytest

from trimode.errors import InputError
from trimode.testing import byte_tokenizer, tiny_model, write_tiny_checkpoint
from trimode.testing.tiny import CHAT_TEMPLATE

pytest.importorskip("lm_eval", reason="make eval-test installs it")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from trimode.evaluation.harness.answers import AnswerFile
from trimode.evaluation.harness.lm import TrimodeLM
from trimode.evaluation.likelihood import log_likelihoods

WORDS = "Once upon a time there was a model that said little and knew less. "


def ask(kind: str, *requests: tuple) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=arguments, idx=i)
        for i, arguments in enumerate(requests)
    ]


@pytest.fixture(scope="module", params=["no BOS", "BOS"])
def saved(request, tmp_path_factory) -> Path:
    """A tiny Llama that transformers has saved."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=261, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        initializer_range=0.3, bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    backend = byte_tokenizer().backend
    if request.param == "BOS":
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 257)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def both(saved) -> tuple[TrimodeLM, HFLM]:
    theirs = HFLM(pretrained=str(saved), dtype="float32", device="cpu", batch_size=4)
    return TrimodeLM(str(saved), dtype="fp32"), theirs


LIKELY = [
    ("The sky is", " blue"),
    ("The sky is", " green"),
    ("The sky is ", "blue"),  # the space goes over to the continuation
    ("", "Hello"),
    ("a", "b"),
    (WORDS * 3, " The end."),  # longer than the context
    ("<|im_start|>user", "\nHi"),
]


def test_log_likelihoods_are_transformers(both):
    ours, theirs = both
    found = ours.loglikelihood(ask("loglikelihood", *LIKELY), disable_tqdm=True)
    wanted = theirs.loglikelihood(ask("loglikelihood", *LIKELY), disable_tqdm=True)
    for (mine, greedy), (other, other_greedy) in zip(found, wanted, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-4)
        assert greedy == other_greedy


def test_rolling_log_likelihoods_are_transformers(both):
    ours, theirs = both
    texts = [(WORDS,), (WORDS * 5,), ("a",)]
    found = ours.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), disable_tqdm=True)
    wanted = theirs.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("until", [[], ["e"], "j"])
def test_greedy_answers_are_transformers(both, until):
    ours, theirs = both
    given = {"until": until, "max_gen_toks": 20, "do_sample": False}
    contexts = ("The sky is", "a", WORDS * 3)
    requests = [(context, given) for context in contexts]
    found = ours.generate_until(ask("generate_until", *requests), disable_tqdm=True)
    # One by one: padding changes the last bits of theirs.
    wanted = [
        theirs.generate_until(ask("generate_until", request), disable_tqdm=True)[0]
        for request in requests
    ]
    assert found == wanted


def test_chat_prompts_are_transformers(both):
    ours, theirs = both
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, "}]
    assert ours.apply_chat_template(chat[:1]) == theirs.apply_chat_template(chat[:1])
    assert ours.apply_chat_template(chat, False) == theirs.apply_chat_template(chat, False)
    assert ours.tok_encode("<|im_start|>x") == theirs.tok_encode("<|im_start|>x")
    assert ours.tok_encode("x") == theirs.tok_encode("x")
    assert ours.chat_template(True) == CHAT_TEMPLATE


def test_every_mode_answers_many_at_once():
    model = tiny_model()
    given = {"until": [], "max_gen_toks": 12}
    requests = [(f"Number {i}", given) for i in range(20)]
    answers = {}
    for mode in ("ar", "linear", "quadratic", "diffusion"):
        lm = TrimodeLM(model, mode=mode, block_length=None if mode == "ar" else 4)
        answers[mode] = lm.generate_until(ask("generate_until", *requests), disable_tqdm=True)
        assert len(lm.answered) == 20
        assert all(each.tokens and each.nfe for each in lm.answered)
    assert answers["linear"] == answers["ar"] == answers["quadratic"]


def test_the_same_request_again_is_another_sample_if_sampled():
    lm = TrimodeLM(tiny_model(), seed=5)
    sampled = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    found = lm.generate_until(ask("generate_until", *[("Hi", sampled)] * 3), disable_tqdm=True)
    assert len(set(found)) == 3
    greedy = sampled | {"do_sample": False}
    found = lm.generate_until(ask("generate_until", *[("Hi", greedy)] * 3), disable_tqdm=True)
    assert len(set(found)) == 1


def test_an_interrupted_run_goes_on(tmp_path):
    model, path = tiny_model(), tmp_path / "answers.jsonl"
    given = {"until": [], "max_gen_toks": 12}
    requests = [(f"Number {i}", given) for i in range(6)]
    wanted = TrimodeLM(model).generate_until(ask("generate_until", *requests), disable_tqdm=True)
    first = TrimodeLM(model, answers=AnswerFile(path))
    first.generate_until(ask("generate_until", *requests[:4]), disable_tqdm=True)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 7)  # killed in the middle of the fourth
    again = TrimodeLM(model, answers=AnswerFile(path))
    found = again.generate_until(ask("generate_until", *requests), disable_tqdm=True)
    assert found == wanted
    lines = path.read_text().splitlines()
    assert len(lines) == 7  # three whole ones, the torn one, and three more
    other = TrimodeLM(model, mode="linear", answers=AnswerFile(path))
    other.generate_until(ask("generate_until", *requests), disable_tqdm=True)
    assert len(path.read_text().splitlines()) == 13


def test_interrupted_log_likelihoods_go_on(tmp_path, monkeypatch):
    from trimode.evaluation.harness import lm as harness

    model, path = tiny_model(), tmp_path / "answers.jsonl"
    requests = [(f"Number {i}", " is here") for i in range(6)]
    wanted = TrimodeLM(model).loglikelihood(ask("loglikelihood", *requests), disable_tqdm=True)
    first = TrimodeLM(model, answers=AnswerFile(path))
    first.loglikelihood(ask("loglikelihood", *requests[:4]), disable_tqdm=True)
    counted = []

    def computed(model, pairs):
        counted.extend(pairs)
        return log_likelihoods(model, pairs)

    monkeypatch.setattr(harness, "log_likelihoods", computed)
    again = TrimodeLM(model, answers=AnswerFile(path))
    asked = ask("loglikelihood", *requests, requests[5])
    assert again.loglikelihood(asked, disable_tqdm=True) == [*wanted, wanted[5]]
    assert len(counted) == 2, "what is known, or asked twice, is computed once"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"mode": "fast"}, "mode"),
        ({"mode": "ar", "threshold": 0.5}, "threshold"),
        ({"temprature": 1}, "temprature"),
        ({"batch_size": "many"}, "batch_size"),
    ],
)
def test_wrong_arguments_are_named(given, field):
    with pytest.raises(InputError, match=f"^{field}: "):
        TrimodeLM(tiny_model(), **given)


def test_a_mode_that_the_model_lacks_is_refused_before_its_weights_are_read(tmp_path):
    path = write_tiny_checkpoint(tmp_path, "llama", mask_token_id=None)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError):
        TrimodeLM(str(path), mode="linear")


@pytest.mark.parametrize(
    ("batch_size", "sequences"),
    [(None, 64), ("1", 64), (1, 64), ("auto", 64), ("8", 8), (128, 128)],
)
def test_how_many_at_once(batch_size, sequences):
    assert TrimodeLM(tiny_model(), batch_size=batch_size).batch_size == sequences
    assert TrimodeLM(tiny_model(), sequences=1).batch_size == 1


def test_an_unknown_generation_option_is_named():
    lm = TrimodeLM(tiny_model())
    with pytest.raises(InputError, match="temprature"):
        lm.generate_until(ask("generate_until", ("Hi", {"until": [], "temprature": 1})))
    with pytest.raises(InputError, match="max_gen_toks"):
        lm.generate_until(ask("generate_until", ("Hi", {"until": [], "max_gen_toks": 5000})))
