"""What keeps the history current while nobody scrapes, and answers `nsagent ns` on the agent's socket."""

from __future__ import annotations

import logging
import os
import posixpath
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from nsagent import namespaces, procfs
from nsagent.errors import NsagentError, UsageError, VanishedError
from nsagent.history import About, History
from nsagent.inventory import Key, read_argv
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.records import Member
from nsagent.sample import NodeSample, Sampler
from nsagent.usage import Usage

log = logging.getLogger(__name__)

TICK_S: Final = 15.0  # an end is known no later than that, nor less precisely
_SAVE_S: Final = 60.0
_MEMBERS: Final = 8  # remembered a namespace
_LONGEST_PAUSE: Final = 16  # ticks: 4 minutes
Answer = tuple[dict[str, Any], Iterable[Mapping[str, Any]]]  # the first line, and those that follow
_FIELDS: Final = {"kind": str, "inum": int, "id": int}


def read_members(wanted: Collection[Key], procfs_root: str = "/proc") -> dict[Key, tuple[Member, ...]]:
    """Return who is in those namespaces, eight each at most, by pid; a readlink a process and kind while one of the kind has room
    for more, two reads a member."""
    pids: dict[Key, list[int]] = {}
    open_: dict[NamespaceKind, set[Key]] = {}
    for key in wanted:
        open_.setdefault(key[0], set()).add(key)
    for pid in namespaces.walk_pids(procfs_root) if wanted else ():
        if not open_:
            break
        try:
            found = namespaces.read_inums(pid, procfs_root, kinds=open_.keys())
        except NsagentError:
            continue
        for key in found.items():
            if key in wanted and len(members := pids.setdefault(key, [])) < _MEMBERS:
                members.append(pid)
                if len(members) == _MEMBERS:
                    open_[key[0]].discard(key)
        open_ = {kind: keys for kind, keys in open_.items() if keys}
    known: dict[int, Member] = {}
    for pid in {pid for members in pids.values() for pid in members}:
        try:
            known[pid] = Member(pid, procfs.read_stat(pid, procfs_root).comm, read_argv(pid, procfs_root))
        except NsagentError:
            continue
    return {key: tuple(known[pid] for pid in members if pid in known) for key, members in pids.items()}


def read_about(
    oldest: Mapping[NamespaceId, tuple[int, str]], procfs_root: str = "/proc"
) -> tuple[dict[NamespaceId, About], list[NamespaceId], list[NamespaceId]]:
    """Return what names each of those namespaces, given a member and its maker's name; those it has left, and those it ended in.

    Some 50 us each: an open, two or three ioctls, two reads.
    """
    found, strayed, gone = {}, list[NamespaceId](), list[NamespaceId]()
    names = namespaces.read_pins(procfs_root) if oldest else {}
    for namespace, (pid, creator) in oldest.items():
        try:
            fd = os.open(f"{procfs_root}/{pid}/ns/{namespace.kind}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            (strayed if isinstance(error, PermissionError) else gone).append(namespace)
            continue
        try:
            here = namespaces.identify(fd)
            if here.inum != namespace.inum or here.id not in (0, namespace.id):
                strayed.append(namespace)
                continue
            owner = namespaces.owner(fd)
            parent = namespaces.parent(fd) if namespace.kind in ("pid", "user") else None
            comm, cgroup = procfs.read_stat(pid, procfs_root).comm, _accounting_path(procfs.read_cgroup(pid, procfs_root))
        except NsagentError as error:
            (gone if isinstance(error, VanishedError) else strayed).append(namespace)
            continue
        finally:
            os.close(fd)
        name = posixpath.basename(names.get(namespace[:2], [""])[0])
        owner_inum, parent_inum = (str(each.inum) if each else "" for each in (owner, parent))
        found[namespace] = About(owner_inum, parent_inum, name, str(pid), comm, cgroup, creator)
    return found, strayed, gone


def _accounting_path(memberships: Iterable[procfs.Membership]) -> str:
    """Return the cgroup that is charged: of cpuacct, else cpu, else memory, else the v2 tree's, as cgroups.layout has it."""
    paths = {name: each.path for each in memberships for name in (each.controllers or ("",))}
    return next((paths[name] for name in ("cpuacct", "cpu", "memory", "") if name in paths), "")


class Search:
    """Which namespaces to look for members of. Where nobody is found, it may be for long: a thread alone is in it, or a process
    that is not in this /proc. It is due again after 2, 4, 8.. rounds: a look is at every process."""

    def __init__(self) -> None:
        self._pauses: dict[Key, tuple[int, int]] = {}  # rounds left to wait, rounds of this pause
        self._due: set[Key] = set()

    def due(self, wanted: Collection[Key]) -> set[Key]:
        """Begin a round: return what to look for now. What is wanted no more is forgotten."""
        self._pauses = {key: (left - 1, pause) for key, (left, pause) in self._pauses.items() if key in wanted}
        self._due = {key for key in wanted if self._pauses.get(key, (0, 0))[0] <= 0}
        return self._due

    def end(self, found: Collection[Key]) -> None:
        """End a round: take in what was found."""
        for key in self._due:
            pause = min(2 * self._pauses.pop(key, (0, 1))[1], _LONGEST_PAUSE)
            if key not in found:
                self._pauses[key] = (pause, pause)


class Watch:
    """Looks every TICK_S if nobody else did, and answers requests.

    `lost`: events that never came, since the load. `catch_up` feeds the history with what the kernel has told so far.
    """

    def __init__(
        self, sampler: Sampler, history: History, lost: Callable[[NodeSample], int], catch_up: Callable[[], None] = lambda: None
    ) -> None:
        self._sampler = sampler
        self._history = history
        self._lost = lost
        self._catch_up = catch_up
        self._saved = time.monotonic()
        self._search = Search()

    @property
    def answers(self) -> dict[str, Callable[[dict[str, Any]], Answer]]:
        """For control.Control."""
        return {"namespaces": self.namespaces, "history": self.history}

    def begin(self) -> None:
        """Look for the first time: what is there now was there before. A failure is the sample's, which logs it."""
        self._sampler.read()

    def tick(self) -> None:
        """Look, remember who is in namespaces that are new, and save now and then. A failure is logged: the agent goes on."""
        try:
            if time.time_ns() - self._history.looked_ns >= TICK_S * 1e9:
                self._sampler.read()
            # twice: what a container's first process is called before its exec, nobody wants to know
            young_ns = self._history.looked_ns - round(2 * TICK_S * 1e9)
            wanted = self._search.due(self._history.living(heard_since_ns=young_ns))
            members = read_members(wanted)
            self._search.end(members.keys())
            self._history.describe(members)
            self._history.tell(*read_about(self._history.oldest()))
            if time.monotonic() - self._saved >= _SAVE_S:
                self._history.save()
                self._saved = time.monotonic()
        except (NsagentError, OSError) as error:
            log.warning("event=watch_failed reason=%s", error)

    def namespaces(self, request: Mapping[str, Any]) -> Answer:
        """Answer with what each namespace's tasks have used, those ended a short time ago included."""
        _check(request, {})
        sample = self._sampler.read()
        shown = [field for field in Usage._fields if field not in sample.missing]
        rows = (
            {"kind": namespace.kind.value, "inum": namespace.inum, "id": namespace.id}
            | {"usage": {field: getattr(used, field) for field in shown}}
            for namespace, used in (*sample.namespaces.items(), *sample.namespaces_ended.items())
        )
        return {"exact": sample.facts.mode.get("accounting") == "exact"}, rows

    def history(self, request: Mapping[str, Any]) -> Answer:
        """Answer with the records of the namespaces asked for, as of now."""
        wanted = _check(request, _FIELDS)
        self._catch_up()  # on a busy node the thread that reads the ring may be late
        sample = self._sampler.read()
        if self._history.unsettled:
            sample = self._sampler.read()
        self._history.describe(read_members(self._history.living()))
        head = {"since": self._history.began_ns / 1e9, "lost": self._lost(sample), "evicted": self._history.evicted}
        return head, self._history.read(wanted)


def _check(request: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    """Return the fields of a request. Raises UsageError for what it must not have."""
    wanted = {name: value for name, value in request.items() if name != "request"}
    for name, value in wanted.items():
        if type(value) is not fields.get(name) or (name == "kind" and value not in set(NamespaceKind)):
            hint = f"fields: {', '.join(fields) or 'none'}"
            raise UsageError(f"{request['request']}: {name}={value!r} is not understood", hint=hint)
    return wanted
