"""How the launcher and the child of its clone3 agree, and the form of their messages.

    launcher                                        child (in its new namespaces already)
    --------                                        -------------------------------------
    make and lock the job's file
    make the cgroup, write and check its limits
    block signals, clone3 ------------------------> write "0" to `tasks` of each v1 hierarchy
    wait for a message                              unshare the cgroup namespace: rooted at the job now
                      <---------- ready ----------- wait for the release
    write uid_map and gid_map
    read the namespaces' inodes
    ------------------ release ------------------>  copies of what is mounted from the host (mounts)
    poll: signals, pidfd, channel                   take ids 0 of a new user namespace, die with the launcher
                                                    mounts, loopback, hostname, directory
                      <---------- failed ---------- any step that failed: stage, call, errno, path; and _exit
                      <------- end of file -------- execve closed the channel: CMD runs
                      <---------- began ----------- only with --init, which keeps the channel: CMD runs
                      <---------- ended ----------- only with --init: the wait status of CMD

Where namespaces are joined or clocks set (nsagent.launch.entry), the child of the clone3 is a process in between: after
`tasks` it does that, makes the child proper as one of the launcher's, tells its pid on a pipe of its own, and ends.

A launcher that dies closes its end of the release: the child reads end of file there and exits before CMD ran. The
channel is close-on-exec, so success needs no message. A message is a length (2 bytes, native order) and that many
bytes; one write of at most PIPE_BUF bytes, hence never torn between writers (pipe(7)).
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

_LENGTH: Final = struct.Struct("=H")
_PATH_MAX: Final = 2048  # of a path in a message: all of it stays below PIPE_BUF (4096)

RELEASE: Final = b"\1"


class Ready(NamedTuple):
    """The child is in its cgroup in every hierarchy, and in all its namespaces."""


class Failed(NamedTuple):
    """The child could not do `call` (about `path`, or "") in `stage`; it has ended."""

    stage: str
    call: str
    errno: int
    path: str


class Began(NamedTuple):
    """CMD runs, unless there was a `Failed` before; the init that started it keeps the channel."""


class Ended(NamedTuple):
    """CMD ended with this wait status (wait(2)); the init that reaped it is about to end too."""

    status: int


Message = Ready | Failed | Began | Ended


def encode(message: Message) -> bytes:
    """Return the bytes of one message, at most PIPE_BUF of them."""
    match message:
        case Ready():
            body = b"R"
        case Began():
            body = b"B"
        case Ended(status):
            body = b"E%d" % status
        case Failed(stage, call, errno, path):
            raw = path.encode("utf-8", "surrogateescape")[:_PATH_MAX]
            body = b"\0".join((b"F" + stage.encode(), call.encode(), b"%d" % errno, raw))
    return _LENGTH.pack(len(body)) + body


def send(channel: int, message: Message) -> None:
    """Write one message to the launcher; where it is gone, nobody is told."""
    try:
        os.write(channel, encode(message))
    except OSError:
        pass


class Step:
    """Where the child is: what a failure is reported with."""

    def __init__(self) -> None:
        self.stage = self.call = self.path = ""

    def __call__(self, stage: str, call: str, path: str = "") -> None:
        self.stage, self.call, self.path = stage, call, path


class Decoder:
    """Bytes of the channel, in pieces of any size, to messages."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that `data` completes. Raises ValueError where the bytes are none of ours."""
        self._pending += data
        messages: list[Message] = []
        while len(self._pending) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._pending)[0]
            if len(self._pending) < end:
                break
            messages.append(_decode(self._pending[_LENGTH.size : end]))
            self._pending = self._pending[end:]
        return messages


def _decode(body: bytes) -> Message:
    match body[:1]:
        case b"R":
            return Ready()
        case b"B":
            return Began()
        case b"E":
            return Ended(int(body[1:]))
        case b"F":
            stage, call, errno, path = body[1:].split(b"\0", 3)
            return Failed(stage.decode(), call.decode(), int(errno), path.decode("utf-8", "surrogateescape"))
    raise ValueError(f"no message of this protocol: {body[:20]!r}")
