"""The application and a replica of it, without a cluster."""

import asyncio

import pytest

from trimode.errors import InputError
from trimode.testing import write_tiny_checkpoint

pytest.importorskip("ray")

from trimode.cli.serve import AccessOptions, LimitOptions, RecordOptions, RequestDefaults
from trimode.ray import app
from trimode.ray.replica import Options, Replica


@pytest.fixture
def replica(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "m")
    found = Replica({"model": str(path), "mode": "ar", "dtype": "fp32"})
    yield found
    found._service.stop()


def test_its_options_are_those_of_the_command():
    from dataclasses import fields

    groups = (AccessOptions, LimitOptions, RecordOptions, RequestDefaults)
    for group in groups:
        for field in fields(group):
            expected = 630 if field.name == "shutdown_timeout" else field.default
            assert Options.model_fields[field.name].default == expected
    assert "port" not in Options.model_fields


def test_ray_hears_of_the_limits():
    given = {"max-sequences": 3, "max_waiting": 5, "shutdown-timeout": 70}
    deployment = app(Options.model_validate(given))._bound_deployment
    deployment = deployment._deployment_config
    assert deployment.max_ongoing_requests > 3 + 5
    assert deployment.graceful_shutdown_timeout_s == 70


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": 9000}, "port: given; Ray's proxy listens"),
        ({"max-sequence": 1}, "max-sequence: no such option; did you mean max_sequences?"),
        ({"max-waiting": 1, "max_waiting": 1}, "given twice"),
        ({"max-sequences": 0}, "max_sequences"),
        ({"mode": "fast"}, "mode: 'fast'"),
    ],
)
def test_a_wrong_option_is_named_before_a_replica_starts(given, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        app(Options.model_validate(given))


def test_the_mode_follows_user_config(replica):
    assert replica._service.defaults.mode == "ar"
    replica.reconfigure({"mode": "linear"})
    assert replica._service.defaults.mode == "linear"
    with pytest.raises(InputError, match="mode: 'fast'"):
        replica.reconfigure({"mode": "fast"})
    with pytest.raises(ValueError, match="modes"):
        replica.reconfigure({"modes": "ar"})
    assert replica._service.defaults.mode == "linear"
    replica.reconfigure({})
    assert replica._service.defaults.mode == "ar"


def test_a_replica_whose_engine_has_ended_is_not_healthy(replica):
    async def live():
        await replica._service.start()
        await replica.check_health()
        replica._service.worker._commands.put(lambda: 1 / 0)
        while replica._service.worker.fault is None:
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="thread has ended"):
            await replica.check_health()

    asyncio.run(live())
