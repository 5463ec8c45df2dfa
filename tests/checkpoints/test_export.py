"""Exports, with transformers as the oracle: it loads them, and its greedy text is that of `ar`."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors import safe_open

from tests.checkpoints.test_adapters import adapter, lora
from tests.checkpoints.test_memory import CONFIG as LARGE
from tests.checkpoints.test_memory import tensors as large_tensors
from tests.reference.tiny import letters
from trimode import generate, load
from trimode.checkpoints import (
    plan_export,
    read_adapter,
    resolve,
    save_adapter,
    save_checkpoint,
    write_export,
)
from trimode.checkpoints.adapters import NLD_DRAFT_ADAPTER
from trimode.checkpoints.families import FAMILIES, NLD
from trimode.checkpoints.hf_config import read_config
from trimode.checkpoints.safetensors_dir import open_weights
from trimode.errors import CheckpointError, InputError
from trimode.model import expected_tensors
from trimode.testing import tiny_config, write_tiny_checkpoint

from .files import write_gguf

WORDS = ("sea", "Why is it?", "x = [", "Überall", "1")
PROMPTS = [f"{word} {n}" for n in range(4) for word in WORDS]


def export(source, form, directory, **options):
    """Export, and return what is noted."""
    overwrite = options.pop("overwrite", False)
    plan = plan_export(resolve(str(source)), form, **options)
    write_export(plan, directory, overwrite=overwrite)
    return " | ".join(plan.notes)


def texts_of_transformers(directory, prompts=PROMPTS, tokens=24):
    """Greedy answers of a directory, by nothing but what is in it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        made = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
        answers.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], True))
    return answers


def texts_of_ours(source, prompts=PROMPTS, tokens=24, **options):
    model = load(source, dtype="fp32", **options)
    return [
        generate(model, [{"role": "user", "content": prompt}], max_tokens=tokens).text
        for prompt in prompts
    ]


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        *((family, False) for family in FAMILIES),
        *((family, True) for family in (NLD, "llama")),
        *(
            pytest.param(f, True, marks=pytest.mark.slow)
            for f in sorted(FAMILIES.keys() - {NLD, "llama"})
        ),
    ],
)
def test_transformers_gives_the_text_of_ar(family, tied, tmp_path):
    source = write_tiny_checkpoint(
        tmp_path / "joint", family, trained_to_denoise=True, tie_word_embeddings=tied
    )
    export(source, "ar", tmp_path / "ar")
    fields = json.loads((tmp_path / "ar/config.json").read_text())
    assert fields["model_type"] == ("ministral3" if family == NLD else family)
    assert not {"block_size", "mask_token_id"} & fields.keys()
    assert not [name for name in fields if name.startswith("trimode")]
    assert texts_of_transformers(tmp_path / "ar") == texts_of_ours(source)
    with safe_open(tmp_path / "ar/model.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118


@pytest.mark.real
@pytest.mark.slow
def test_transformers_gives_the_text_of_the_real_models_ar(real_cache, tmp_path):
    plan = plan_export(resolve(), "ar")
    write_export(plan, tmp_path / "ar")
    assert [note.partition(":")[0] for note in plan.notes] == ["left out"]
    topics = ("water?", "the sea", "Rome", "numbers", "a dog")
    starts = ("What is", "Write a poem about", "Name", "Explain")
    prompts = [f"{start} {topic}" for start in starts for topic in topics]
    assert texts_of_transformers(tmp_path / "ar", prompts) == texts_of_ours(resolve(), prompts)


@pytest.mark.parametrize("scope", ["draft", "denoise"])
def test_an_adapter_that_is_on_in_some_rows_is_left_out(scope, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    save_adapter(tmp_path / "a", adapter(tiny_config("llama"), scope=scope), tiny_config("llama"))
    noted = export(source, "ar", tmp_path / "ar", adapter=[str(tmp_path / "a")])
    assert f"left out: the adapter {tmp_path / 'a'}" in noted
    assert texts_of_transformers(tmp_path / "ar") == texts_of_ours(source, adapter=tmp_path / "a")


def test_an_ordinary_lora_is_in_the_weights(tmp_path):
    path, adapter_path, _ = lora(tmp_path)
    assert export(path, "ar", tmp_path / "ar", adapter=[str(adapter_path)]) == ""
    theirs = texts_of_transformers(tmp_path / "ar")
    assert theirs == texts_of_ours(path, adapter=adapter_path)
    assert theirs != texts_of_ours(path)
    noted = export(path, "ar", tmp_path / "half", adapter=[str(adapter_path)], dtype="bf16")
    assert "rounded to bfloat16" in noted


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_gguf_file_becomes_a_directory(kind, tmp_path):
    source = write_tiny_gguf(tmp_path / "m.gguf", kind)
    export(source, "ar", tmp_path / "ar")
    again = load(tmp_path / "ar", dtype="fp32")
    ours = load(source, dtype="fp32")
    prompt = [3, 1, 4]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ar", dtype=torch.float32
    ).generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    expected = list(generate(ours, prompt, max_tokens=12).token_ids)
    assert list(generate(again, prompt, max_tokens=12).token_ids) == expected
    assert theirs[0, 3:].tolist() == expected


def write_tiny_gguf(path, kind):
    config = replace(
        LARGE, vocab_size=128, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
        num_kv_heads=4, head_dim=16,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 1.0)
        for name, shape in expected_tensors(config).items()
    }
    return write_gguf(path, config, tensors, kind=kind)


def test_the_sources_own_fields_and_files_stay(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    path = source / "config.json"
    theirs = {"use_sliding_window": False, "max_window_layers": 7, "torch_dtype": "float16",
              "auto_map": {"AutoConfig": "x.Y"}, "initializer_range": 0.123}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | theirs))
    (source / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 9}')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    export(source, "ar", tmp_path / "ar")
    fields = json.loads((tmp_path / "ar/config.json").read_text())
    assert (fields["max_window_layers"], fields["initializer_range"]) == (7, 0.123)
    assert not {"auto_map", "torch_dtype"} & fields.keys()
    assert fields["dtype"] == "float32"
    asked = json.loads((tmp_path / "ar/generation_config.json").read_text())
    assert asked == {"temperature": 0.6, "eos_token_id": [258, 9], "suppress_tokens": [256]}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                 "additional_chat_templates/tool_use.jinja"):  # fmt: skip
        assert (tmp_path / "ar" / name).read_bytes() == (source / name).read_bytes()


def test_other_dtypes_are_noted_and_what_overflows_is_refused(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    assert export(source, "ar", tmp_path / "bf16", dtype="bf16").startswith("weights are rounded")
    read = open_weights(tmp_path / "bf16", read_config(tmp_path / "bf16/config.json"))
    own = open_weights(source, read_config(source / "config.json"))
    for name in expected_tensors(tiny_config("llama")):
        assert torch.equal(read(name), own(name).to(torch.bfloat16))
    config = tiny_config("llama")
    tensors = {name: own(name).clone() for name in expected_tensors(config)}
    tensors["layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_checkpoint(tmp_path / "wide", config, tensors.items(), tokenizer=letters())
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*overflows float16"):
        export(tmp_path / "wide", "ar", tmp_path / "fp16", dtype="fp16")
    assert {path.name for path in tmp_path.iterdir()} == {"m", "bf16", "wide"}


# NVIDIA's layout


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "mistral", "ministral3", NLD])
def test_nvidias_layout_decodes_as_before(family, tied, tmp_path):
    source = write_tiny_checkpoint(
        tmp_path / "m", family, trained_to_denoise=True, tie_word_embeddings=tied
    )
    config = tiny_config(family)
    save_adapter(tmp_path / "a", adapter(config, scope="draft", targets=("o_proj",)), config)
    export(source, "nld", tmp_path / "nld", adapter=[str(tmp_path / "a")])
    assert json.loads((tmp_path / "nld/config.json").read_text())["model_type"] == NLD
    with safe_open(tmp_path / "nld/model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert all(name.startswith(("encoder.", "diffusion_head.")) for name in names)
    again = read_adapter(tmp_path / "nld" / NLD_DRAFT_ADAPTER)
    before = read_adapter(tmp_path / "a")
    assert (again.scope, again.scale) == ("draft", before.scale)
    assert all(torch.equal(again.targets[n][1], up) for n, (_, up) in before.targets.items())
    assert peft.PeftConfig.from_pretrained(tmp_path / "nld" / NLD_DRAFT_ADAPTER).r == 4
    ours = load(source, dtype="fp32", adapter=tmp_path / "a")
    theirs = load(tmp_path / "nld", dtype="fp32")
    for mode in ("ar", "linear", "diffusion"):
        asked = {"max_tokens": 20, "mode": mode}
        if mode != "ar":
            asked["block_length"] = 8  # by default what a pass was timed to cost decides
        one, two = (generate(model, "the sea", **asked) for model in (ours, theirs))
        assert one.token_ids == two.token_ids
        assert one.stats.nfe == two.stats.nfe


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"family": "llama"}, None, "was not trained to denoise"),
        ({"family": "qwen2", "trained_to_denoise": True}, None, "qkv_bias is True"),
        ({"family": "qwen3", "trained_to_denoise": True}, None, "qk_norm is True"),
        ({"family": NLD, "token_shift": True}, None, "token shift"),
        ({"family": NLD, "mask_token_id": None}, None, "has no mask token"),
        ({"family": NLD}, {"scope": "denoise"}, "on in every denoising pass; linear_spec_lora"),
        ({"family": NLD}, {"scope": "denoise", "embedding": True}, "mask embedding of its own"),
        ({"family": NLD}, {"scope": "draft", "embedding": True}, "which PEFT cannot say"),
    ],
)
def test_what_nvidias_layout_cannot_say_is_refused(fields, shape, words, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", **fields)
    config = tiny_config(**fields)
    given = None
    if shape is not None:
        save_adapter(tmp_path / "a", adapter(config, **shape), config)
        given = [str(tmp_path / "a")]
    with pytest.raises(InputError, match=words):
        export(source, "nld", tmp_path / "out", adapter=given)
    assert not (tmp_path / "out").exists()


def test_what_readers_of_nvidias_layout_miss_is_noted(tmp_path):
    config = tiny_config("llama")
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    only_drafts = replace(adapter(config, scope="draft"), draft_form="led")
    save_adapter(tmp_path / "a", only_drafts, config)
    noted = export(source, "nld", tmp_path / "nld", adapter=[str(tmp_path / "a")])
    assert "only drafts were trained" in noted
    assert "led drafts" in noted


# Where it goes


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [("gguf", {}, "--as: 'gguf'; allowed: ar, nld"), ("ar", {"dtype": "int8"}, "dtype: 'int8'")],
)
def test_an_unknown_value_is_refused(form, options, words, tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    with pytest.raises(InputError, match=words):
        export(source, form, tmp_path / "out", **options)


def test_directories_that_hold_something_are_left_alone(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("precious")
    for overwrite in (False, True):  # no checkpoint
        with pytest.raises(CheckpointError, match="holds something else"):
            export(source, "ar", tmp_path / "notes", overwrite=overwrite)
    for target in (source, source / "inside", tmp_path):
        with pytest.raises(InputError, match="holds the model, or lies in it"):
            export(source, "ar", target, overwrite=True)
    export(source, "ar", tmp_path / "ar")
    with pytest.raises(CheckpointError, match="holds something else"):
        export(source, "ar", tmp_path / "ar")
    export(source, "ar", tmp_path / "ar", overwrite=True, dtype="bf16")
    assert json.loads((tmp_path / "ar/config.json").read_text())["dtype"] == "bfloat16"
    assert {path.name for path in tmp_path.iterdir()} == {"m", "notes", "ar"}


KILLED = """
import os, sys
from trimode.checkpoints import plan_export, resolve, write_export
plan = plan_export(resolve(sys.argv[1]), "ar", most_bytes=20_000)
left = int(sys.argv[3])
def advance(n):
    global left
    left -= n
    if left < 0:
        os.kill(os.getpid(), 9)
write_export(plan, __import__("pathlib").Path(sys.argv[2]), advance=advance)
"""


def test_a_killed_export_goes_on_with_the_files_that_are_not_whole(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama", num_layers=4)
    target, partial = tmp_path / "ar", tmp_path / ".ar.partial"
    states = []
    for after in (9, 24):
        run = [sys.executable, "-c", KILLED, str(source), str(target), str(after)]
        assert subprocess.run(run, capture_output=True).returncode == -signal.SIGKILL
        assert not target.exists()
        whole = partial.glob("*.safetensors")
        states.append({path.name: path.stat().st_mtime_ns for path in whole})
    assert states[0]
    assert states[0].items() < states[1].items()  # none of the first was written again
    plan = plan_export(resolve(str(source)), "ar", most_bytes=20_000)
    write_export(plan, target)
    assert {path.name for path in tmp_path.iterdir()} == {"m", "ar"}
    assert len(list(target.glob("model-*-of-*.safetensors"))) > 4
    assert not list(target.glob("*.part"))
    assert not (target / "made_with.json").exists()
    assert states[1].items() <= {p.name: p.stat().st_mtime_ns for p in target.iterdir()}.items()
    assert texts_of_transformers(target, PROMPTS[:3]) == texts_of_ours(source, PROMPTS[:3])


def test_files_of_another_export_are_not_mixed_in(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama", num_layers=4)
    run = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "ar"), "24"]
    subprocess.run(run, capture_output=True)
    assert list((tmp_path / ".ar.partial").glob("*.safetensors"))
    other = write_tiny_checkpoint(tmp_path / "other", "llama", num_layers=4, seed=5)
    (other / "model.safetensors").replace(source / "model.safetensors")
    plan = plan_export(resolve(str(source)), "ar", most_bytes=20_000)
    write_export(plan, tmp_path / "ar")
    read = open_weights(tmp_path / "ar", read_config(tmp_path / "ar/config.json"))
    own = open_weights(source, read_config(source / "config.json"))
    assert all(torch.equal(read(name), own(name)) for name in expected_tensors(plan.config))


GROWTH = """
import sys
from pathlib import Path
from trimode.checkpoints import plan_export, resolve, write_export
def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024
plan = plan_export(resolve(sys.argv[1]), "ar", dtype="fp32")
before = peak()
write_export(plan, Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    save_checkpoint(tmp_path / "m", LARGE, large_tensors(torch.bfloat16), tokenizer=letters())
    run = [sys.executable, "-c", GROWTH, str(tmp_path / "m"), str(tmp_path / "ar")]
    grown = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    largest = LARGE.vocab_size * LARGE.hidden_size
    assert (tmp_path / "ar/model.safetensors").stat().st_size > 500e6
    assert grown < 3 * 6 * largest  # in bf16 and fp32; 150 MB


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    source = write_tiny_checkpoint(tmp_path / "m", "llama")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"output: needs 0\.\d GB, 0\.0 GB are free"):
        export(source, "ar", tmp_path / "ar")
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_a_disk_that_became_too_small_loses_no_file_of_an_earlier_run(tmp_path, monkeypatch):
    source = write_tiny_checkpoint(tmp_path / "m", "llama", num_layers=4)
    run = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "ar"), "24"]
    assert subprocess.run(run, capture_output=True).returncode == -signal.SIGKILL
    partial = tmp_path / ".ar.partial"
    whole = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert len(whole) > 2
    plan = plan_export(resolve(str(source)), "ar", most_bytes=20_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match="output: needs"):
        write_export(plan, tmp_path / "ar")
    assert {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")} == whole
    monkeypatch.undo()
    write_export(plan, tmp_path / "ar")
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ar").iterdir()}
    assert whole.items() <= done.items()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_named_and_nothing_whole_is_lost(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", "llama", num_layers=4)
    plan = plan_export(resolve(str(source)), "ar", most_bytes=20_000)
    stuck = tmp_path / ".ar.partial" / f"{plan.shards[2].file}.part"
    reached = []

    def advance(count):
        reached.append(count)
        if len(reached) == len(plan.shards[0].shapes):
            stuck.symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"00003-of-.*\.part: .*No space left"):
        write_export(plan, tmp_path / "ar", advance=advance)
    stuck.unlink()
    assert len(list(stuck.parent.glob("model-*.safetensors"))) == 2
    write_export(plan, tmp_path / "ar")
    assert texts_of_ours(tmp_path / "ar", PROMPTS[:1], tokens=2)
