"""Real namespaces, made by unshare(2) in children of ours, looked at and entered."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsagent import libc, namespaces
from nsagent.errors import NsagentError, VanishedError
from nsagent.namespaces import KINDS, NamespaceKind
from tests.support import require_root, unique_name

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@contextlib.contextmanager
def unshared(flags: int, *, fork: bool = False, hostname: str = "") -> Iterator[int]:
    """Yield the pid of a child (with `fork`: of its child) that has unshared `flags` and sleeps until the end."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
            libc.unshare(flags)
            if hostname:
                libc.sethostname(hostname)
            inner = os.fork() if fork else 0
            if not fork or inner:
                os.write(tell, f"{inner or os.getpid()}\n".encode())
            os.close(tell)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    with open(ready) as answer:
        line = answer.readline()
    try:
        assert line, "the child could not unshare"
        yield int(line)
    finally:
        for victim in {int(line or pid), pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        os.waitpid(pid, 0)


def in_child(call: Callable[[], object]) -> str:
    """Run `call` in a forked child and return what it returned or the name of the error it raised, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(call())
        except NsagentError as exc:
            text = f"{type(exc).__name__}: {exc}"
        except BaseException as exc:
            text = f"unexpected {exc!r}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


ALL_BUT_PID = sum(kind.flag for kind in KINDS if kind not in ("pid", "time"))


def test_every_kind_is_new_and_known_by_two_ways() -> None:
    host = namespaces.of_process("self")
    with unshared(ALL_BUT_PID) as pid:
        theirs = namespaces.of_process(pid)
        assert {kind for kind in KINDS if theirs[kind] != host[kind]} == set(KINDS) - {"pid", "time"}
        assert {kind: i.inum for kind, i in theirs.items()} == namespaces.read_inums(pid)
        listed = {n.id: n.members for n in namespaces.list_all()}
        for kind, identity in theirs.items():
            assert pid in listed[identity]
            assert kind in ("pid", "time") or listed[identity] == (pid,)


def test_pid_and_time_change_for_children_first() -> None:
    host = namespaces.of_process("self")
    with unshared(libc.CLONE_NEWPID | libc.CLONE_NEWTIME, fork=True) as inner:
        theirs = namespaces.of_process(inner)
        assert theirs[NamespaceKind.PID] != host[NamespaceKind.PID]
        outer = int(Path(f"/proc/{inner}/stat").read_text().rsplit(")", 1)[1].split()[1])
        now, later = namespaces.of_process(outer), namespaces.of_process(outer, for_children=True)
        assert now[NamespaceKind.PID] == host[NamespaceKind.PID]
        assert now[NamespaceKind.TIME] == host[NamespaceKind.TIME]
        assert later[NamespaceKind.PID] == theirs[NamespaceKind.PID]
        assert later[NamespaceKind.TIME] == theirs[NamespaceKind.TIME] != host[NamespaceKind.TIME]


def test_successive_namespaces_differ_even_where_the_inum_is_reused() -> None:
    if not namespaces.identify("/proc/self/ns/uts").id:
        pytest.skip("this kernel has no NS_GET_ID")
    seen = []
    for _ in range(8):
        with unshared(libc.CLONE_NEWUTS) as pid:
            seen.append(namespaces.identify(f"/proc/{pid}/ns/uts"))
    assert len({identity.id for identity in seen}) == 8


def test_parent_and_owner() -> None:
    host = namespaces.of_process("self")
    with unshared(libc.CLONE_NEWUSER | libc.CLONE_NEWUTS | libc.CLONE_NEWPID, fork=True) as pid:
        theirs = namespaces.of_process(pid)
        fds = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "uts", "pid", "ipc")}
        try:
            assert namespaces.owner(fds["uts"]) == namespaces.owner(fds["pid"]) == theirs[NamespaceKind.USER]
            assert namespaces.owner(fds["ipc"]) == host[NamespaceKind.USER]
            assert namespaces.parent(fds["pid"]) == host[NamespaceKind.PID]
            assert namespaces.parent(fds["user"]) == host[NamespaceKind.USER]
        finally:
            for fd in fds.values():
                os.close(fd)
    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    try:
        assert namespaces.parent(fd) is None
    finally:
        os.close(fd)


def test_enter_all_kinds_of_a_process_in_a_user_namespace() -> None:
    name = unique_name("host")
    flags = sum(kind.flag for kind in KINDS)
    with unshared(flags, fork=True, hostname=name) as pid:
        theirs = namespaces.read_inums(pid)

        def enter() -> object:
            namespaces.enter(pid, KINDS, procfs="/proc")
            return socket.gethostname(), os.stat("/proc/self/ns/user").st_ino  # old /proc still: no new one was mounted

        assert in_child(enter) == str((name, theirs[NamespaceKind.USER]))


def test_enter_one_by_one_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of kernels before v5.8: pidfds refused."""
    kinds = (NamespaceKind.MNT, NamespaceKind.USER, NamespaceKind.UTS, NamespaceKind.NET)
    monkeypatch.setattr(namespaces, "_enter_pidfd", lambda *_: False)
    with unshared(sum(kind.flag for kind in kinds)) as pid:
        theirs = namespaces.read_inums(pid)

        def enter() -> object:
            namespaces.enter(pid, kinds)
            return [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds]

        assert in_child(enter) == str([theirs[kind] for kind in kinds])


def test_enter_with_a_pidfd() -> None:
    with unshared(libc.CLONE_NEWUTS, hostname=(name := unique_name("host"))) as pid:

        def enter() -> object:
            namespaces.enter(pid, {NamespaceKind.UTS}, pidfd=os.pidfd_open(pid))
            return socket.gethostname()

        assert in_child(enter) == name


def test_an_ordinary_user_is_told_what_is_missing() -> None:
    with unshared(libc.CLONE_NEWUTS) as pid:

        def look() -> object:
            os.setresuid(65534, 65534, 65534)
            return namespaces.read_inums(pid)

        text = in_child(look)
        assert text.startswith("AccessError: process"), text

        def enter() -> object:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            namespaces.enter(os.getppid(), {NamespaceKind.UTS})
            return "entered"

        assert in_child(enter).startswith("AccessError")


def test_a_zombie_has_only_what_it_has() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert namespaces.read_inums(pid).keys() == {"pid", "user"}
    assert namespaces.of_process(pid).keys() == {"pid", "user"}
    os.waitpid(pid, 0)
    with pytest.raises(VanishedError):
        namespaces.of_process(pid)


def test_a_bind_mounted_namespace_is_listed_without_members(tmp_path: Path) -> None:
    """In a mount namespace of our own, so that no mount of ours is left on the machine."""
    place = f"{tmp_path}/pinned net"
    Path(place).touch()

    def pin() -> object:
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        with unshared(libc.CLONE_NEWNET) as pid:
            libc.mount(f"/proc/{pid}/ns/net", place, None, libc.MS_BIND)
            identity = namespaces.identify(f"/proc/{pid}/ns/net")
        found = [n for n in namespaces.list_all() if n.id == identity]
        pins = namespaces.read_pins()[identity[:2]]
        return [(n.members, n.pins) for n in found], pins

    text = in_child(pin)
    assert text == str(([((), (place,))], [place]))
