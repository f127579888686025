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
    v1 = Hierarchy(1, "/cg/cpu", frozenset({"cpu", "cpuacct"}))
    v2 = Hierarchy(2, "/cg/unified", frozenset({"io", "misc"}))
    assert read_controllers(Layout((v1, v2), str(tmp_path))) == [
        Controller("cpu", 1, "/cg/cpu", 12),
        Controller("cpuacct", 1, "/cg/cpu", 12),
        Controller("io", 2, "/cg/unified", 9),
        Controller("misc", 2, "/cg/unified", None),  # never in /proc/cgroups of all kernels
        Controller("memory", None, "", None, enabled=False),
        Controller("net_cls", None, "", None),
    ]


def test_without_the_file(tmp_path: Path) -> None:
    v2 = Hierarchy(2, "/cg", frozenset({"pids"}))
    assert read_controllers(Layout((v2,), str(tmp_path))) == [Controller("pids", 2, "/cg", None)]
