"""The namespaces of this node as /proc shows them: who is in each, what else keeps it alive, whose child and property it is.

A superset of lsns(8): also those that only a bind mount in any mount namespace, an open descriptor, or the namespaces below
them keep. Costs nine readlinks a process and one a descriptor: for people's commands, not for a scrape.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nsagent import namespaces, procfs
from nsagent.errors import AccessError, NsagentError, UsageError
from nsagent.namespaces import CLONE_FLAGS, NamespaceId, NamespaceKind

_MOUNT: Final = frozenset({NamespaceKind.MNT})
_FOR_CHILDREN: Final = frozenset({NamespaceKind.PID, NamespaceKind.TIME})

Key = tuple[NamespaceKind, int]  # kind and inum: at one moment, they name one namespace


class Process(NamedTuple):
    """A process. `inner_pids`: in each PID namespace from that of this /proc inwards, so the last is what it calls itself."""

    pid: int
    ppid: int
    uid: int
    comm: str
    argv: tuple[str, ...]  # empty of a kernel thread or a zombie
    inner_pids: tuple[int, ...]
    start_ticks: int
    namespaces: Mapping[NamespaceKind, int]
    for_children: Mapping[NamespaceKind, int]  # where they differ

    @property
    def command(self) -> str:
        """The command line, or the name in brackets where there is none."""
        return " ".join(self.argv) or f"[{self.comm}]"


@dataclass(frozen=True, slots=True)
class Seen:
    """A namespace. `members` are pids, the oldest first; `mounts` paths; `descriptors` (pid, fd); `expected` pids whose next
    child will be in it. `owner` is a user namespace; `parent` of pid and user. None: the first, or not to be seen from here.
    """

    id: NamespaceId
    members: tuple[int, ...] = ()
    mounts: tuple[str, ...] = ()
    descriptors: tuple[tuple[int, int], ...] = ()
    expected: tuple[int, ...] = ()
    owner: NamespaceId | None = None
    parent: NamespaceId | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """All of them. `unreadable` processes are another user's: what only they are in is missing here."""

    namespaces: Mapping[Key, Seen] = field(default_factory=dict)
    processes: Mapping[int, Process] = field(default_factory=dict)
    unreadable: int = 0

    def below(self, key: Key) -> list[NamespaceId]:
        """Return the namespaces that keep this one: children of a pid or user namespace, property of a user namespace."""
        return [each.id for each in self.namespaces.values() if key in ((each.owner or (0, 0))[:2], (each.parent or (0, 0))[:2])]


def read_inventory(root: str = "/proc") -> Inventory:
    """Look at every process, its descriptors, and the mounts of every mount namespace. What ends meanwhile is left out."""
    found: dict[int, Process] = {}
    unreadable = 0
    for pid in namespaces.walk_pids(root):
        try:
            found[pid] = read_process(pid, root)
        except AccessError:
            unreadable += 1
        except NsagentError:
            continue
    members: dict[Key, list[int]] = {}
    expected: dict[Key, list[int]] = {}
    for process in sorted(found.values(), key=lambda each: (each.start_ticks, each.pid)):
        for key in process.namespaces.items():
            members.setdefault(key, []).append(process.pid)
        for key in process.for_children.items():
            expected.setdefault(key, []).append(process.pid)
    descriptors = _read_descriptors(found, root)
    readers = [pids[0] for (kind, _), pids in members.items() if kind is NamespaceKind.MNT]
    mounts = namespaces.read_pins(root, ["1", "self", *readers])
    seen: dict[Key, Seen] = {}
    for key in sorted(members.keys() | expected.keys() | descriptors.keys() | mounts.keys()):
        pids, fds, paths = members.get(key, []), descriptors.get(key, []), list(dict.fromkeys(mounts.get(key, ())))
        waiting = expected.get(key, [])
        places = [f"{root}/{pid}/ns/{key[0]}" for pid in pids]
        places += [f"{root}/{pid}/ns/{key[0]}_for_children" for pid in waiting]
        places += _places_held(fds, paths, readers, root)
        seen[key] = _relate(Seen(NamespaceId(*key, 0), tuple(pids), tuple(paths), tuple(fds), tuple(waiting)), places)
    for relative in [each for one in seen.values() for each in (one.owner, one.parent) if each]:
        seen.setdefault(relative[:2], Seen(relative))  # nothing but what is below keeps it
    return Inventory(dict(sorted(seen.items())), found, unreadable)


def read_unattended(root: str = "/proc") -> list[Seen]:
    """Return the namespaces that no process is in and no child will be in, but which a mount or a descriptor keeps.

    What keeps one is looked for first: mostly there is nothing, and then nobody is asked for more than a mount namespace and
    descriptors, a third of what `read_inventory` costs. Nothing that this process itself keeps is among them.
    """
    pids = list(namespaces.walk_pids(root))
    readers: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(NsagentError):
            readers.setdefault(namespaces.read_inums(pid, root, kinds=_MOUNT)[NamespaceKind.MNT], pid)
    mounts = namespaces.read_pins(root, ["1", "self", *readers.values()])
    own = ""
    with contextlib.suppress(OSError):
        own = os.readlink(f"{root}/self")
    descriptors = _read_descriptors((pid for pid in pids if str(pid) != own), root)
    held = mounts.keys() | descriptors.keys()
    if kinds := {kind for kind, _ in held}:
        for pid in pids:
            for for_children in (False, True) if kinds & _FOR_CHILDREN else (False,):
                wanted = kinds & _FOR_CHILDREN if for_children else kinds
                with contextlib.suppress(NsagentError):
                    held -= namespaces.read_inums(pid, root, for_children=for_children, kinds=wanted).items()
    found = []
    for key in sorted(held):
        fds, paths = descriptors.get(key, []), list(dict.fromkeys(mounts.get(key, ())))
        seen = Seen(NamespaceId(*key, 0), mounts=tuple(paths), descriptors=tuple(fds))
        found.append(_relate(seen, _places_held(fds, paths, readers.values(), root)))
    return found


def _places_held(fds: Iterable[tuple[int, int]], paths: list[str], readers: Iterable[int], root: str) -> list[str]:
    """Return where to open a namespace by what keeps it."""
    places = [f"{root}/{pid}/fd/{fd}" for pid, fd in fds] + paths
    return places + [f"{root}/{pid}/root{path}" for path in paths for pid in ("1", *readers)]


def read_process(pid: int, root: str = "/proc") -> Process:
    """Read one process. Raises VanishedError or AccessError as `procfs` does."""
    stat, status = procfs.read_stat(pid, root), procfs.read_status(pid, root)
    own = namespaces.read_inums(pid, root)
    children = namespaces.read_inums(pid, root, for_children=True)
    differ = {kind: inum for kind, inum in children.items() if own.get(kind, inum) != inum}
    return Process(pid, stat.ppid, status.uid, stat.comm, read_argv(pid, root), status.pids, stat.start_ticks, own, differ)


def read_argv(pid: int, root: str = "/proc") -> tuple[str, ...]:
    """Return a process's arguments, as much of them as 4 KiB hold; empty where it has none, or is gone."""
    try:
        with open(f"{root}/{pid}/cmdline", "rb") as file:
            raw = file.read(4096)
    except OSError:
        return ()
    return tuple(os.fsdecode(word) for word in raw.rstrip(b"\0").split(b"\0")) if raw else ()


def _read_descriptors(pids: Iterable[int], root: str) -> dict[Key, list[tuple[int, int]]]:
    found: dict[Key, list[tuple[int, int]]] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{root}/{pid}/fd"):
                with contextlib.suppress(OSError):
                    kind, bracket, inum = os.readlink(f"{root}/{pid}/fd/{name}").partition(":[")
                    if bracket and kind in CLONE_FLAGS and inum[:-1].isdecimal():
                        found.setdefault((NamespaceKind(kind), int(inum[:-1])), []).append((pid, int(name)))
    return found


def _relate(seen: Seen, places: list[str]) -> Seen:
    """Complete identity, owner and parent by the first place that still leads to this namespace."""
    for place in places:
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            identity = namespaces.identify(fd)
            if identity[:2] != seen.id[:2]:
                continue
            parent = namespaces.parent(fd) if identity.kind in ("pid", "user") else None
            owner = parent if identity.kind is NamespaceKind.USER else namespaces.owner(fd)
            return Seen(identity, seen.members, seen.mounts, seen.descriptors, seen.expected, owner, parent)
        except NsagentError:
            continue
        finally:
            os.close(fd)
    return seen


def parse_target(text: str, kind: NamespaceKind | None, root: str = "/proc") -> Key | int:
    """Return what NS of a command line means: ``net:4026531840`` or ``net:[4026531840]``, a bare inum, or a pid with a kind.

    A bare inum comes back as such: it is for the caller to find out of which kind that is.

    Raises:
        UsageError: it is none of these. VanishedError, AccessError: the process cannot be read.
    """
    hint = "a namespace is KIND:INUM, INUM, or a process id together with --kind"
    word, colon, number = text.partition(":")
    number = (number if colon else text).removeprefix("[").removesuffix("]")
    if not number.isascii() or not number.isdecimal() or (colon and word not in CLONE_FLAGS):
        raise UsageError(f"no namespace {text!r}", hint=hint)
    if colon:
        return NamespaceKind(word), int(number)
    if kind is None:
        return int(number)
    inums = namespaces.read_inums(int(number), root)
    if kind not in inums:
        raise UsageError(f"process {number} has no {kind} namespace", hint="it is a zombie, or the kernel lacks this kind")
    return kind, inums[kind]
