"""Namespaces that a job joins instead of having new ones, and the clocks of a new time namespace: words, and what they open.

Sources: man 7 namespaces, man 8 ip-netns, man 7 time_namespaces.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from nsagent import namespaces
from nsagent.errors import AccessError, UsageError, VanishedError
from nsagent.namespaces import KINDS, NamespaceKind

NAMED_NETS: Final = "/run/netns"  # where `ip netns add` binds them
CLOCKS: Final = ("boottime", "monotonic")


class Join(NamedTuple):
    """The namespace of `kind` that the file `path` stands for; `word` is how the user named it."""

    kind: NamespaceKind
    path: str
    word: str


class ClockOffset(NamedTuple):
    """How far a clock of a new time namespace is ahead of the host's, ns; negative: behind it."""

    clock: str
    offset_ns: int


def parse_join(text: str, flag: str = "--join") -> Join:
    """Parse KIND:PID, KIND:PATH or net:NAME, as `ip netns` names it. Raises UsageError."""
    hint = "KIND:PID or KIND:PATH, such as net:4242 or ipc:/proc/4242/ns/ipc; of `ip netns`: net:NAME"
    word, separator, target = text.partition(":")
    if not separator or not target:
        raise UsageError(f"{flag} {text!r} is not a kind and where its namespace is", hint=hint)
    try:
        (kind,) = namespaces.parse_kinds(word)
    except ValueError:  # all, or none
        raise UsageError(f"{flag} {text!r} names no single kind", hint=f"one of {' '.join(KINDS)}") from None
    return Join(kind, _path(kind, target, f"{flag} {text!r}", hint), f"{kind}:{target}")


def _path(kind: NamespaceKind, target: str, what: str, hint: str) -> str:
    if target.isascii() and target.isdecimal():
        return f"/proc/{int(target)}/ns/{kind}"
    if "/" in target:
        return os.path.abspath(target)
    if kind != NamespaceKind.NET or target in (".", ".."):
        raise UsageError(f"{what}: {target!r} is neither a pid nor a path", hint=hint)
    return f"{NAMED_NETS}/{target}"


def open_all(joins: tuple[Join, ...]) -> tuple[tuple[Join, int], ...]:
    """Return each namespace with a descriptor that pins it, in the order to join them: user first, mnt last.

    One that the caller is in already is left out: there is nothing to do, and of `user` the kernel refuses it.
    Raises UsageError where a path is another thing, or nothing; VanishedError, AccessError.
    """
    found: list[tuple[Join, int]] = []
    try:
        for join in sorted(joins, key=lambda each: namespaces.ENTER_ORDER.index(each.kind)):
            fd = _open(join)
            found.append((join, fd))
            if os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{join.kind}")):
                found.pop()
                os.close(fd)
    except BaseException:
        for _, fd in found:
            os.close(fd)
        raise
    return tuple(found)


def _open(join: Join) -> int:
    try:
        fd = os.open(join.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if join.path.startswith("/proc/"):
            raise VanishedError(f"--join {join.word}: {join.path}") from None
        hint = "'ip netns' lists the names" if join.path.startswith(NAMED_NETS) else "'nsagent ns list' shows where each is"
        raise UsageError(f"--join {join.word}: there is no {join.path}", hint=hint) from None
    except PermissionError as exc:
        raise AccessError(f"--join {join.word}: {join.path}: {exc.strerror}", capability="CAP_SYS_PTRACE") from exc
    except OSError as exc:
        raise UsageError(f"--join {join.word}: {join.path}: {exc.strerror}") from exc
    kind = namespaces.kind_of(fd)
    if kind != join.kind:
        os.close(fd)
        raise UsageError(f"--join {join.word}: {join.path} is {f'a {kind}' if kind else 'no'} namespace")
    return fd


def timens_offsets(offsets: tuple[ClockOffset, ...]) -> bytes:
    """Return what /proc/PID/timens_offsets takes: a line a clock, of seconds (of any sign) and nanoseconds (of none)."""
    rows = ((each.clock, *divmod(each.offset_ns, 10**9)) for each in offsets)
    return "".join(f"{clock} {seconds} {ns}\n" for clock, seconds, ns in rows).encode()
