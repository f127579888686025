"""What is read of namespaces made here, in which a known thing was done; then all of it through a real agent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent import namespaces, procfs
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.nsfigures import PIDS_EVERY_S, NamespaceFigures, NamespaceReader
from tests.kernel.agents import get, running
from tests.support import require, require_root, wait_for

pytestmark = pytest.mark.kernel

TELL = "\nimport os, sys, json; print(json.dumps([int(os.readlink('/proc/self')), globals().get('told')]), flush=True)\n"
WAIT = "sys.stdin.read()\n"
TRAFFIC = """
import socket, subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10):
    sender.sendto(bytes(1000), receiver.getsockname())
    receiver.recv(2000)
"""
DATAGRAM = 20 + 8 + 1000  # with its IPv4 and UDP headers: loopback counts no Ethernet header (drivers/net/loopback.c)
HOSTILE = b'a"b\\101{}=,\x01\xfe'
WRITTEN = r'a"b\134101{}=,\001\376'


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()
    require(shutil.which("unshare") and shutil.which("ip"), "unshare and ip are not installed")


@contextlib.contextmanager
def inside(*prefix: str, code: str = "") -> Iterator[tuple[int, Any]]:
    """Have a process that ran `code` behind `prefix` and now waits: its pid here, and what it set `told` to."""
    argv = [*prefix, sys.executable, "-c", code + TELL + WAIT]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, f"{argv} ended with {process.wait()}"
            pid, told = json.loads(line)
            yield pid, told
        finally:
            process.communicate(timeout=120)


def identify(pid: int, kind: NamespaceKind) -> NamespaceId:
    return namespaces.identify(f"/proc/{pid}/ns/{kind}")


def read(pid: int, kind: NamespaceKind) -> NamespaceFigures:
    namespace = identify(pid, kind)
    return NamespaceReader(budget_s=600).read({namespace: pid}).namespaces[namespace]


def add_device(pid: int) -> subprocess.CompletedProcess[bytes]:
    """Make a device of that name in the net namespace of a process."""
    words = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "add", os.fsdecode(HOSTILE), "type", "veth"]
    return subprocess.run(words, capture_output=True, check=False)


def test_traffic_is_counted_to_the_byte() -> None:
    with inside("unshare", "--net", code=TRAFFIC) as (pid, _):
        figures = read(pid, NamespaceKind.NET)
        lo = figures.devices["lo"]
        assert lo == (10 * DATAGRAM, 10, 0, 0, 10 * DATAGRAM, 10, 0, 0)
        assert figures.tcp_retransmitted_segments == 0
        assert figures.sockets["udp"] == 2
        assert (figures.sockets["tcp"], figures.sockets["raw"]) == (0, 0)
        has_conntrack = os.path.exists(f"/proc/{pid}/net/stat/nf_conntrack")
        assert figures.conntrack_entries in ([0, 10, 1] if has_conntrack else [None])


def test_a_counter_does_not_fall_when_the_oldest_member_goes() -> None:
    with contextlib.ExitStack() as first:
        oldest, _ = first.enter_context(inside("unshare", "--net", code=TRAFFIC))
        namespace = identify(oldest, NamespaceKind.NET)
        with inside("nsenter", f"--net=/proc/{oldest}/ns/net") as (second, _):
            reader = NamespaceReader(budget_s=600)
            before = reader.read({namespace: oldest}).namespaces[namespace].devices["lo"]
            first.close()
            wait_for(lambda: not os.path.exists(f"/proc/{oldest}"), what="the oldest to be gone")
            between = reader.read({namespace: oldest}).namespaces[namespace].devices["lo"]
            after = reader.read({namespace: second}).namespaces[namespace].devices["lo"]
            assert before == between == after == (10 * DATAGRAM, 10, 0, 0, 10 * DATAGRAM, 10, 0, 0)


def test_who_left_tells_nothing_of_the_namespace() -> None:
    with inside() as (pid, _):
        ours = identify(pid, NamespaceKind.NET)
        assert NamespaceReader().read({ours._replace(inum=ours.inum + 1): pid}).namespaces == {}
        if ours.id:
            assert NamespaceReader().read({ours._replace(id=ours.id + 1): pid}).namespaces == {}, "another under its number"


def test_any_name_of_a_device() -> None:
    with inside("unshare", "--net") as (pid, _):
        made = add_device(pid)
        require(made.returncode == 0, f"no veth device can be made: {made.stderr.decode()}")
        devices = read(pid, NamespaceKind.NET).devices
        assert os.fsdecode(HOSTILE) in devices
        assert set(devices) >= {"lo", "veth0"}


def test_mounts() -> None:
    mount = "\nimport os, subprocess; told = [open('/proc/self/mountinfo').read().count(chr(10))]\n"
    mount += "for _ in range(3): subprocess.run(['mount', '-t', 'tmpfs', 'nsagent-test', '/mnt'], check=True)\n"
    with inside("unshare", "--mount", code=mount) as (pid, told):
        assert read(pid, NamespaceKind.MNT).mounts == told[0] + 3


def test_depth_of_user_namespaces() -> None:
    nested = ("unshare", "--user", "--map-root-user")
    with inside(*nested * 3) as (pid, _):
        assert read(pid, NamespaceKind.USER).userns_depth == 3
    assert read(os.getpid(), NamespaceKind.USER).userns_depth == 0


def test_highest_pid() -> None:
    require(os.path.exists("/proc/sys/kernel/ns_last_pid"), "this kernel has no ns_last_pid")
    fork = "\nimport subprocess; open('/proc/sys/kernel/ns_last_pid', 'w').write('7776')\n"
    fork += "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE); told = child.pid\n"
    wait = ("unshare", "--pid", "--fork")
    with inside(*wait, code=fork) as (pid, told):
        assert told == 7777
        assert read(pid, NamespaceKind.PID).highest_pid == 7777
    with inside(*wait, *wait) as (pid, _):  # of the outer one a member is not needed here: 1 is unshare, 2 the inner one's 1
        reader = NamespaceReader(budget_s=600)
        outer = procfs.read_stat(pid).ppid
        found = reader.read({identify(each, NamespaceKind.PID): each for each in (pid, outer, os.getpid())}).namespaces
        assert found[identify(pid, NamespaceKind.PID)].highest_pid == 1
        assert found[identify(outer, NamespaceKind.PID)].highest_pid == 2
        assert (found[identify(os.getpid(), NamespaceKind.PID)].highest_pid or 0) >= pid


def test_a_highest_pid_is_not_told_before_all_processes_were_asked() -> None:
    with inside("unshare", "--pid", "--fork") as (pid, _):
        time, step = 0.0, 0.5

        def clock() -> float:
            nonlocal time
            time += step
            return time

        reader = NamespaceReader(budget_s=9, clock=clock)  # time for about seven processes
        members = {identify(pid, NamespaceKind.PID): pid, identify(os.getpid(), NamespaceKind.PID): os.getpid()}
        inner, own = (reader.read(members).namespaces[namespace].highest_pid for namespace in members)
        assert (inner, (own or 0) >= pid) == (None, True)
        time, step = time + PIDS_EVERY_S, 0.0
        assert reader.read(members).namespaces[identify(pid, NamespaceKind.PID)].highest_pid == 1


def test_offsets_of_clocks() -> None:
    require(os.path.exists("/proc/self/ns/time"), "this kernel has no time namespaces")
    offsets = ("--monotonic", "-5", "--boottime", "86400")
    with inside("unshare", "--time", "--fork", *offsets) as (pid, _):
        figures = read(pid, NamespaceKind.TIME)
        assert figures.clock_offsets == {"monotonic": -5, "boottime": 86400}
    assert read(os.getpid(), NamespaceKind.TIME).clock_offsets == {"monotonic": 0, "boottime": 0}


def test_an_unborn_time_namespaces_offsets_are_not_taken_for_ones_own() -> None:
    require(os.path.exists("/proc/self/ns/time"), "this kernel has no time namespaces")
    code = "from nsagent import libc; libc.unshare(libc.CLONE_NEWTIME)\n"
    code += "open('/proc/self/timens_offsets', 'w').write('boottime 99 0')"
    with inside(code=code) as (pid, _):
        ours = identify(pid, NamespaceKind.TIME)
        assert "99" in Path(f"/proc/{pid}/timens_offsets").read_text()
        assert NamespaceReader().read({ours: pid}).namespaces == {}


def test_limits_are_the_sysctls() -> None:
    limits = NamespaceReader().read({}).limits
    assert limits[NamespaceKind.NET] == int(Path("/proc/sys/user/max_net_namespaces").read_text())
    assert {str(kind) for kind in limits} == {
        name[4:-11] for name in os.listdir("/proc/sys/user") if name.endswith("_namespaces")
    }


def test_what_another_user_may_not_read_is_absent() -> None:
    with inside() as (pid, _):
        members = {identify(pid, kind): pid for kind in (NamespaceKind.NET, NamespaceKind.MNT, NamespaceKind.USER)}
        assert len(NamespaceReader(budget_s=600).read(members).namespaces) == 3
        os.seteuid(65534)
        try:
            assert NamespaceReader(budget_s=600).read(members).namespaces == {}
        finally:
            os.seteuid(0)


def test_an_agent_exports_them(world: list[str]) -> None:
    with inside("unshare", "--net", "--mount", code=TRAFFIC) as (pid, _), running(world, "--ephemeral") as agent:
        made = add_device(pid)
        net, mnt = (
            {"kind": kind, "inum": str(name.inum), "id": str(name.id)}
            for kind in (NamespaceKind.NET, NamespaceKind.MNT)
            for name in [identify(pid, kind)]
        )
        received = "nsagent_namespace_network_receive_bytes_total"
        # members of namespaces are looked for every 15 s
        wait_for(lambda: get(agent.scrape(), received, device="lo", **net) is not None, what="the first figures")
        samples = agent.scrape()
        assert get(samples, received, device="lo", **net) == 10 * DATAGRAM
        if made.returncode == 0:
            assert get(samples, received, device=WRITTEN, **net) == 0
        assert get(samples, "nsagent_namespace_sockets", protocol="udp", **net) == 2
        assert get(samples, "nsagent_namespace_mounts", **mnt) == Path(f"/proc/{pid}/mountinfo").read_text().count("\n")
        assert get(samples, "nsagent_namespace_limit", kind="net") is not None
        assert get(samples, "nsagent_collector_success", collector="namespaces") == 1
        burn = "import time\nwhile time.process_time() < 4: pass\n"

        def error() -> list[float]:
            subprocess.run([sys.executable, "-c", burn], check=True)
            ratio = get(agent.scrape(), "nsagent_accounting_error_ratio", resource="cpu")
            return [] if ratio is None else [ratio]

        (ratio,) = wait_for(error, what="enough CPU time to compare")
        assert abs(ratio) < 0.02
