"""The unit of deploy/systemd under a booted systemd (Debian's 6.12, pure v2): it starts, is watched, reloads, ends, continues.

Emulated, some minutes: `make test-slow`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import support
from tests.support import ROOT
from tests.vm import kernels, machine, matrix

pytestmark = [pytest.mark.vm, pytest.mark.slow]

# The unit as it is but for where the program, its settings and its compiled objects are.
COMMAND = """
set -x
mkdir -p /etc/nsagent /etc/systemd/system/nsagent.service.d
cp {root}/deploy/systemd/nsagent.service /etc/systemd/system/
echo 'listen = "127.0.0.1:10417"' > /etc/nsagent/agent.toml
cat > /etc/systemd/system/nsagent.service.d/test.conf <<-END
	[Service]
	ExecStart=
	ExecStart={nsagent} agent --config /etc/nsagent/agent.toml --cache-dir /run/out/objects
	WorkingDirectory={root}
	TimeoutStartSec=20min
	WatchdogSec=10min
	ReadWritePaths=/run/out
	BindReadOnlyPaths={root}
END
systemctl daemon-reload
fetch() {{ {python} -c 'import urllib.request as u; print(u.urlopen("{url}", timeout=600).read().decode())'; }}
show() {{ systemctl show nsagent -p ActiveState -p SubState -p StatusText -p NRestarts -p Result; }}
systemctl start nsagent || {{ journalctl -u nsagent; exit 1; }}
show > /run/out/started
fetch > /run/out/first
systemctl reload nsagent; show > /run/out/reloaded
systemctl kill -s KILL nsagent
for i in $(seq 600); do
	sleep 1; show > /run/out/restarted
	grep -q NRestarts=1 /run/out/restarted && grep -q ActiveState=active /run/out/restarted && break
done
fetch > /run/out/second
systemctl stop nsagent; show > /run/out/stopped
ls /sys/fs/bpf/nsagent > /run/out/pins
journalctl -u nsagent -o cat > /run/out/journal
{nsagent} bpf unload
ls /sys/fs/bpf > /run/out/unloaded
"""


def value(exposition: str, series: str) -> float:
    """Return the value of a line of an exposition."""
    (found,) = [line.rpartition(" ")[2] for line in exposition.splitlines() if line.rpartition(" ")[0] == series]
    return float(found)


def test_the_unit(tmp_path: Path) -> None:
    support.require(not machine.missing(), machine.missing())
    support.require(Path("/lib/systemd/systemd").exists(), "systemd is not installed")
    support.require_root()
    kernel = kernels.fetch("6.12")
    matrix.prebuild(kernel, "v2", tmp_path / "objects")
    python = Path(sys.executable).absolute()
    command = COMMAND.format(root=ROOT, python=python, nsagent=python.parent / "nsagent", url="http://127.0.0.1:10417/metrics")
    outcome = machine.run(kernel, command, tmp_path, deadline_s=1500, memory_mib=2048, systemd=True)
    print(outcome.output, outcome.console[-3000:])
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert "ActiveState=active" in found["started"]
    assert "StatusText=serving 127.0.0.1:10417" in found["started"]
    assert "ActiveState=active" in found["reloaded"]
    assert value(found["first"], 'nsagent_cgroup_cpu_usage_seconds_total{cgroup="/system.slice"}') > 0
    assert "NRestarts=1" in found["restarted"]
    first, second = (value(found[name], 'nsagent_syscalls_total{syscall="clone3",result="ok"}') for name in ("first", "second"))
    assert second > first > 0, "it goes on counting"
    assert "ActiveState=inactive" in found["stopped"]
    assert "Result=success" in found["stopped"]
    assert found["pins"].strip()
    assert "nsagent" not in found["unloaded"]
    assert json.dumps(found["journal"]).count("event=ready") == 2
