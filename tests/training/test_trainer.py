"""The training loop on tiny models: it learns, resumes bit for bit, and refuses bad input."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.reference.options import readable
from tests.training.runs import TEXT, config_of, run, weights
from trimode import GenerationOptions, generate, load
from trimode.engine.request import resolve
from trimode.errors import CheckpointError, InputError, TrimodeError
from trimode.testing.tiny import write_tiny_checkpoint
from trimode.training import RECIPES, run_directory
from trimode.training.config import read_train_config
from trimode.training.trainer import Trainer


@pytest.mark.parametrize("train", ["everything", "adapter"])
def test_a_killed_run_continues_bit_for_bit(base, data, tmp_path, train):
    options = {"train": train, "ema_decay": 0.9, "steps": 8}
    if train == "adapter":
        options["adapter"] = {"rank": 4, "scale": 2.0}
    whole, done = run(config_of(base, data, tmp_path / "whole", **options))
    assert done
    config = config_of(base, data, tmp_path / "cut", **options)
    first = Trainer(config, progress=False)
    first._resume()
    for _ in range(4):
        first.directory.log(first.train_step())
        if first.step == 3:
            first.save()  # step 4 is lost
    again, done = run(config)
    assert done
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name
    rows = [
        json.loads(line)
        for line in (tmp_path / "cut" / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [row["step"] for row in rows] == list(range(1, 9))
    old = [
        json.loads(line)
        for line in (tmp_path / "whole" / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [row["loss"] for row in rows] == [row["loss"] for row in old]


def test_micro_batches_give_the_gradient_of_the_whole_batch(base, data, tmp_path):
    one, _ = run(config_of(base, data, tmp_path / "one", batch_size=4, steps=3))
    many, _ = run(
        config_of(base, data, tmp_path / "many", batch_size=4, micro_batch_size=4, steps=3)
    )
    for name, value in weights(one).items():
        assert torch.equal(weights(many)[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("shift", [False, True])
def test_a_tiny_model_learns_a_text_and_decodes_it_in_every_mode(base, tmp_path, shift):
    data = tmp_path / "text.jsonl"
    data.write_text(json.dumps({"prompt": "sea", "completion": TEXT.strip()}) + "\n")
    config = config_of(
        base,
        data,
        tmp_path / "run",
        data={"files": [str(data)], "sequence_length": 128},
        step={
            "blocks": {
                "block_length": 16,
                "copies": 8,
                "random_offset": True,
                "token_shift": shift,
            },
            "objective": {"diffusion_loss_weight": 1.0},
            "noise": {"level": "block", "weighting": "none", "draft_share": 0.3},
        },
        steps=200,
        save_every=200,
        optimiser={"learning_rate": 3e-3, "warmup_steps": 5, "decay_steps": 100},
    )
    _, done = run(config)
    assert done
    model = load(tmp_path / "run" / "final")
    assert model.can_denoise
    assert model.config.token_shift == shift
    for mode in ("ar", "linear", "quadratic", "diffusion"):
        block_length = 8 if mode == "quadratic" else 16
        options = readable(mode, max_tokens=80, block_length=block_length)
        answer = generate(model, "sea", **options)
        assert answer.text == TEXT.strip(), mode
        if mode == "diffusion":
            assert answer.stats.tokens_per_forward > 5
        if mode == "linear":
            assert answer.stats.acceptance_length > 8


def test_a_run_from_before_the_embedding_was_a_module_goes_on(base, data, tmp_path):
    config = config_of(base, data, tmp_path / "run", steps=4, save_every=2)
    begun = Trainer(config, progress=False)
    begun.run(should_stop=lambda: begun.step == 2)
    path = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        old = {name.replace("embedding.weight", "embedding"): t for name, t in tensors.items()}
        assert old.keys() != tensors.keys()
        save_file(old, file)
    continued, done = run(config)
    assert done
    whole, _ = run(config_of(base, data, tmp_path / "whole", steps=4, save_every=2))
    for name, value in weights(whole).items():
        assert torch.equal(weights(continued)[name], value), name


LED = {"placement": "random", "noisy_tokens": 32, "block_length": 8}
SEEDED = {"placement": "grid", "block_length": 8}


@pytest.mark.parametrize(
    ("train", "blocks", "form"),
    [
        ("everything", LED, "led"),
        ("everything", SEEDED, "seeded"),
        ("everything", {**SEEDED, "draft_form": "led"}, "led"),
        ("adapter", SEEDED, "led"),
        ("adapter", {**LED, "draft_form": "seeded"}, "seeded"),
    ],
)
def test_the_result_says_how_it_drafts_and_is_decoded_so(base, data, tmp_path, train, blocks, form):
    step = {"blocks": blocks, "objective": {"diffusion_loss_weight": 1.0}}
    options = {"adapter": {"rank": 4}} if train == "adapter" else {}
    run(config_of(base, data, tmp_path / "run", train=train, step=step, steps=1, **options))
    final = tmp_path / "run" / "final"
    model = load(base, adapter=final) if train == "adapter" else load(final)
    assert model.config.draft_form == form
    context = resolve(model, (3, 1, 4), GenerationOptions(mode="diffusion"))
    assert context.rolling_block == (form == "led")


def test_an_adapter_leaves_ar_to_the_bit_and_is_loadable(base, data, tmp_path):
    _, done = run(
        config_of(base, data, tmp_path / "run", train="adapter", adapter={"rank": 4, "scale": 2.0})
    )
    assert done
    plain = load(base)
    adapted = load(base, adapter=tmp_path / "run" / "final")
    assert adapted.adapter_scope == "denoise"
    options = {"max_tokens": 20, "logprobs": 0}
    before, after = generate(plain, "line 3", **options), generate(adapted, "line 3", **options)
    assert before.token_ids == after.token_ids
    assert before.logprobs == after.logprobs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 2, "micro_batch_size": 3}, "micro_batch_size"),
        ({"data": {"files": ["nowhere.jsonl"]}}, "nowhere.jsonl"),
        ({"data": {"files": []}}, "data.files"),
        ({"step": {"blocks": {"block_length": 0}}}, "block_length"),
        ({"optimizer": {}}, "optimizer: no such field"),
        ({"step": {"blocks": {"context": "block"}}}, "ar_loss_weight"),
    ],
)
def test_bad_configurations_are_refused_before_any_work(base, data, tmp_path, change, words):
    output = tmp_path / "run"
    with pytest.raises(InputError, match=words):
        Trainer(config_of(base, data, output, **change), progress=False)
    assert not output.exists()


@pytest.mark.parametrize("recipe", ["denoise", "joint", "nld_draft"])
def test_the_recipes_run(base, data, tmp_path, recipe):
    small = {"steps": 2, "batch_size": 2, "model": str(base), "output": str(tmp_path / "run")}
    small |= {"data.files": [str(data)], "data.sequence_length": 128, "evaluation.every": 0}
    small |= {"adapter.rank": 2} if recipe != "joint" else {}
    _, done = run(read_train_config(RECIPES / f"{recipe}.yaml", small))
    assert done
    losses = [
        json.loads(x)["loss"] for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)


def test_an_adapter_says_that_it_was_trained_with_token_shift(base, data, tmp_path):
    shifted = {"blocks": {"block_length": 8, "token_shift": True}}
    options = {"train": "adapter", "adapter": {"rank": 4}, "steps": 1}
    run(config_of(base, data, tmp_path / "run", step=shifted, **options))
    final = tmp_path / "run" / "final"
    assert load(base, adapter=final).config.token_shift
    assert not load(base).config.token_shift
    options["adapter"] = {"rank": 4, "start_from": str(final)}
    with pytest.raises(InputError, match=r"adapter\.start_from.*with token shift"):
        Trainer(config_of(base, data, tmp_path / "other", **options), progress=False)


def test_a_draft_adapter_has_the_form_of_a_model_that_denoises(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "one", steps=1))
    shifted = {"blocks": {"block_length": 8, "token_shift": True}}
    options = {"train": "adapter", "adapter": {"rank": 4, "scope": "draft"}, "step": shifted}
    config = config_of(tmp_path / "one" / "final", data, tmp_path / "two", **options)
    with pytest.raises(InputError, match="adapter: trained with token shift"):
        Trainer(config, progress=False)


def test_a_run_can_start_from_an_adapter(base, data, tmp_path):
    shape = {"rank": 4, "scale": 2.0}
    first, _ = run(config_of(base, data, tmp_path / "one", train="adapter", adapter=shape))
    start = {"start_from": str(tmp_path / "one" / "final")}
    config = config_of(base, data, tmp_path / "two", train="adapter", adapter=shape | start)
    second = Trainer(config, progress=False)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value)
    other = config_of(base, data, tmp_path / "x", train="adapter", adapter={"rank": 2} | start)
    with pytest.raises(InputError, match=r"adapter\.start_from"):
        Trainer(other, progress=False)


def test_another_run_in_the_directory_is_refused(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=1))
    with pytest.raises(InputError, match=r"config\.seed 0, not 1"):
        Trainer(config_of(base, data, tmp_path / "run", steps=1, seed=1), progress=False)
    Trainer(config_of(base, data, tmp_path / "run", steps=2), progress=False)  # longer is fine


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(base, data, tmp_path):
    trainer = Trainer(config_of(base, data, tmp_path / "run", save_every=2), progress=False)
    original = trainer.train_step

    def poisoned():
        if trainer.step == 3:
            with torch.no_grad():
                trainer.trained[0].parameter.fill_(float("nan"))
        return original()

    trainer.train_step = poisoned
    with pytest.raises(TrimodeError, match="loss of step 4 is nan"):
        trainer.run()
    assert [step for step, _ in trainer.directory.checkpoints()] == [2]
    _, done = run(config_of(base, data, tmp_path / "run", save_every=2))
    assert done


def test_a_full_disk_leaves_the_last_checkpoint_to_continue_from(base, data, tmp_path, monkeypatch):
    config = config_of(base, data, tmp_path / "run", save_every=2)
    original = run_directory.save_file

    def save_file(tensors, path):
        if "step-000004" in str(path):
            Path(path).write_bytes(b"half")
            raise SafetensorError("No space left on device")
        original(tensors, path)

    monkeypatch.setattr(run_directory, "save_file", save_file)
    with pytest.raises(OSError, match="No space left"):
        run(config)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-000002"]
    monkeypatch.undo()
    whole, _ = run(config_of(base, data, tmp_path / "whole", save_every=2))
    again, done = run(config)
    assert done
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


def test_what_a_killed_save_left_is_removed(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=2, save_every=2))
    left = tmp_path / "run" / "checkpoints" / ".step-000004.partial-77"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    run(config_of(base, data, tmp_path / "run", steps=2, save_every=2))
    assert not left.exists()


def test_a_damaged_checkpoint_is_named(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=2, save_every=2))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    (checkpoint / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors.*remove step-000002"):
        run(config_of(base, data, tmp_path / "run", steps=4, save_every=2))


def test_a_checkpoint_of_another_model_is_refused(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=1))
    other = tmp_path / "other"
    write_tiny_checkpoint(other, "llama", hidden_size=32)
    config = config_of(other, data, tmp_path / "run", steps=2)
    with pytest.raises(InputError, match="holds a run with"):
        Trainer(config, progress=False)


@pytest.mark.parametrize("train", ["adapter", "everything"])
def test_the_result_can_be_exported_in_half_precision(base, data, tmp_path, train):
    options = {"train": train, "adapter": {"rank": 2}, "steps": 1}
    _, _ = run(config_of(base, data, tmp_path / "run", export_dtype="fp16", **options))
    (file,) = (tmp_path / "run" / "final").glob("*model.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    where = {"adapter": tmp_path / "run" / "final"} if train == "adapter" else {}
    source = base if train == "adapter" else tmp_path / "run" / "final"
    assert generate(load(source, **where), "p", mode="diffusion", max_tokens=4).stats.nfe > 1


def test_metrics_go_to_tensorboard_too(base, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(config_of(base, data, tmp_path / "run", tensorboard=True, steps=2))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [event.value for event in board.Scalars("loss")]
    assert found == pytest.approx([row["loss"] for row in rows])


def test_evaluation_measures_losses_and_decoding(base, tmp_path):
    data = tmp_path / "many.jsonl"
    row = {"prompt": "a", "completion": "b c d e f."}
    data.write_text("".join(json.dumps(row) + "\n" for _ in range(200)))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    config = config_of(
        base, data, tmp_path / "run",
        evaluation={"every": 2, "prompts": str(prompts), "max_tokens": 8},
        steps=2,
    )  # fmt: skip
    run(config)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (found,) = [row for row in rows if row.get("evaluation")]
    for name in ("held_out_ar_loss", "held_out_diffusion_loss", "acceptance_length"):
        assert found[name] > 0
    assert GenerationOptions(mode="linear").mode == "linear"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_within_a_save_do_nothing(base, data, tmp_path, number, monkeypatch):
    config = config_of(base, data, tmp_path / "run", steps=100)
    write = run_directory.RunDirectory.save

    def signalled(self, step, groups, processes):
        for other in (number, signal.SIGINT, signal.SIGTERM, number):
            signal.raise_signal(other)
        write(self, step, groups, processes)

    monkeypatch.setattr(run_directory.RunDirectory, "save", signalled)
    monkeypatch.setattr("trimode.training.trainer._SAME_SIGNAL_SECONDS", 0.0)
    before = [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)]
    trainer, done = run(config)
    assert not done
    assert trainer.step == 3
    assert [step for step, _ in trainer.directory.checkpoints()] == [3]
    assert [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)] == before


def test_handlers_that_the_caller_installs_after_a_signal_stay(base, data, tmp_path):
    ignored = []

    def ignore():
        signal.signal(signal.SIGINT, lambda *_: ignored.append(True))

    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(config_of(base, data, tmp_path / "run", steps=100), progress=False)
    try:
        stopped = trainer.run(
            should_stop=lambda: signal.raise_signal(signal.SIGINT), on_signalled=ignore
        )
        signal.raise_signal(signal.SIGINT)  # the same one, once more
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stopped, ignored) == (False, [True])


def test_a_later_interrupt_ends_a_step_that_a_person_will_not_wait_for(base, data, tmp_path):
    config = config_of(base, data, tmp_path / "run", steps=100)
    trainer = Trainer(config, progress=False)
    step, now = trainer.train_step, [0.0]

    def endless():
        row = step()
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # the same one
            now[0] = 10.0
            signal.raise_signal(signal.SIGTERM)  # from no person
            signal.raise_signal(signal.SIGINT)
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", endless)
        patch.setattr("trimode.training.trainer.time.monotonic", lambda: now[0])
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert trainer.step == 2


def test_a_save_that_is_too_slow_for_launchers_is_said(base, data, tmp_path, monkeypatch, capfd):
    run(config_of(base, data, tmp_path / "quick"))
    assert "SIGTERM" not in capfd.readouterr().err
    monkeypatch.setattr("trimode.training.trainer._GRACE_SECONDS", 0.0)
    run(config_of(base, data, tmp_path / "slow"))
    warned = capfd.readouterr().err
    assert warned.count("a step and a checkpoint take") == 1  # of two checkpoints

    def stop():
        signal.raise_signal(signal.SIGTERM)
        return False

    trainer = Trainer(config_of(base, data, tmp_path / "stopped"), progress=False)
    assert not trainer.run(should_stop=stop)
    assert "the checkpoint was whole" in capfd.readouterr().err
