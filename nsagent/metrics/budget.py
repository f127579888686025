"""Which cgroups and namespaces fit into --max-series. Each is shown whole or not at all, and the choice holds for its life.

What came first stays; of what came at once, what stands nearer to the root. But what has grown to thousands of series goes first,
or one container with a thousand devices would drive out the rest; the root and the initial namespaces are the node's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from nsagent.namespaces import NamespaceId

log = logging.getLogger(__name__)

Key = str | NamespaceId  # a cgroup's path, or a namespace
_GROSS: Final = 1000
_BELOW: Final = 2  # a namespace ranks with the cgroups of this depth
_INITIAL_INUMS: Final = 0xF0000400  # below: fixed numbers (include/linux/proc_ns.h), and the first of those given out at boot


class Budget:
    """Chooses what is hidden. `dropped` counts the series of what was, as many as it had then; `most` 0 is no limit."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.dropped = 0
        self.hidden: frozenset[Key] = frozenset()
        self._came: dict[Key, int] = {}  # when, as a number that rises
        self._last = 0
        self._told = False

    def see(self, keys: Iterable[Key]) -> int:
        """Take note of all there is now; return how many are new. What is gone is forgotten."""
        present = set(keys)
        for key in self._came.keys() - present:
            del self._came[key]
        self.hidden &= present
        new = sorted(present - self._came.keys(), key=_rank)
        for key in new:
            self._last += 1
            self._came[key] = self._last
        return len(new)

    def drop(self, series: Mapping[Key, int], total: int) -> None:
        """Hide more of what has `series`, until `total`, all samples that are to be shown, is no more than allowed."""
        hidden: list[Key] = []
        size = {key: series[key] // _GROSS if _rank(key)[0] else 0 for key in series}
        for key in sorted(series, key=lambda key: (size[key], self._came[key]), reverse=True):
            if total <= self.most:
                break
            total -= series[key]
            self.dropped += series[key]
            hidden.append(key)
        self.hidden |= frozenset(hidden)
        if hidden and not self._told:
            self._told = True  # nsagent_series_dropped_total goes on
            log.warning("event=series_dropped max_series=%d not_shown=%d first=%r", self.most, len(hidden), hidden[0])


def labels_of(key: Key) -> tuple[str, ...]:
    """Return the label values that say which cgroup or namespace a series is about."""
    return (key,) if isinstance(key, str) else (key.kind, str(key.inum), str(key.id))


def _rank(key: Key) -> tuple[int, int, str]:
    if isinstance(key, str):
        return (key.count("/") if key != "/" else 0), 0, key
    return (_BELOW if key.inum >= _INITIAL_INUMS else 0), key.inum, key.kind
