"""Findings: the few things in the stream of events, or in the rows, that deserve a look. See docs/findings.md.

Each rule is on unless switched off. A finding is an event itself: the same sinks, the same `nsagent trace`.
"""

from __future__ import annotations

import collections
import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nsagent import namespaces
from nsagent.errors import NsagentError, UsageError
from nsagent.events import SCHEMA, SyscallEvent, clock_text, printable
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind

RULES: Final = {
    "to_host": "a process outside the host's mount or user namespace has entered it",
    "unprivileged_userns": "a user without privileges made a user namespace and mounts or network in it",
    "orphan": "a namespace lives on with no process in it",
    "clone_storm": "one cgroup makes processes at a great rate",
}
STORM_PER_S: Final = 1000.0
STORM_CHECKS: Final = 2  # in a row: a fold of rows between two readings looks like one burst
ORPHAN_S: Final = 3600.0
_REMEMBERED: Final = 4096

# include/linux/proc_ns.h; those of mnt and net are as 6.18 has them, other kernels allot them at boot: a last resort, where
# neither kthreadd nor process 1 may be read.
_INITIAL: Final = {
    NamespaceKind.IPC: 0xEFFFFFFF,
    NamespaceKind.UTS: 0xEFFFFFFE,
    NamespaceKind.USER: 0xEFFFFFFD,
    NamespaceKind.PID: 0xEFFFFFFC,
    NamespaceKind.CGROUP: 0xEFFFFFFB,
    NamespaceKind.TIME: 0xEFFFFFFA,
    NamespaceKind.NET: 0xEFFFFFF9,
    NamespaceKind.MNT: 0xEFFFFFF8,
}


def read_host_inums(procfs: str = "/proc") -> dict[NamespaceKind, int]:
    """Return the inums of the initial namespaces: they never end, so that no other namespace ever has them."""
    found = dict(_INITIAL)
    for pid in (2, 1):  # kthreadd is in the initial ones whatever process 1 did; a container's /proc has other pids
        try:
            inums = namespaces.read_inums(pid, procfs)
        except NsagentError:
            continue
        if inums.get(NamespaceKind.PID) == _INITIAL[NamespaceKind.PID]:
            return found | inums
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found: one line for people, and the evidence. `event` is the call, where one is the evidence."""

    time_ns: int  # CLOCK_REALTIME
    rule: str
    message: str
    evidence: Mapping[str, Any]
    event: SyscallEvent | None = None

    @property
    def kinds(self) -> frozenset[NamespaceKind]:
        """Of the call, or of the namespace found."""
        kind = self.evidence.get("kind")
        return self.event.kinds if self.event else frozenset({NamespaceKind(kind)} if kind else ())

    @property
    def pid(self) -> int:
        return self.event.pid if self.event else 0

    @property
    def tid(self) -> int:
        return self.event.tid if self.event else 0

    @property
    def cgroup_id(self) -> int:
        return self.event.cgroup_id if self.event else int(self.evidence.get("cgroup_id", 0))

    @property
    def ancestors(self) -> tuple[tuple[int, str], ...]:
        return self.event.ancestors if self.event else ()

    @property
    def failed(self) -> bool:
        return False

    @property
    def notable(self) -> bool:
        return True

    @property
    def priority(self) -> int:
        """syslog's LOG_WARNING."""
        return 4

    def to_json(self) -> str:
        """One line of JSON: docs/events.md."""
        evidence = {**self.evidence, "event": self.event.document()} if self.event else dict(self.evidence)
        found = {"schema": SCHEMA, "type": "finding", "time": self.time_ns / 1e9, "rule": self.rule}
        return json.dumps({**found, "message": self.message, "evidence": evidence})

    def to_text(self) -> str:
        """One line for people."""
        return f"{clock_text(self.time_ns)} FINDING {self.rule}: {printable(self.message)}"


class Findings:
    """The rules and their state. `of_events`, `of_rows` and `of_held` may be called from different threads."""

    def __init__(
        self,
        *,
        off: Collection[str] = (),
        host: Mapping[NamespaceKind, int] | None = None,
        path_of: Callable[[int], str | None] = lambda cgroup: None,
        storm_per_s: float = STORM_PER_S,
        orphan_s: float = ORPHAN_S,
    ) -> None:
        """`off`: rules that are not looked for; `path_of` names an accounting cgroup by its id. Raises UsageError."""
        self.switch_off(off)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(sorted(RULES), 0)
        self._host = dict(host or read_host_inums())
        self._path_of = path_of
        self._storm_per_s = storm_per_s
        self._orphan_s = orphan_s
        self._user_namespaces: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._rows: dict[tuple[int, int], int] = {}  # (row, cgroup): processes created
        self._rows_at: float | None = None
        self._storms: dict[int, int] = {}  # cgroup: checks in a row above the rate
        self._held: dict[NamespaceId, float] = {}  # since when; inf: told

    def switch_off(self, off: Collection[str]) -> None:
        """Look for all but these from now on. Raises UsageError for what is no rule."""
        for rule in off:
            if rule not in RULES:
                raise UsageError(f"no finding is called {rule!r}", hint=f"there are {', '.join(RULES)}")
        self.on = frozenset(RULES) - set(off)

    def counts(self) -> dict[str, int]:
        """Return how many findings each rule that is on has made."""
        with self._lock:
            return {rule: count for rule, count in self._counts.items() if rule in self.on}

    def _found(self, found: list[Finding]) -> list[Finding]:
        with self._lock:
            for finding in found:
                self._counts[finding.rule] += 1
        return found

    def of_events(self, events: Iterable[SyscallEvent]) -> list[Finding]:
        """Look at calls, in the order they came."""
        found: list[Finding] = []
        for event in events:
            if event.failed:
                continue
            if event.syscall in ("setns", "unseen"):
                found += self._to_host(event)
            elif event.uid and event.flags & _USED:
                found += self._unprivileged(event)
        return self._found(found)

    def _to_host(self, event: SyscallEvent) -> list[Finding]:
        """pid is not asked: the kernel lets nobody join the pid namespace of an ancestor, and the event's is its children's."""
        entered = [kind for kind, old, new in event.changes if old.inum != self._host[kind] == new.inum]
        if "to_host" not in self.on or not {NamespaceKind.MNT, NamespaceKind.USER} & set(entered):
            return []
        names = ", ".join(entered)
        message = f"{_who(event)} in {self._where(event.cgroup_id)} entered the host's {names} namespace"
        how = "" if event.via == "syscall" else ", by no call that was traced"
        return [Finding(event.time_ns, "to_host", message + how, {"kinds": entered}, event)]

    def _unprivileged(self, event: SyscallEvent) -> list[Finding]:
        """In one call, or user first and the others later: the capabilities are those in the new user namespace."""
        user = event.after[KINDS.index(NamespaceKind.USER)]
        used = [kind for kind in (NamespaceKind.MNT, NamespaceKind.NET) if event.flags & kind.flag]
        if "unprivileged_userns" not in self.on or not used or user & 0xFFFFFFFF == self._host[NamespaceKind.USER]:
            return []
        if user in self._user_namespaces:
            return []
        self._user_namespaces[user] = None
        if len(self._user_namespaces) > _REMEMBERED:
            self._user_namespaces.popitem(last=False)
        message = (
            f"{_who(event)} in {self._where(event.cgroup_id)} has a user namespace of its own, and in it {' and '.join(used)}"
        )
        return [Finding(event.time_ns, "unprivileged_userns", message, {"kinds": used}, event)]

    def of_rows(self, rows: Iterable[tuple[int, int]], now_s: float) -> list[Finding]:
        """Compare how many processes each cgroup made since the last call. `rows` are Attached.created(); `now_s` only grows."""
        if "clone_storm" not in self.on:
            return []
        now = {(index, cgroup): count for index, (cgroup, count) in enumerate(rows) if count}
        before, since = self._rows, self._rows_at
        self._rows, self._rows_at = now, now_s
        if since is None or now_s <= since:
            return []
        made: dict[int, int] = {}
        for (index, cgroup), count in now.items():
            made[cgroup] = made.get(cgroup, 0) + max(0, count - before.get((index, cgroup), 0))
        # A row that was given back has put its counts into another: nobody made these processes now.
        folded = sum(count for key, count in before.items() if now.get(key, 0) < count)
        storms = {}
        found = []
        for cgroup, count in made.items():
            rate = (count - folded) / (now_s - since)
            if rate < self._storm_per_s:
                continue
            storms[cgroup] = self._storms.get(cgroup, 0) + 1
            if storms[cgroup] == STORM_CHECKS:
                message = f"{self._where(cgroup)} makes {rate:.0f} processes a second"
                evidence = {"cgroup_id": cgroup, "cgroup": self._path_of(cgroup), "processes_per_second": round(rate, 1)}
                found.append(Finding(time.time_ns(), "clone_storm", message, evidence))
        self._storms = storms
        return self._found(found)

    def of_held(self, held: Mapping[NamespaceId, Collection[str]], now_s: float) -> list[Finding]:
        """Look at the namespaces that have no process, and what holds each: a bind mount, a descriptor."""
        if "orphan" not in self.on:
            return []
        self._held = {namespace: self._held.get(namespace, now_s) for namespace in held}
        found = []
        for namespace, since in self._held.items():
            if now_s - since < self._orphan_s:
                continue
            self._held[namespace] = float("inf")
            kind, inum, number = namespace
            holders = sorted(held[namespace])
            message = f"{kind}:[{inum}] has had no process for {now_s - since:.0f} s; {', '.join(holders)} keeps it"
            evidence = {"kind": kind, "inum": inum, "id": number, "held_by": holders, "seconds": round(now_s - since, 1)}
            found.append(Finding(time.time_ns(), "orphan", message, evidence))
        return self._found(found)

    def _where(self, cgroup: int) -> str:
        return f"cgroup {self._path_of(cgroup) or cgroup}"


_USED: Final = NamespaceKind.MNT.flag | NamespaceKind.NET.flag


def _who(event: SyscallEvent) -> str:
    return f"process {event.pid} ({event.comm}, uid {event.uid})"
