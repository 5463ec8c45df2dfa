"""How many threads a pass gets at most: the physical cores that this process may use."""

import math
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")


def threads() -> int:
    """Threads of a pass: PyTorch's number, but no more than there are cores to use.

    `OMP_NUM_THREADS` and `torch.set_num_threads` set PyTorch's number.
    """
    return min(torch.get_num_threads(), usable_cores())


@cache
def usable_cores() -> int:
    """Physical cores that this process may run on, and no more than its cgroup's quota pays for."""
    cpus = _allowed_cpus()
    cores = physical_cores(cpus, _CPUS)
    own = Path("/proc/self/cgroup")
    quota = cgroup_quota(own.read_text() if own.is_file() else "", _CGROUPS)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int], directory: Path) -> int:
    """Cores that some logical CPUs belong to; each counts as one where the system does not say.

    Args:
        cpus: numbers of logical CPUs.
        directory: Linux's `/sys/devices/system/cpu`.
    """
    cores = set()
    for cpu in cpus:
        siblings = directory / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def cgroup_quota(membership: str, root: Path) -> float | None:
    """CPUs that this process's cgroup may use at a time; None if there is no limit.

    A parent's limit holds for its children.

    Args:
        membership: text of `/proc/self/cgroup`.
        root: where cgroups are mounted, `/sys/fs/cgroup`.
    """
    found: list[float] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            places, read = [root], _version_2
        elif "cpu" in controllers.split(","):
            places, read = [root / controllers, root / "cpu"], _version_1
        else:
            continue
        for place in places:
            # In a container the path may be the host's; then the root is the container's own.
            inside = Path(path.lstrip("/"))
            limits = [read(place / part) for part in (inside, *inside.parents)]
            found.extend(limit for limit in limits if limit is not None)
    return min(found, default=None)


def _version_2(group: Path) -> float | None:
    text = _text(group / "cpu.max").split()
    return None if len(text) != 2 or text[0] == "max" else int(text[0]) / int(text[1])


def _version_1(group: Path) -> float | None:
    quota, period = (_text(group / f"cpu.cfs_{kind}_us") for kind in ("quota", "period"))
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
