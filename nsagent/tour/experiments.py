"""The experiments on namespaces. Each is a function on a Stage; what it says is in nsagent.tour.texts, under its name."""

from __future__ import annotations

import os
import re
import socket
from typing import Final

from nsagent.tour.stage import Stage

AHEAD_S: Final = 7 * 86400
_ADMIN: Final = "--cap-add SYS_ADMIN"


def uts(stage: Stage) -> None:
    """The host name: changed inside, compared outside; and refused without the capability for it."""
    stage.say("uts.about")
    before = stage.host("hostname").out
    stage.say("uts.change")
    inside = stage.nsagent(f"run --name tour-uts {_ADMIN} -- sh -c", "hostname; hostname nsagent-tour; hostname").lines
    stage.claim("uts.copied", inside[:1] == [before.strip()])
    stage.claim("uts.changed", inside[-1:] == ["nsagent-tour"])
    stage.say("uts.outside")
    stage.claim("uts.kept", stage.host("hostname").out == before)
    stage.differs("tour-uts", "uts")
    stage.used("tour-uts")
    stage.say("uts.capability")
    refused = stage.nsagent("run --name tour-uts-refused -- hostname nsagent-tour")
    stage.claim("uts.refused", refused.code != 0 and stage.result("tour-uts-refused").outcome == "failure")


def pid(stage: Stage) -> None:
    """PID 1 and ps; one process with two numbers; what /proc shows before and after a fresh mount."""
    stage.say("pid.about")
    everybody = stage.host("ps -e | wc -l")
    stage.say("pid.first")
    inside = stage.nsagent("run --name tour-pid -- sh -c", "echo $$; ps -e").lines
    stage.claim("pid.one", inside[:1] == ["1"])
    seen = {line.split()[-1] for line in inside[2:] if line}
    stage.claim("pid.few", seen == {"sh", "ps"}, count=len(seen), all=everybody.out.strip())
    stage.differs("tour-pid", "pid")
    stage.say("pid.two")
    stage.nsagent("run --name tour-sleep --detach -- sleep 3600")
    outside = stage.job("tour-sleep").pid
    numbers = stage.host(f"grep NSpid /proc/{outside}/status").out.split()
    stage.claim("pid.both", numbers[1:2] == [str(outside)] and numbers[-1:] == ["1"], outside=outside)
    stage.nsagent("stop tour-sleep")
    stage.used("tour-sleep")
    stage.say("pid.proc")
    if os.geteuid() != 0:
        raise stage.not_shown("pid.user")
    script = "ps -e | wc -l; mount -t proc proc /proc; ps -e | wc -l"
    counts = stage.nsagent(f"run --name tour-proc --no-proc {_ADMIN} -- sh -c", script).lines
    stage.claim("pid.fresh", len(counts) == 2 and int(counts[0]) > int(counts[1]))


def mnt(stage: Stage) -> None:
    """A mount that is seen inside alone."""
    place = stage.directory()
    stage.say("mnt.about")
    script = f"mount -t tmpfs tour {place} && touch {place}/inside && ls {place} && grep {place} /proc/self/mounts"
    inside = stage.nsagent(f"run --name tour-mnt {_ADMIN} -- sh -c", script).lines
    stage.claim("mnt.mounted", inside[:1] == ["inside"] and f"tour {place} tmpfs" in "".join(inside[1:]))
    stage.say("mnt.outside")
    stage.claim("mnt.empty", stage.host(f"ls {place}").out == "")
    stage.claim("mnt.unseen", stage.host(f"grep -c {place} /proc/self/mounts").lines == ["0"])
    stage.differs("tour-mnt", "mnt")
    stage.used("tour-mnt")


def user(stage: Stage) -> None:
    """Ids inside and outside: root of a user namespace is somebody else outside."""
    place = stage.directory()
    stage.say("user.about")
    inside = stage.nsagent(
        "run --name tour-user --userns auto -- sh -c", f"id -u; cat /proc/self/uid_map; touch {place}/made"
    ).lines
    stage.claim("user.root", inside[:1] == ["0"])
    stage.say("user.outside")
    owner = stage.host(f"stat -c %u {place}/made").out.strip()
    mapped = {row[0]: row[1] for row in map(str.split, inside[1:]) if len(row) == 3}
    stage.claim("user.mapped", mapped.get("0") == owner, owner=owner)
    key, holds = ("user.nobody", owner != "0") if os.geteuid() == 0 else ("user.yours", owner == str(os.geteuid()))
    stage.claim(key, holds, owner=owner)
    stage.differs("tour-user", "user")
    stage.used("tour-user")


def net(stage: Stage) -> None:
    """One port, bound twice."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stage.say("net.about", port=port)
        bind = f'import socket; socket.create_server(("127.0.0.1", {port})); print("bound")'
        taken = stage.nsagent("run --name tour-net-host -- python3 -c", bind)
        stage.claim("net.taken", taken.code != 0 and "Address already in use" in taken.out, port=port)
        stage.say("net.own")
        bound = stage.nsagent("run --name tour-net --net none -- python3 -c", bind)
        stage.claim("net.bound", (bound.code, bound.lines) == (0, ["bound"]), port=port)
        stage.differs("tour-net", "net")
        stage.used("tour-net")
        stage.say("net.devices")
        devices = stage.nsagent("run --name tour-net-dev --net none -- cat /proc/net/dev").lines[2:]
        stage.claim("net.loopback", [line.partition(":")[0] for line in devices] == ["lo"])


def ipc(stage: Stage) -> None:
    """A message queue that is not seen outside."""
    stage.say("ipc.about")
    stage.nsagent("run --name tour-ipc --detach -- sleep 3600")
    stage.nsagent("exec tour-ipc -- ipcmk -Q")
    inside = _queues(stage.nsagent("exec tour-ipc -- ipcs -q").out)
    stage.claim("ipc.inside", len(inside) == 1)
    stage.say("ipc.outside")
    stage.claim("ipc.unseen", not set(inside) & set(_queues(stage.host("ipcs -q").out)))
    stage.differs("tour-ipc", "ipc")
    stage.say("ipc.end")
    stage.nsagent("stop tour-ipc")
    stage.used("tour-ipc")


def _queues(text: str) -> list[str]:
    """Return the keys that ipcs -q lists."""
    return re.findall(r"^(0x[0-9a-f]+)", text, re.MULTILINE)


def time(stage: Stage) -> None:
    """A clock that is a week ahead."""
    stage.say("time.about")
    before = float(stage.host("cat /proc/uptime").out.split()[0])
    inside = float(stage.nsagent("run --name tour-time --clock-offset boottime:7d -- cat /proc/uptime").out.split()[0])
    after = float(stage.host("cat /proc/uptime").out.split()[0])
    stage.claim("time.ahead", before <= inside - AHEAD_S <= after)
    stage.differs("tour-time", "time")
    stage.used("tour-time")
