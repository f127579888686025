"""The parts that v1 and v2 tell nearly alike: cpuset, pressure, hugetlb, rdma, misc, state. Bytes to stats; all is pure.

Sources: Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/{cpusets,hugetlb,rdma,misc,freezer-subsystem}.rst; accounting/psi.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from nsagent.cgroups import v1
from nsagent.cgroups.limits import parse_cpus
from nsagent.cgroups.stats import (
    Countable,
    CpusetStats,
    HugetlbSize,
    HugetlbStats,
    MiscStats,
    Pressure,
    PressureStats,
    RdmaStats,
    StateStats,
)
from nsagent.cgroups.v2 import Files, parse_flat, parse_limit, parse_number
from nsagent.errors import NsagentError

_HUGETLB: Final = re.compile(r"hugetlb\.([0-9]+[KMG]B)\.(current|max|events|usage_in_bytes|limit_in_bytes|failcnt)")
_TOTAL: Final = re.compile(rb"^(some|full) .*\btotal=([0-9]+)", re.MULTILINE)


def cpuset(files: Files) -> CpusetStats | None:
    """Make CpusetStats of effective lists; None where there is neither."""
    cpus = _count(files, "cpuset.cpus.effective", "cpuset.effective_cpus")
    mems = _count(files, "cpuset.mems.effective", "cpuset.effective_mems")
    return None if cpus is None and mems is None else CpusetStats(cpus, mems)


def _count(files: Files, *names: str) -> int | None:
    for name in names:
        if name in files:
            try:
                text = files[name].decode("ascii").strip()
                return len(parse_cpus(text)) if text else 0
            except (UnicodeDecodeError, ValueError, NsagentError):
                return None
    return None


def pressure(files: Files) -> PressureStats | None:
    """Make PressureStats of RESOURCE.pressure, whose totals are in usec. irq has no `some`, old kernels' cpu no `full`."""
    found = {}
    for name, text in files.items():
        totals = {kind: int(total) * 1000 for kind, total in _TOTAL.findall(text)}
        if totals:
            found[name.removesuffix(".pressure")] = Pressure(totals.get(b"some"), totals.get(b"full"))
    return PressureStats(found) if found else None


def hugetlb_files(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of a cgroup directory's files that `hugetlb` reads."""
    return tuple(sorted(name for name in names if _HUGETLB.fullmatch(name)))


def hugetlb(files: Files) -> HugetlbStats | None:
    """Make HugetlbStats of the sizes there are files of; v1 counts failures in failcnt, v2 as `max` of events."""
    sizes: dict[str, dict[str, bytes]] = {}
    for name, text in files.items():
        match = _HUGETLB.fullmatch(name)
        if match:
            sizes.setdefault(match[1], {})[match[2]] = text
    found = {}
    for size, each in sizes.items():
        usage, failures = parse_number(each.get("current")), parse_flat(each.get("events")).get("max")
        limit = parse_limit(each.get("max"))
        if "usage_in_bytes" in each:
            usage, failures = parse_number(each["usage_in_bytes"]), parse_number(each.get("failcnt"))
            limit = v1.parse_bytes_limit(each.get("limit_in_bytes"))
        found[size] = HugetlbSize(usage, limit, failures)
    return HugetlbStats(found) if found else None


def rdma(files: Files) -> RdmaStats | None:
    """Make RdmaStats; no device is listed before its first object. None without rdma.current, as in the root."""
    if "rdma.current" not in files:
        return None
    limits = {key: parse_limit(value) for key, value in _rdma(files.get("rdma.max", b""))}
    return RdmaStats({key: Countable(parse_number(value), limits.get(key)) for key, value in _rdma(files["rdma.current"])})


def _rdma(text: bytes) -> Iterator[tuple[tuple[str, str], bytes]]:
    for line in text.splitlines():
        device, *pairs = line.split() or [b""]
        for pair in pairs:
            key, _, value = pair.partition(b"=")
            yield (device.decode("ascii", "replace"), key.decode("ascii", "replace")), value


def misc(files: Files) -> MiscStats | None:
    """Make MiscStats; a resource without room on this host is in no file. None without misc.current."""
    if "misc.current" not in files:
        return None
    limits = {}
    for line in files.get("misc.max", b"").splitlines():
        key, _, value = line.partition(b" ")
        limits[key.decode("ascii", "replace")] = parse_limit(value)
    usage = parse_flat(files["misc.current"])
    events = parse_flat(files.get("misc.events"))
    return MiscStats(
        {name: Countable(number, limits.get(name)) for name, number in usage.items()},
        {name.removesuffix(".max"): number for name, number in events.items() if name.endswith(".max")},
    )


def state(files: Files) -> StateStats | None:
    """Make StateStats. On a hybrid host v1's freezer or v2's may stand still; `populated` and descendants are v2's."""
    if not files:
        return None
    events, stat = parse_flat(files.get("cgroup.events")), parse_flat(files.get("cgroup.stat"))
    frozen = [events["frozen"] == 1] if "frozen" in events else []
    word = files.get("freezer.state", b"").strip()
    if word in (b"FROZEN", b"FREEZING", b"THAWED"):
        frozen.append(word == b"FROZEN")
    return StateStats(
        frozen=any(frozen) if frozen else None,
        populated=events["populated"] == 1 if "populated" in events else None,
        descendants=stat.get("nr_descendants"),
        dying_descendants=stat.get("nr_dying_descendants"),
    )
