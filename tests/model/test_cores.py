"""Threads of a pass: physical cores, and a cgroup's quota."""

import pytest

from trimode.model.native import cores


def siblings(directory, groups):
    for group in groups:
        for cpu in group:
            place = directory / f"cpu{cpu}" / "topology"
            place.mkdir(parents=True)
            (place / "thread_siblings_list").write_text(",".join(map(str, group)) + "\n")


def test_hyperthreads_of_a_core_count_once(tmp_path):
    siblings(tmp_path, [(0, 4), (1, 5), (2, 6), (3, 7)])
    assert cores.physical_cores(range(8), tmp_path) == 4
    assert cores.physical_cores([0, 4, 1], tmp_path) == 2
    assert cores.physical_cores([9, 10], tmp_path) == 2  # the system does not say


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/host/path\n", {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:cpu,cpuacct:/docker/x\n0::/\n",
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("8:pids:/\n", {"cpu.max": "100000 100000"}, None),
        ("", {}, None),
    ],
)
def test_a_cgroups_quota(tmp_path, membership, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores.cgroup_quota(membership, tmp_path) == expected


def test_a_pass_has_no_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(cores.torch, "get_num_threads", lambda: 16)
    assert cores.threads() == 2
    monkeypatch.setattr(cores.torch, "get_num_threads", lambda: 1)
    assert cores.threads() == 1


def test_this_machine_has_a_core():
    assert cores.usable_cores() >= 1
