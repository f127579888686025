"""The names that container runtimes have, asked for at their sockets, in the background.

A thread a runtime asks, when a container without a name was seen and every INTERVAL_S; `names` only returns what is there. So
a runtime that is slow, hangs or is gone costs nobody else anything: what it said last stays for `retain_s`.
Sources: GET /containers/json, docs.docker.com/reference/api/engine, which podman-system-service(1) has too; the CRI, in `cri`.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from nsagent.cri import read_pods
from nsagent.errors import AccessError, NsagentError, ParseError, VanishedError
from nsagent.identity import Labels, Names

log = logging.getLogger(__name__)

INTERVAL_S: Final = 30.0
DEADLINE_S: Final = 5.0
_PAUSE_S: Final = 1.0  # between two questions, however many containers begin
_MOST_BYTES: Final = 64 << 20  # 20,000 containers with labels
_MOST_CHARACTERS: Final = 1024  # of a label and its value
_KUBERNETES: Final = "io.kubernetes."
_CRI: Final = ("containerd", "cri")  # how the names of sockets begin that speak it: containerd.sock, crio.sock, cri-dockerd.sock
# HTTP/1.0: its answer ends with the connection, and is not in chunks.
_REQUEST: Final = b"GET /containers/json?all=1 HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"


def read_containers(path: str, deadline_s: float = DEADLINE_S) -> dict[str, Names]:
    """Return what the runtime at a Unix socket says, by container id and by pod uid; takes `deadline_s` in all at most.

    Raises:
        VanishedError: nobody listens there (ENOENT, ECONNREFUSED).
        AccessError: EACCES; or no answer in time.
        ParseError: the answer is none of such a runtime.
    """
    end = time.monotonic() + deadline_s
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(deadline_s)
            connection.connect(path)
            connection.sendall(_REQUEST)
            while True:
                if (left := end - time.monotonic()) <= 0:  # a timeout of the socket is for one call: bytes may drip
                    raise TimeoutError
                connection.settimeout(left)
                if not (piece := connection.recv(1 << 16)):
                    break
                answer += piece
                if len(answer) > _MOST_BYTES:
                    raise ParseError(f"an answer of more than {_MOST_BYTES} bytes", path=path)
    except TimeoutError as error:
        raise AccessError(f"{path} does not answer within {deadline_s:g} s") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise VanishedError(path) from error
    except OSError as error:
        raise AccessError(f"cannot ask {path}: {error.strerror or error}") from error
    return parse_answer(bytes(answer), path)


def parse_answer(answer: bytes, path: str) -> dict[str, Names]:
    """Parse an HTTP answer with a list of containers. Raises ParseError."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not blank or len(status) < 2 or not status[0].startswith(b"HTTP/1.") or status[1] != b"200":
        raise ParseError(f"no answer of a container runtime: {bytes(head[:60])!r}", path=path)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ParseError("not JSON", path=path) from error
    if not isinstance(found, list):
        raise ParseError("no list of containers", path=path)
    names: dict[str, Names] = {}
    for each in found:
        if isinstance(each, dict) and (number := _text(each, "Id")):
            names[number] = name = _names(each)
            if name.pod_uid:
                names[name.pod_uid] = name._replace(container="", image="", labels=())
    return names


def _names(container: Mapping[str, Any]) -> Names:
    """Return a container's names; the labels are those that the kubelet's docker shim writes."""
    labels = container.get("Labels")
    labels = labels if isinstance(labels, dict) else {}
    listed = container.get("Names")
    own = [_text({"": name}, "").removeprefix("/") for name in listed] if isinstance(listed, list) else []
    return Names(
        container=_text(labels, f"{_KUBERNETES}container.name") or min(own, key=lambda name: name.count("/"), default=""),
        image=_text(container, "Image"),
        pod_uid=_text(labels, f"{_KUBERNETES}pod.uid"),
        pod=_text(labels, f"{_KUBERNETES}pod.name"),
        pod_namespace=_text(labels, f"{_KUBERNETES}pod.namespace"),
        labels=tuple(sorted((_clean(key), _text(labels, key)) for key, value in labels.items() if isinstance(value, str))),
    )


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return _clean(value) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # JSON can spell lone surrogates


def allowed(labels: Labels, patterns: Sequence[str]) -> Labels:
    """Return those labels that a pattern names, `*`, `?` and `[..]` as in the shell; not those of a book's length."""
    return tuple(
        (name, value)
        for name, value in labels
        if len(name) + len(value) <= _MOST_CHARACTERS and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


class Runtime:
    """One runtime: the thread that asks it, and what it said."""

    def __init__(
        self,
        path: str,
        *,
        retain_s: float,
        deadline_s: float = DEADLINE_S,
        interval_s: float = INTERVAL_S,
        labels: Sequence[str] = (),
    ) -> None:
        """`labels` has patterns of those that are wanted."""
        self.names: Mapping[str, Names] = MappingProxyType({})  # replaced, never changed
        self._path = path
        self._read = read_pods if os.path.basename(path).startswith(_CRI) else read_containers
        self.retain_s, self._deadline_s, self._interval_s = retain_s, deadline_s, interval_s
        self._labels = labels
        self._seen: dict[str, float] = {}  # when it was last listed, monotonic
        self._failure = ""
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="runtime", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def ask(self) -> None:
        """Ask soon; returns at once."""
        self._asked.set()

    def close(self) -> None:
        """Ask no more. A question that is under way ends at its deadline, with the process at the latest: nobody waits."""
        self._stopping.set()
        self._asked.set()

    def refresh(self) -> None:
        """Ask once. A failure is logged once a cause, and changes no name."""
        try:
            found = self._read(self._path, self._deadline_s)
        except VanishedError as error:  # of three places most nodes have none or one
            log.debug("event=no_runtime socket=%s reason=%s", self._path, error)
            return
        except NsagentError as error:
            if str(error) != self._failure:
                log.warning("event=runtime_failed socket=%s reason=%s", self._path, error)
            self._failure = str(error)
            return
        self._failure = ""
        now = time.monotonic()
        self._seen |= dict.fromkeys(found, now)
        self._seen = {key: when for key, when in self._seen.items() if when >= now - self.retain_s}
        found = {key: names._replace(labels=allowed(names.labels, self._labels)) for key, names in found.items()}
        names = {key: found.get(key) or self.names[key] for key in self._seen}
        if names != self.names:
            self.names = MappingProxyType(names)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._asked.clear()
            self.refresh()
            self._stopping.wait(_PAUSE_S)
            self._asked.wait(self._interval_s)


class Runtimes:
    """All runtimes of a node: the names they have together."""

    def __init__(
        self, paths: Sequence[str], *, retain_s: float, deadline_s: float = DEADLINE_S, labels: Sequence[str] = ()
    ) -> None:
        """`paths` are of Unix sockets; none need be there, or ever answer. `labels`: see Runtime."""
        self._runtimes = [Runtime(path, retain_s=retain_s, deadline_s=deadline_s, labels=labels) for path in paths]
        self._parts: tuple[Mapping[str, Names], ...] = ()
        self._names: Mapping[str, Names] = {}
        self._wanted: frozenset[str] = frozenset()

    def start(self) -> None:
        """Begin to ask."""
        for runtime in self._runtimes:
            runtime.start()

    def close(self) -> None:
        """Ask no more."""
        for runtime in self._runtimes:
            runtime.close()

    def retain(self, seconds: float) -> None:
        """Keep the names of what is not listed any more for so long."""
        for runtime in self._runtimes:
            runtime.retain_s = seconds

    def names(self) -> Mapping[str, Names]:
        """Return the names by container id and pod uid: the same object until one changes. Never blocks; for one thread."""
        parts = tuple(runtime.names for runtime in self._runtimes)
        if len(parts) != len(self._parts) or any(new is not old for new, old in zip(parts, self._parts, strict=True)):
            self._parts = parts
            self._names = {key: names for part in parts for key, names in part.items()}
        return self._names

    def want(self, ids: Iterable[str]) -> None:
        """Have the runtimes asked where an id has not been wanted before: who did not know it once is asked in turn only."""
        wanted = frozenset(ids)
        new, self._wanted = wanted - self._wanted, wanted
        if new:
            for runtime in self._runtimes:
                runtime.ask()
