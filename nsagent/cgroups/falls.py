"""Counters of the kernel's files that fall in a cgroup that lives on, which a counter must not: what they lost is carried on.

Known: v1's blkio.*_recursive loses what a child had when it is removed; cpuacct.usage, *.failcnt fall to 0 when that is
written to them. To whoever reads a counter a fall is a restart from 0, and all there still is a rise that never was. So each
counter goes on from where it was, by what the kernel counts from then on; a cgroup that is made anew does begin at 0.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from nsagent.cgroups.stats import IoDevice, Pressure

Key = tuple[str, ...]  # a field, and in a mapping its key too
Lost = dict[str, dict[Key, int]]  # by part

COUNTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": ("usage_ns", "user_ns", "system_ns", "periods", "throttled_periods", "throttled_ns", "bursts", "burst_ns"),
    "memory": ("minor_faults", "major_faults", "refaults_anon", "refaults_file", "scanned_pages", "reclaimed_pages"),
    "pids": ("limit_hits",),
}
# A part's mapping that has counters: these fields of its values, or the values themselves.
MAPPINGS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "memory": ("events", ()),
    "io": ("devices", IoDevice._fields),
    "pressure": ("resources", Pressure._fields),
    "hugetlb": ("sizes", ("failures",)),
    "misc": ("events", ()),
}


class Kept(NamedTuple):
    """What the next reader needs of a cgroup so that no counter falls: its ids by hierarchy, what its counters lost, and, where
    removals of children may be missed in between, the IO that was shown last."""

    ids: Mapping[str, int]
    lost: Lost
    io: Mapping[str, IoDevice]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        lost = [[part, key, number] for part, losses in self.lost.items() for key, number in losses.items()]
        return {"ids": self.ids, "lost": lost, "io": self.io}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Kept:
        """Return what `to_json` was of. Raises KeyError, TypeError, ValueError, AttributeError where it was of nothing."""
        lost: Lost = {}
        for part, key, number in document["lost"]:
            lost.setdefault(part, {})[tuple(key)] = int(number)
        return cls(dict(document["ids"]), lost, {device: IoDevice(*values) for device, values in document["io"].items()})


class Falls:
    """Counts falls by (part, field), a counter at a time, in `counts`."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def carry(self, lost: Lost, part: str, old: Any, new: Any, is_same: Callable[[], bool]) -> Any:
        """Return what is read `new` of a part with what its counters `lost` before and now; `old` is what was returned last.

        `is_same` tells whether it is still the same cgroup; it is asked where something fell.
        """
        if new is None:
            return None
        carried = _raise(part, new, lost[part]) if part in lost else new
        fallen = dict(_fallen(part, old, carried)) if old is not None else {}
        if not fallen:
            return carried
        if not is_same():
            lost.clear()
            return new
        self.counts.update((part, key[0]) for key in fallen)
        losses = lost.setdefault(part, {})
        for key, number in fallen.items():
            losses[key] = losses.get(key, 0) + number
        return _raise(part, new, losses)


def _fallen(part: str, old: Any, new: Any) -> Iterator[tuple[Key, int]]:
    for field in COUNTERS.get(part, ()):
        was, now = getattr(old, field), getattr(new, field)
        if was is not None and now is not None and now < was:
            yield (field,), was - now
    name, fields = MAPPINGS.get(part, ("", ()))
    if not name or getattr(old, name) == getattr(new, name):
        return
    before = getattr(old, name)
    for key, each in getattr(new, name).items():
        for field in (fields or (name,)) if key in before else ():
            was, now = (getattr(before[key], field), getattr(each, field)) if fields else (before[key], each)
            if was is not None and now is not None and now < was:
                yield (field, key), was - now


def _raise(part: str, stats: Any, losses: Mapping[Key, int]) -> Any:
    """Return a part with its counters raised by what they lost."""
    name, fields = MAPPINGS.get(part, ("", ()))
    changes: dict[str, Any] = {}
    for (field, *keys), number in losses.items():
        if not keys:
            now = getattr(stats, field)
            changes |= {} if now is None else {field: now + number}
            continue
        found = changes.setdefault(name, dict(getattr(stats, name)))
        each = found.get(keys[0])
        now = getattr(each, field, None) if fields else each
        if now is not None:
            found[keys[0]] = each._replace(**{field: now + number}) if fields else now + number
    return stats._replace(**changes)
