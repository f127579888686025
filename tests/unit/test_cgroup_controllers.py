"""Each controller the kernel knows, mounted or not."""

from __future__ import annotations

from pathlib import Path

from nsagent.cgroups.controllers import Controller, read_controllers
from nsagent.cgroups.layout import Hierarchy, Layout

KNOWN = """\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpu\t1\t12\t1
cpuacct\t1\t12\t1
blkio\t0\t9\t1
memory\t0\t9\t0
net_cls\t0\t9\t1
"""


def test_where_each_is(tmp_path: Path) -> None:
    (tmp_path / "cgroups").write_text(KNOWN)
    for name in ("cpu/a/b", "cpu/c", "unified"):
        (tmp_path / name).mkdir(parents=True)
    cpu, unified = str(tmp_path / "cpu"), str(tmp_path / "unified")
    v1 = Hierarchy(1, cpu, frozenset({"cpu", "cpuacct"}))
    v2 = Hierarchy(2, unified, frozenset({"io", "misc"}))
    assert read_controllers(Layout((v1, v2), str(tmp_path))) == [
        Controller("cpu", 1, cpu, 4),
        Controller("cpuacct", 1, cpu, 4),
        Controller("io", 2, unified, 1),
        Controller("misc", 2, unified, 1),  # never in /proc/cgroups of all kernels
        Controller("memory", None, "", None, enabled=False),
        Controller("net_cls", None, "", None),
    ]


def test_without_the_file(tmp_path: Path) -> None:
    v2 = Hierarchy(2, str(tmp_path), frozenset({"pids"}))
    assert read_controllers(Layout((v2,), str(tmp_path))) == [Controller("pids", 2, str(tmp_path), 1)]
