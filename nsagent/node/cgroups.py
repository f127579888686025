"""The cgroups of a node for its sampler: which there are, what their files say, and how they ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Final

from nsagent.cgroups.ends import Ended, Ends
from nsagent.cgroups.falls import Kept
from nsagent.cgroups.layout import Layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.selection import REASONS, Selection
from nsagent.cgroups.stats import CgroupStats
from nsagent.cgroups.tree import Tree
from nsagent.history import History
from nsagent.kernel.lane import CgroupLane
from nsagent.records import read_file, write_file
from nsagent.sample import FileFigures

log = logging.getLogger(__name__)

_TOO_LONG: Final = "path_too_long"


class NodeCgroups:
    """The cgroups of a layout as sample.CgroupSource."""

    def __init__(self, layout: Layout, without: Collection[str] = (), *, path: str | None = None) -> None:
        """`without` names what is not read of any: see cgroups.sources. `path`: a file by which counters outlive the agent."""
        self._tree = Tree(layout, retain=0, watched=True)  # the sampler keeps what ended
        self._reader = Reader(layout, without=without)
        self._path = path
        self._saved: dict[str, Kept] = {}
        for document in read_file(path) if path else ():
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                self._saved = {name: Kept.from_json(kept) for name, kept in document["cgroups"].items()}
        self._reader.go_on(self._saved)
        self._lane: CgroupLane | None = None
        self._accounting = layout.accounting[1].key
        self._ended: dict[str, Ended] = {}
        self._skipped = dict.fromkeys((*REASONS, _TOO_LONG), 0)
        self._too_long: frozenset[str] = frozenset()
        self._counted: tuple[int, Selection, Mapping[str, int]] = -1, Selection(), {}  # a generation of the tree, and its ids
        self.ends: Ends | None = None  # where the kernel tells of births and ends

    def read(self, selection: Selection) -> dict[str, CgroupStats]:
        """Look which cgroups there are, and read the files of those that are selected."""
        if self.ends:
            self.ends.drain()
        self._tree.scan()
        unwalked = len(self._reader.unwalked)
        self._count_too_long()
        self._count_skipped(selection)
        found = self._reader.read_all(self._tree, None if selection.everything else selection.selects)
        for hierarchy, reason in list(self._reader.unwalked.items())[unwalked:]:
            log.warning("event=no_fast_lane hierarchy=%s reason=%s", hierarchy, reason)
        if self.ends:
            self._ended |= self.ends.settle(self._tree.cgroups, found)
        self._save()
        return found

    def _save(self) -> None:
        """Keep, before it is shown, what a kill would have fall."""
        kept = self._reader.keep() if self._path else {}
        if self._path and kept != self._saved:
            write_file(self._path, {"cgroups": {name: each.to_json() for name, each in kept.items()}})
            self._saved = kept

    def files(self) -> FileFigures:
        """Return how the files of the last `read` fared."""
        pace, falls = self._reader.pace, self._reader.falls.counts
        memory = self._reader.kernel_memory_bytes
        return FileFigures(memory, dict(pace.backoffs), dict(self._skipped), dict(pace.reads), dict(falls))

    def _count_too_long(self) -> None:
        """Count those that are new among what has no path that a system call takes; the log says so of the first."""
        before, self._too_long = self._too_long, self._tree.too_long
        new = len(self._too_long - before)
        if new and not self._skipped[_TOO_LONG]:
            log.warning("event=cgroups_skipped reason=%s count=%d", _TOO_LONG, new)
        self._skipped[_TOO_LONG] += new

    def _count_skipped(self, selection: Selection) -> None:
        """Count those not selected that are new, or that another selection had selected."""
        generation, before, known = self._counted
        if (self._tree.generation, selection) == (generation, before):
            return
        if selection.everything:
            self._counted = self._tree.generation, selection, {}
            return
        ids = self.accounting_ids()
        for path in self._tree.cgroups:
            reason = selection.reason(path)
            if reason is not None and (path not in known or known[path] != ids.get(path, 0) or before.selects(path)):
                self._skipped[reason] += 1
        self._counted = self._tree.generation, selection, {path: ids.get(path, 0) for path in self._tree.cgroups}

    def ended(self) -> dict[str, Ended]:
        """Return the last values of what had ended by the last `read`, once."""
        ended, self._ended = self._ended, {}
        return ended

    def use(self, lane: CgroupLane | None) -> None:
        """Read by walks of a hierarchy what they know."""
        self._reader.lane = self._lane = lane

    def close(self) -> None:
        """Close what watches the hierarchies, the files, and the walks."""
        if self._lane:
            self._lane.close()
        self._tree.close()
        self._reader.close()

    def path_of(self, accounting_id: int) -> str | None:
        """Return the path of a cgroup by its id in the accounting hierarchy, as of the last walk, or as it was made."""
        return self._tree.path_of(accounting_id) or (self.ends.path_of(accounting_id) if self.ends else None)

    def accounting_ids(self) -> dict[str, int]:
        """Return the ids in the accounting hierarchy as of the last walk, by path."""
        key = self._accounting
        return {path: cgroup.ids[key] for path, cgroup in self._tree.cgroups.items() if key in cgroup.ids}


class NodeEnds:
    """The births and ends of a node's cgroups as sample.CgroupEnds; their counts go on when the agent ends."""

    def __init__(self, cgroups: NodeCgroups, ends: Ends, history: History) -> None:
        self.ended, self.born, self.created = cgroups.ended, ends.born, ends.created
        self._ends = ends
        self._history = history
        self._before = {outcome: history.counts.values[f"end {outcome}"] for outcome in ends.final_reads()}

    def final_reads(self) -> dict[str, int]:
        """Return how the ends were, by outcome."""
        rise, before = self._history.counts.rise, self._before
        return {outcome: rise(f"end {outcome}", before[outcome] + n) for outcome, n in self._ends.final_reads().items()}
