"""Which runner takes a model, and what the C++ pass refuses."""

from dataclasses import fields, make_dataclass, replace

import pytest
import torch

from tests.reference import families
from trimode.config import ModelConfig, RopeConfig
from trimode.model import build_runner, choose_format, native
from trimode.model.build import choose_runner
from trimode.model.formats import Int8Format
from trimode.model.native import structs
from trimode.model.runners import RUNNERS, EagerRunner, NativeRunner, RowwiseRunner
from trimode.model.runners.native import unknown_fields

built = pytest.mark.skipif(native.library() is None, reason="not built here")
INT8 = Int8Format()


def config_of(base="llama", **changes):
    _, config, _ = families.build(base)
    return replace(config, **changes)


def with_new_field(config, name, kind, default, value):
    """The config as it would be if `ModelConfig` had one more field."""
    parent = type(config)
    wider = make_dataclass(
        "Wider", [(name, kind, default)], bases=(parent,), frozen=True, kw_only=True
    )
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return wider(**values, **{name: value})


@built
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_library_takes_every_family_of_ours_or_is_said_not_to(family):
    known = family not in families.BY_OPERATORS
    assert (unknown_fields(config_of(family)) == []) == known
    assert NativeRunner.supports(config_of(family), INT8) == known


@built
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"family": "gemma3"}, "family"),
        ({"head_dim": 20}, "head_dim"),
        ({"hidden_size": 100}, "hidden_size"),
        ({"intermediate_size": 72}, "intermediate_size"),
    ],
)
def test_the_library_refuses_what_it_was_not_written_for(changes, field):
    config = config_of(**changes)
    assert unknown_fields(config) == [field]
    assert not NativeRunner.supports(config, INT8)


@built
def test_the_library_refuses_heads_that_do_not_fill_its_rows():
    assert not NativeRunner.supports(config_of(num_heads=3, num_kv_heads=1, head_dim=8), INT8)


@built
@pytest.mark.parametrize(
    ("name", "kind", "default", "value"),
    [
        ("final_logit_softcap", "float | None", None, 30.0),
        ("norm_after", bool, False, True),
        ("hidden_activation", str, "silu", "gelu_tanh"),
    ],
)
def test_the_library_refuses_a_switch_that_it_has_never_heard_of(name, kind, default, value):
    """Unless the switch is off: then the model is one that it knows."""
    on = with_new_field(config_of(), name, kind, default, value)
    assert unknown_fields(on) == [name]
    assert not NativeRunner.supports(on, INT8)
    off = with_new_field(config_of(), name, kind, default, default)
    assert NativeRunner.supports(off, INT8)


@built
def test_the_library_refuses_a_rope_that_it_has_never_heard_of():
    rope = with_new_field(RopeConfig(), "partial_rotary_factor", float, 1.0, 0.5)
    assert unknown_fields(config_of(rope=rope)) == ["rope"]


@built
def test_a_model_that_the_library_refuses_runs_by_operators_in_int8_and_says_so(caplog):
    _, config, tensors = families.build("llama")
    config = replace(config, family="gemma3")
    runner = build_runner(config, tensors.__getitem__, dtype="int8")
    assert isinstance(runner, RowwiseRunner)
    assert "int8 runs slowly: the C++ pass does not know this model's family" in caplog.text
    assert "PyTorch operators" in runner.describe()


@built
def test_auto_is_int8_only_for_models_that_the_library_takes():
    assert choose_format("auto", "cpu", config_of()).name == "int8"
    assert choose_format("auto", "cpu", config_of(family="gemma3")).name != "int8"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_exactly_one_runner_takes_a_model_by_choice(dtype):
    _, config, tensors = families.build("llama")
    runner = build_runner(config, tensors.__getitem__, dtype=dtype)
    expected = NativeRunner if native.library() else RowwiseRunner
    assert type(runner) is (expected if dtype == "int8" else EagerRunner)
    assert next(k for k in RUNNERS if k.supports(config, runner.format)) is type(runner)


def test_a_runner_is_chosen_for_what_is_trained_too():
    _, config, tensors = families.build("llama")
    runner = build_runner(config, tensors.__getitem__, dtype="fp32", plain=True)
    again = choose_runner(runner.transformer, runner.format)
    assert isinstance(again, EagerRunner)
    assert again.transformer is runner.transformer
    assert all(isinstance(p, torch.nn.Parameter) for p in again.transformer.parameters())


@built
def test_python_and_the_library_agree_in_every_size_and_constant():
    library = native.library()
    assert structs.mismatch(library) is None
    for name, value in structs.shared_facts().items():
        assert library.trimode_fact(name.encode()) == value, name
    assert library.trimode_fact(b"no such thing") == -1


@built
@pytest.mark.parametrize("name", ["sizeof Pass", "feature_multiple"])
def test_a_library_that_differs_is_not_used(monkeypatch, name):
    facts = structs.shared_facts() | {name: 4096}
    monkeypatch.setattr(structs, "shared_facts", lambda: facts)
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    assert native.library() is not None


def test_every_field_of_a_model_is_either_known_to_the_library_or_refused():
    """Fields without a default must be listed: nothing says what would be harmless."""
    known = {field.name for field in fields(ModelConfig)}
    assert known >= {"rope", "family", "draft_form"}
    assert unknown_fields(config_of()) == []
