"""Namespace history: who made each namespace, from where and by which call, who entered it, and when its last task was gone.

Two sources feed it: the events of traced calls (`feed`) tell who and when, the readings of usage (`observe`) tell which
namespaces have tasks. No single reading is believed alone where it may have raced: see `_quiet`.

    <state-dir>/history.jsonl  the records, written atomically at shutdown and now and then (`save`), read again at the next
                               start of the same boot. A kill -9 costs what came after the last save, and no more.
    <state-dir>/counts.json    counters, written before a sample shows them: they never fall, whatever ends the agent

Memory is bounded: at most `limit` records of a few hundred bytes to two kilobytes. The oldest that ended go first and are
counted in `evicted`; the counters do not depend on the records.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from nsagent.events import SyscallEvent, unpack_id
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind
from nsagent.records import FOR_CHILDREN, FORKS, Call, Counts, Entry, Member, Record, read_file, write_file
from nsagent.usage import Usage

log = logging.getLogger(__name__)

LIMIT: Final = 4096
_FLAGS: Final = tuple((at, kind, kind.flag) for at, kind in enumerate(KINDS))


class About(NamedTuple):
    """What names a namespace to people. Empty is none, or not known; the process is the oldest found in it."""

    owner_user_inum: str = ""
    parent_inum: str = ""
    name: str = ""
    root_pid: str = ""
    comm: str = ""
    cgroup: str = ""
    creator_comm: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What metrics show. `created_ns` has the living namespaces whose making was seen; `joins` is by kind and crossing:
    `to_host` (into an initial namespace), `into_container` (out of one), `sibling` (between others)."""

    created_ns: Mapping[NamespaceId, int] = field(default_factory=dict)
    ended: Mapping[NamespaceKind, int] = field(default_factory=dict)
    joins: Mapping[tuple[NamespaceKind, str], int] = field(default_factory=dict)
    records: int = 0
    evicted: int = 0
    about: Mapping[NamespaceId, About] = field(default_factory=dict)


class History:
    """The records. Safe from any thread; `feed` costs some microseconds an event."""

    def __init__(
        self,
        host: Mapping[NamespaceKind, int],
        *,
        path: str | None = None,
        goes_on: bool = True,
        counts: Counts | None = None,
        limit: int = LIMIT,
    ) -> None:
        """`host` has the inums of the initial namespaces, which never end. `save` writes to `path`.

        What an earlier agent left there is read if it is of this boot and identities still mean the same (`goes_on`: the kernel
        has ns_id, or the programs were adopted).
        """
        self.counts = counts or Counts()
        self.began_ns = time.time_ns()
        self._host = dict(host)
        self._path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._records: dict[NamespaceId, Record] = {}
        self._ended: dict[NamespaceId, None] = {}  # in the order of their end
        self._unmet: dict[NamespaceId, None] = {}  # in the order of their making: no look has met a task there
        self._passed: dict[NamespaceId, None] = {}  # who made it has gone on to another, and nobody was met there
        self._restored: set[NamespaceId] = set()  # until the first look: what had not ended when an earlier agent saved
        self._quiet: set[NamespaceId] = set()  # the last look found no task there, and nothing that told why
        self._looked_ns: int | None = None
        self._about: Mapping[NamespaceId, About] = {}
        self._gone: frozenset[NamespaceId] = frozenset()  # whose member that is known has ended
        self._changed = False
        if path and goes_on:
            self._restore(read_file(path))

    def _restore(self, lines: Iterator[dict[str, Any]]) -> None:
        try:
            for head in itertools.islice(lines, 1):
                self.began_ns = int(head["began_ns"])
            for each in itertools.islice(lines, self._limit):
                record = Record.from_json(each)
                self._records[record.namespace] = record
                if record.ended_ns:
                    self._ended[record.namespace] = None
                    continue
                self._restored.add(record.namespace)
                if not record.live:
                    (self._passed if record.left else self._unmet)[record.namespace] = None
        except (KeyError, TypeError, ValueError) as error:
            log.warning("event=history_refused path=%s reason=%r", self._path, error)

    def feed(self, events: Iterable[SyscallEvent]) -> None:
        """Take note of the calls that changed namespaces."""
        with self._lock:
            for event in events:
                if event.retval >= 0 and event.before != event.after:
                    self._changed = True
                    self._take(event)

    def _take(self, event: SyscallEvent) -> None:
        call = Call(event.time_ns, event.syscall, event.via, event.pid, event.tid, event.child_pid, event.uid, event.comm,
                    event.argv, event.ancestors, event.cgroup_id)  # fmt: skip
        fork = event.syscall in FORKS
        for at, kind, flag in _FLAGS:
            old, new = event.before[at], event.after[at]
            if old == new or not new:
                continue
            source, namespace = unpack_id(kind, old), unpack_id(kind, new)
            record = self._records.get(namespace) or self._add(namespace, event.time_ns)
            if fork:  # clone, fork and vfork have the exit signal where clone3 and unshare have CLONE_NEWTIME
                made = event.flags & flag and (kind is not NamespaceKind.TIME or event.syscall == "clone3")
                how = "made" if made else "born"
            elif event.syscall == "unshare":
                how = "made"
            else:  # a change that no traced call explains may be either
                how = "joined" if event.syscall == "setns" or record.made or record.live else "made"
            entry = Entry(call, how, source)
            if how == "made":
                record.made, record.existed = record.made or entry, False
            else:
                record.entries.append(entry)
                record.joins += how == "joined"
                record.born += how == "born"
                self._revive(record)
            if how == "joined":
                self.counts.values[f"joins {kind} {self._crossing(source, namespace)}"] += 1
            if not fork and kind not in FOR_CHILDREN and (left := self._records.get(source)):
                left.left = Entry(call, "left", namespace)
                if source in self._unmet:
                    del self._unmet[source]
                    self._passed[source] = None

    def _crossing(self, old: NamespaceId, new: NamespaceId) -> str:
        host = self._host.get(new.kind)
        return "to_host" if new.inum == host else "into_container" if old.inum == host else "sibling"

    def _add(self, namespace: NamespaceId, now_ns: int) -> Record:
        while len(self._records) >= self._limit:
            # First what somebody only passed through: thousands of those may come in the life of one container.
            victim = next(iter(self._passed or self._ended or self._unmet or self._records))
            self._forget(victim)
            del self._records[victim]
            self.counts.values["evicted"] += 1
        record = self._records[namespace] = Record(namespace, now_ns)
        self._unmet[namespace] = None
        return record

    def _forget(self, namespace: NamespaceId) -> None:
        for order in (self._ended, self._unmet, self._passed):
            order.pop(namespace, None)

    def _revive(self, record: Record) -> None:
        """Who enters a namespace that only a mount or a descriptor kept makes it live again."""
        record.ended_ns, record.how = None, ""
        self._forget(record.namespace)
        if not record.live:
            self._unmet[record.namespace] = None

    def observe(self, namespaces: Mapping[NamespaceId, Usage], now_ns: int) -> Figures:
        """Compare with a reading of all namespaces that have, or since the load had, a task. One caller at a time."""
        quiet: set[NamespaceId] = set()
        created: dict[NamespaceId, int] = {}
        with self._lock:
            for namespace, used in namespaces.items():
                record = self._records.get(namespace)
                if used.threads:
                    record = record or self._add(namespace, now_ns)
                    self._meet(record)
                    record.exited = used.threads_exited
                    if record.made:
                        created[namespace] = record.made.call.time_ns
                elif namespace in self.counts.counted and (record is None or record.ended_ns):
                    continue
                elif self._is_over(record, used, namespace):
                    self._end(namespace, used, now_ns)
                else:
                    quiet.add(namespace)
            if self._looked_ns is None:
                self._end_unseen(namespaces, now_ns)
            else:
                self._end_unused(namespaces, now_ns, self._looked_ns)
            self._quiet = quiet
            self.counts.counted &= namespaces.keys()
            self._looked_ns = now_ns
            self.counts.save()
            return self._figures(created, {name: about for name, about in self._about.items() if name in namespaces})

    def _meet(self, record: Record) -> None:
        if not record.live:
            record.existed = record.made is None and self._looked_ns is None
            record.live = self._changed = True
            self._forget(record.namespace)
        if record.ended_ns:
            self._revive(record)
        record.met_ns = self.looked_ns
        self.counts.counted.discard(record.namespace)

    def _is_over(self, record: Record | None, used: Usage, namespace: NamespaceId) -> bool:
        """Tell whether a namespace without tasks has really ended.

        A task that was born into it, or entered it, after the pass had gone by has a row and was not counted: so where no
        task is known to have left or exited, or more came than went, the next look decides.
        """
        left = record is not None and record.left is not None
        gone = left or used.threads_exited > (record.exited if record else 0)
        came = used.threads_created + (record.entered if record else 0)
        return namespace in self._quiet or (gone and came <= used.threads_exited + left)

    def _end(self, namespace: NamespaceId, used: Usage, now_ns: int) -> None:
        if namespace not in self.counts.counted:  # else by an agent killed before it saved, or who came since went too
            self.counts.counted.add(namespace)
            self.counts.values[f"ended {namespace.kind}"] += 1
        record = self._records.get(namespace)
        if record is None:
            if len(self._records) >= self._limit:  # nothing is known of it, and others would have to go
                return
            record = self._add(namespace, now_ns)
            record.existed = self._looked_ns is None
        left = record.left.call.time_ns if record.left else 0
        after = max(filter(None, (self._looked_ns, record.made and record.made.call.time_ns)), default=None)
        if left > record.met_ns and used.threads_exited == record.exited:
            record.how, record.ended_ns = "left", (left, left)
        else:
            record.how, record.ended_ns = "exit" if used.threads_exited else "", (after, now_ns)
        met = record.live is not None
        record.exited, record.live, self._changed = used.threads_exited, False, True
        self._forget(namespace)
        (self._passed if record.how == "left" and not met else self._ended)[namespace] = None

    def _end_unseen(self, namespaces: Mapping[NamespaceId, Usage], now_ns: int) -> None:
        """End what had not when an earlier agent saved, and is in no row of programs loaded since. Who enters it, revives it."""
        for record in filter(None, map(self._records.get, self._restored - namespaces.keys())):
            only_passed = record.namespace in self._passed
            record.live, record.ended_ns, self._changed = False, (None, now_ns), True
            self._forget(record.namespace)
            (self._passed if only_passed else self._ended)[record.namespace] = None
        self._restored.clear()

    def _end_unused(self, namespaces: Mapping[NamespaceId, Usage], now_ns: int, looked_ns: int) -> None:
        """End what was left before the last look and no row tells of: nothing was used there, and nobody else was in."""
        for namespace in list(self._passed):
            record = self._records[namespace]
            if not record.ended_ns and record.left and record.left.call.time_ns < looked_ns and namespace not in namespaces:
                self._end(namespace, Usage(), now_ns)

    def _figures(self, created: dict[NamespaceId, int], about: dict[NamespaceId, About]) -> Figures:
        ended, joins = {}, {}
        for name, value in self.counts.values.items():
            match name.split():
                case ["ended", kind]:
                    ended[NamespaceKind(kind)] = value
                case ["joins", kind, crossing]:
                    joins[NamespaceKind(kind), crossing] = value
        return Figures(created, ended, joins, len(self._records), self.evicted, about)

    @property
    def evicted(self) -> int:
        """Records that had to go, since the programs were loaded."""
        return self.counts.values["evicted"]

    @property
    def looked_ns(self) -> int:
        """When the last look was; 0 before the first."""
        return self._looked_ns or 0

    @property
    def unsettled(self) -> bool:
        """Whether another look would tell more: a namespace was found without tasks and nothing told why."""
        return bool(self._quiet)

    def living(self, *, heard_since_ns: int = 0) -> set[tuple[NamespaceKind, int]]:
        """Return kind and inum of what lives: those first heard of since then, and those no member of which is known."""
        with self._lock:
            records = self._records.values()
            return {
                each.namespace[:2]
                for each in records
                if each.live and (not each.members or each.heard_ns >= heard_since_ns or each.namespace in self._gone)
            }

    def oldest(self) -> dict[NamespaceId, tuple[int, str]]:
        """Return for each living namespace a member, and the name of who made it ("" where that is not known)."""
        with self._lock:
            return {
                each.namespace: (each.members[0].pid, each.made.call.comm if each.made else "")
                for each in self._records.values()
                if each.live and each.members
            }

    def tell(self, about: Mapping[NamespaceId, About], strayed: Iterable[NamespaceId], gone: Iterable[NamespaceId] = ()) -> None:
        """Remember what the living namespaces are called; the members known of those in `strayed` are no longer in them.

        In those in `gone` the oldest has ended: others are looked for, but if it was the last, that is who was in it.
        """
        with self._lock:
            self._about, self._gone = about, frozenset(gone)
            for record in filter(None, map(self._records.get, strayed)):
                if record.live:
                    record.members = ()

    def describe(self, members: Mapping[tuple[NamespaceKind, int], tuple[Member, ...]]) -> None:
        """Remember who is in the living namespaces: their processes by kind and inum, the oldest first."""
        with self._lock:
            for record in self._records.values():
                found = members.get(record.namespace[:2], ())
                if found and not record.ended_ns and found != record.members:
                    record.members, self._changed = found, True

    def read(self, wanted: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the records that have all of `wanted` (kind, inum, id), the first heard of first; one at a time in memory."""
        with self._lock:
            names = [name for name in self._records if all(getattr(name, k) == value for k, value in (wanted or {}).items())]
        for name in names:
            with self._lock:
                document = self._records[name].to_json() if name in self._records else None
            if document:
                yield document

    def save(self) -> None:
        """Write the records if any changed since the last time; a failure is logged."""
        if self._path and self._changed:
            self._changed = False
            write_file(self._path, {"began_ns": self.began_ns}, self.read())
