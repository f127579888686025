"""What history keeps of a namespace, how it reads as JSON (the same on disk and on the wire), and counters that outlive agents.

Times are CLOCK_REALTIME ns inside and seconds in JSON, as in events.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from nsagent.namespaces import NamespaceId, NamespaceKind

log = logging.getLogger(__name__)

FORKS: Final = frozenset({"clone", "clone3", "fork", "vfork"})
FOR_CHILDREN: Final = (NamespaceKind.PID, NamespaceKind.TIME)  # unshare and setns move the caller's children, not the caller
_ENTRIES: Final = 16  # the latest who entered, a namespace
_VERSION: Final = 1


class Call(NamedTuple):
    """A traced call, as far as history needs it; the fields are those of events.SyscallEvent."""

    time_ns: int
    syscall: str
    via: str
    pid: int
    tid: int
    child_pid: int
    uid: int
    comm: str
    argv: tuple[str, ...]
    ancestors: tuple[tuple[int, str], ...]
    cgroup_id: int


class Entry(NamedTuple):
    """`how` is `made`, `joined` (setns), `born` (a child of outside, after unshare or setns of pid or time) or `left`.

    `other` is the namespace that the process came from, or of `left` the one it went to.
    """

    call: Call
    how: str
    other: NamespaceId


class Member(NamedTuple):
    """A process that was found in a namespace."""

    pid: int
    comm: str
    argv: tuple[str, ...]


@dataclass(slots=True)
class Record:
    """One namespace. Times are CLOCK_REALTIME ns; `exited` counts threads, as of the last look. A look that began after
    `met_ns` met a task in it: who left before that was not the last. It is not kept across agents.

    `existed`: it was there when the watch began. `live` is None while no look has met a task in it, as between unshare(1)
    of pid and the first fork. `ended_ns` is a span in which its last task went (`after` None: before the watch began);
    `how` says `exit`, or `left` where a task was not ended but went to another namespace.
    """

    namespace: NamespaceId
    heard_ns: int
    existed: bool = False
    made: Entry | None = None
    entries: collections.deque[Entry] = field(default_factory=lambda: collections.deque(maxlen=_ENTRIES))
    joins: int = 0
    born: int = 0
    left: Entry | None = None
    exited: int = 0
    met_ns: int = 0
    live: bool | None = None
    ended_ns: tuple[int | None, int] | None = None
    how: str = ""
    members: tuple[Member, ...] = ()

    @property
    def state(self) -> str:
        """`live`, `ended`, or `new`: no task was seen in it yet."""
        return "ended" if self.ended_ns else "live" if self.live else "new"

    @property
    def entered(self) -> int:
        """Tasks that came in by a call of their own, and were not born there: who made it by unshare, who joined."""
        if self.namespace.kind in FOR_CHILDREN:
            return 0
        return self.joins + (self.made is not None and self.made.call.syscall not in FORKS)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; times in seconds, as in events."""
        after, by = self.ended_ns or (None, None)
        return {
            **_json_id(self.namespace),
            "state": self.state,
            "existed": self.existed,
            "heard": self.heard_ns / 1e9,
            "created": _json_entry(self.made) if self.made else None,
            "joins": self.joins,
            "born": self.born,
            "entered": [_json_entry(entry) for entry in self.entries],
            "left": _json_entry(self.left) if self.left else None,
            "ended": {"after": after and after / 1e9, "by": by / 1e9, "how": self.how} if by else None,
            "members": [{"pid": pid, "comm": comm, "argv": list(argv)} for pid, comm, argv in self.members],
            "threads_exited": self.exited,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Record:
        """Raises KeyError, TypeError or ValueError for what `to_json` never writes."""
        ended = document["ended"]
        return cls(
            _id_of(document),
            _ns(document["heard"]),
            bool(document["existed"]),
            _entry_of(document["created"]) if document["created"] else None,
            collections.deque(map(_entry_of, document["entered"]), maxlen=_ENTRIES),
            int(document["joins"]),
            int(document["born"]),
            _entry_of(document["left"]) if document["left"] else None,
            int(document["threads_exited"]),
            0,
            {"live": True, "ended": False, "new": None}[document["state"]],
            (None if ended["after"] is None else _ns(ended["after"]), _ns(ended["by"])) if ended else None,
            str(ended["how"]) if ended else "",
            tuple(Member(int(m["pid"]), str(m["comm"]), tuple(map(str, m["argv"]))) for m in document["members"]),
        )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _json_id(namespace: NamespaceId) -> dict[str, Any]:
    return {"kind": namespace.kind.value, "inum": namespace.inum, "id": namespace.id}


def _id_of(document: Mapping[str, Any]) -> NamespaceId:
    return NamespaceId(NamespaceKind(document["kind"]), int(document["inum"]), int(document["id"]))


def _json_entry(entry: Entry) -> dict[str, Any]:
    call = entry.call._asdict() | {"time": entry.call.time_ns / 1e9, "argv": list(entry.call.argv)}
    del call["time_ns"]
    call["ancestors"] = [{"pid": pid, "comm": comm} for pid, comm in entry.call.ancestors]
    return call | {"how": entry.how, "to" if entry.how == "left" else "from": _json_id(entry.other)}


def _entry_of(document: Mapping[str, Any]) -> Entry:
    call = {name: document[name] for name in Call._fields if name != "time_ns"}
    call["argv"] = tuple(call["argv"])
    call["ancestors"] = tuple((each["pid"], each["comm"]) for each in call["ancestors"])
    other = document["to" if document["how"] == "left" else "from"]
    return Entry(Call(time_ns=_ns(document["time"]), **call), document["how"], _id_of(other))


class Counts:
    """Named counters that outlive the agent, and the namespaces that were counted as ended already."""

    def __init__(self, path: str | None = None, *, goes_on: bool = False) -> None:
        """Read `path` if the kernel's own counters go on too (`goes_on`: the programs were adopted); else begin at 0."""
        self._path = path
        self.values: collections.Counter[str] = collections.Counter()
        self.counted: set[NamespaceId] = set()
        self._saved: tuple[dict[str, int], set[NamespaceId]] = ({}, set())
        for document in read_file(path) if path and goes_on else ():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                self.values.update({str(name): int(value) for name, value in document["values"].items()})
                self.counted = {NamespaceId(NamespaceKind(kind), inum, number) for kind, inum, number in document["counted"]}

    def rise(self, name: str, value: int) -> int:
        """Raise a counter to `value`, or leave it where it is above that already; return it."""
        self.values[name] = max(value, self.values[name])
        return self.values[name]

    def save(self) -> None:
        """Write what changed. A failure is logged: the counters are then those of this agent's life."""
        if self._path and self._saved != (self.values, self.counted):
            write_file(self._path, {"values": self.values, "counted": sorted(self.counted)})
            self._saved = (dict(self.values), set(self.counted))


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def read_file(path: str) -> Iterator[dict[str, Any]]:
    """Yield what `write_file` wrote in this boot, the first line first; nothing where there is nothing of the kind."""
    try:
        with open(path, encoding="utf-8") as file:
            head = json.loads(file.readline())
            if (head["version"], head["boot_id"]) == (_VERSION, _boot_id()):
                yield head
                yield from map(json.loads, file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("event=state_refused path=%s reason=%r", path, error)


def write_file(path: str, head: dict[str, Any], lines: Iterable[dict[str, Any]] = ()) -> None:
    """Replace a file in one step. Not synced: what matters is the end of the agent, and the boot is part of it."""
    head = {"version": _VERSION, "boot_id": _boot_id(), "written": time.time(), **head}
    name = ""
    try:
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), prefix=".history-", delete=False) as out:
            name = out.name
            out.writelines(json.dumps(each) + "\n" for each in itertools.chain([head], lines))
        os.replace(name, path)
    except OSError as error:
        log.warning("event=state_not_written path=%s reason=%s", path, error.strerror)
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
