"""An ordinary user: a user namespace is added, limits need a delegated cgroup, and the report says what is missing."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from tests import support
from tests.kernel.launching import USR, make_rootfs

pytestmark = pytest.mark.kernel

NOBODY = 65534
NO_MANAGER = 77
HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


class Home:
    """A copy of the package and what it needs, readable by everybody, and a runtime directory of nobody's own."""

    def __init__(self, directory: Path) -> None:
        self.code = directory / "code"
        self.runtime = directory / "runtime"
        shutil.copytree(support.ROOT / "nsagent", self.code / "nsagent", ignore=shutil.ignore_patterns("__pycache__"))
        import click
        import pyseccomp

        shutil.copytree(Path(click.__file__).parent, self.code / "click")
        shutil.copy(pyseccomp.__file__, self.code)
        self.runtime.mkdir()
        os.chown(self.runtime, NOBODY, NOBODY)

    def run(self, *args: str, before: str = "") -> subprocess.CompletedProcess[str]:
        """Run `nsagent run` as nobody; `before` is shell that root runs in the same process first."""
        base = os.path.realpath(sys.executable)
        start = "import sys; from nsagent.cli import main; sys.argv[0] = 'nsagent'; main()"
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return subprocess.run(
            ["sh", "-c", f'{before}\nexec "$@"', "sh", *drop, base, "-B", "-c", start, "run", *args],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.code), "XDG_RUNTIME_DIR": str(self.runtime)},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def home() -> Iterator[Home]:
    support.require_root()
    support.require(shutil.which("setpriv"), "setpriv (util-linux) is not installed")
    directory = Path("/tmp") / support.unique_name("home")
    directory.mkdir(mode=0o755)
    made = Home(directory)
    base = os.path.realpath(sys.executable)
    probe = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", "--clear-groups", f"--regid={NOBODY}", "unshare", "-U", base, "-c", ""],
        check=False,
        capture_output=True,
    )
    support.require(probe.returncode == 0, "this host lets no ordinary user make a user namespace")
    yield made
    shutil.rmtree(directory)


def test_the_user_namespace_is_added(home: Home) -> None:
    done = home.run("--", "sh", "-c", "echo $$; id -u; cat /proc/self/uid_map; ls -d /proc/[0-9]* | wc -l")
    assert done.returncode == 0, done.stderr
    pid, uid, mapping, processes = done.stdout.splitlines()
    assert (pid, uid) == ("1", "0")
    assert mapping.split() == ["0", str(NOBODY), "1"]
    assert int(processes) <= 5
    assert "a user namespace was added" in done.stderr
    assert "no cgroup" in done.stderr
    (record,) = [json.loads(p.read_text()) for p in (home.runtime / "nsagent" / "jobs" / "ended").iterdir()]
    assert record["outcome"] == "success"
    assert "user" in record["isolate"]


def test_the_plan_says_so(home: Home) -> None:
    done = home.run("--dry-run", "--", "true")
    assert done.returncode == 0, done.stderr
    assert "a user namespace was added" in done.stdout
    assert f"uid 0 is {NOBODY} outside" in done.stdout


def test_limits_without_a_delegated_cgroup_are_refused(home: Home) -> None:
    done = home.run("--memory", "64M", "--", "echo", "ran")
    assert done.returncode == 125
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
    assert home.run("--", "echo", "ran").stdout == "ran\n"  # the control


def test_limits_in_a_delegated_cgroup(home: Home, cgroup_name: str) -> None:
    place = Path("/sys/fs/cgroup/pids") / cgroup_name
    support.require(place.parent.is_dir(), "pids is not a v1 hierarchy")
    place.mkdir()
    for path in (place, place / "tasks", place / "cgroup.procs"):
        os.chown(path, NOBODY, NOBODY)
    script = "cat /proc/self/cgroup; sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & wait"
    done = home.run("--isolate", "pid", "--pids", "3", "--", "sh", "-c", script, before=f"echo $$ > {place}/tasks")
    assert f"pids:/{cgroup_name}/nsagent/sh-" in done.stdout, done.stderr
    assert "fork" in done.stderr.lower()
    assert [p for p in (place / "nsagent").iterdir() if p.is_dir()] == []


def test_limits_in_a_delegated_cgroup_of_v2(home: Home, cgroup_name: str) -> None:
    """As systemd makes it for a scope with Delegate=yes. It holds the launcher and who started it, so both must step aside."""
    v2 = read_layout().v2
    huge = v2 is not None and "hugetlb" in v2.controllers and HUGE.is_dir()
    support.require(v2, "no cgroup v2 is mounted")
    assert v2 is not None
    options, name, value = ["--hugetlb", "2MB=4M"], "hugetlb.2MB.max", str(4 << 20)
    if not huge:
        options, name, value = ["--pids", "77"], "pids.max", "77"
        support.require("pids" in v2.controllers, "v2 has neither hugetlb nor pids")
    top = Path(v2.mountpoint)
    place = top / cgroup_name
    place.mkdir()
    controller = name.partition(".")[0]
    (top / "cgroup.subtree_control").write_text(f"+{controller}")
    for path in (place, *(place / f"cgroup.{file}" for file in ("procs", "threads", "subtree_control"))):
        os.chown(path, NOBODY, NOBODY)
    script = f"path=$(tail -n1 /proc/self/cgroup | cut -d: -f3); echo $path; cat {top}$path/{name}"
    done = home.run(*options, "--isolate", "pid", "--", "sh", "-c", script, before=f"echo $$ > {place}/cgroup.procs")
    assert done.returncode == 0, done.stderr
    where, limit = done.stdout.split()
    assert where.startswith(f"/{cgroup_name}/nsagent/sh-")
    assert limit == value
    again = home.run(*options, "--", "echo", "ran", before=f"echo $$ > {place}/nsagent.aside/cgroup.procs")
    assert (again.returncode, again.stdout) == (0, "ran\n"), again.stderr
    assert sorted(each.name for each in place.iterdir() if each.is_dir()) == ["nsagent", "nsagent.aside"]
    assert [each for each in (place / "nsagent").iterdir() if each.is_dir()] == []


# A manager of nobody's, as PID 1 would start it: in a cgroup that is its own, with a /run that says that systemd has booted. What
# asks it is below, in a cgroup of root's, for from elsewhere only PID 1 could move it.
MANAGER = """
mount -t tmpfs none /run && mkdir -p /run/systemd/system
for place in {places}; do echo $$ > $place/cgroup.procs; done
drop="setpriv --reuid={user} --regid={user} --clear-groups env XDG_RUNTIME_DIR={runtime} HOME={runtime}"
$drop {systemd} --user --unit=basic.target > /dev/null 2>&1 &
manager=$!
for place in {places}; do mkdir $place/session && echo $$ > $place/session/cgroup.procs; done
i=0
while ! test -S {runtime}/systemd/private && test $i -lt 1200 && kill -0 $manager; do i=$((i + 1)); sleep 0.1; done
code={none}
if $drop systemd-run --user --scope --quiet -p Delegate=yes true; then
    $drop PYTHONPATH={code} "$@"
    code=$?
fi
kill $manager
wait $manager
exit $code
"""


def test_systemd_gives_a_scope(home: Home, cgroup_name: str) -> None:
    """A real manager of the user's: the launcher begins again in a scope of it, and the job's limit holds there."""
    systemd = "/lib/systemd/systemd"
    if not os.path.exists(systemd) or shutil.which("systemd-run") is None:
        pytest.skip("systemd is not installed")
    layout = read_layout()
    trees = [each for each in layout.hierarchies if each.version == 2 or each.name == "systemd"]
    if layout.v2 is None or "hugetlb" not in layout.v2.controllers or not HUGE.is_dir():
        pytest.skip("v2 has no hugetlb, which systemd leaves to others")
    (Path(layout.v2.mountpoint) / "cgroup.subtree_control").write_text("+hugetlb")
    places = [Path(each.mountpoint) / cgroup_name for each in trees]
    for place in places:
        place.mkdir()
        for path in (place, *place.glob("cgroup.[pst]*")):
            os.chown(path, NOBODY, NOBODY)
    fields = {"places": " ".join(map(str, places)), "user": NOBODY, "systemd": systemd}
    manager = MANAGER.format(**fields, runtime=home.runtime, code=home.code, none=NO_MANAGER)
    start = "import sys; from nsagent.cli import main; sys.argv[0] = 'nsagent'; main()"
    script = f"path=$(tail -n1 /proc/self/cgroup | cut -d: -f3); echo $path; cat {layout.v2.mountpoint}$path/hugetlb.2MB.max"
    words = ["run", "--hugetlb", "2MB=4M", "--isolate", "pid", "--", "sh", "-c", script]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", manager, "sh", os.path.realpath(sys.executable), "-B", "-c", start, *words],
        env={"PATH": os.environ["PATH"]}, cwd="/", capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode == NO_MANAGER:
        pytest.skip(f"systemd does not run as a user's manager here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    where, limit = done.stdout.split()
    assert re.match(rf"/{cgroup_name}/.*/nsagent-run-[0-9a-f]{{8}}\.scope/nsagent/sh-", where)
    assert limit == str(4 << 20)
    assert "no cgroup" not in done.stderr


def test_a_root_of_its_own(home: Home) -> None:
    root = make_rootfs(home.code.parent)
    (root.parent / "in").mkdir()
    script = "echo $$; id -u; ls /; touch /x || echo no; touch /in/x || echo no; touch /tmp/x && cat /proc/self/status"
    mounts = ["--rootfs", str(root), "--read-only", *USR, "--volume", f"{root.parent}/in:/in:ro", "--tmpfs", "/tmp"]
    refused = home.run(*mounts, "--", "sh", "-c", script)
    assert refused.returncode == 125, "the mount point cannot be made: the root is not the user's"
    (root / "in").mkdir()
    done = home.run(*mounts, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:2] == ["1", "0"]
    assert words.count("no") == 2
    assert "Seccomp:\t2" in done.stdout
    assert "NoNewPrivs:\t1" in done.stdout
    every = home.run("--isolate", "all", *mounts, "--", "sh", "-c", script)
    assert every.returncode == 0, every.stderr


@pytest.mark.parametrize("user", ["7", "7:8"])
def test_the_one_id_can_be_another(home: Home, user: str) -> None:
    done = home.run("--user", user, "--", "sh", "-c", "id -u; id -g; cat /proc/self/uid_map")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", user.partition(":")[2] or str(pwd.getpwuid(7).pw_gid), "7", str(NOBODY), "1"]


def test_no_user_namespace(home: Home) -> None:
    done = home.run("--userns", "none", "--", "echo", "ran")
    assert done.returncode == 125
    assert done.stdout == ""
    assert "hint: " in done.stderr
    alone = home.run("--userns", "none", "--isolate", "none", "--", "grep", "-E", "CapBnd|Seccomp:|NoNew", "/proc/self/status")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.split()[-3:] == ["1", "Seccomp:", "2"]
    other = home.run("--userns", "none", "--isolate", "none", "--user", "0", "--", "id")
    assert other.returncode == 125
    assert "user" in other.stderr


def test_a_range_of_ones_own(home: Home) -> None:
    """As /etc/subuid of this test's own mount namespace has it; newuidmap writes the maps."""
    support.require(shutil.which("newuidmap") and shutil.which("newgidmap"), "uidmap is not installed")
    lines = home.code.parent / "sub"
    lines.write_text("nobody:300000:65536\n")
    bind = [
        f"touch /etc/{name}; mount --bind {lines} /etc/{name}" for name in ("subuid", "subgid") if Path(f"/etc/{name}").exists()
    ]
    support.require(len(bind) == 2, "no /etc/subuid and /etc/subgid")
    script = "cat /proc/self/uid_map; touch /tmp/f && chown 5:6 /tmp/f && stat -c %u:%g /tmp/f; id -G"
    before = 'test -n "$OWN" || exec env OWN=1 unshare -m sh -c \'' + "; ".join(bind) + '; exec "$@"\' sh "$@"'
    done = home.run("--tmpfs", "/tmp", "--", "sh", "-c", script, before=before)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", str(NOBODY), "1", "1", "300000", "65536", "5:6", "0"]
    other = home.run("--user", "1000:1000", "--tmpfs", "/tmp", "--", "sh", "-c", "id -u; touch /tmp/x || echo no", before=before)
    assert other.stdout.split()[0] == "1000", other.stderr
    beyond = home.run("--map-uid", "0:0:10", "--", "id", before=before)
    assert beyond.returncode == 125
    assert "newuidmap" in beyond.stderr
    assert "subuid" in beyond.stderr.splitlines()[-1]


def test_nothing_is_left_without_a_cgroup(home: Home) -> None:
    marker = f"6{os.getpid()}.5"
    done = home.run("--isolate", "none", "--", "sh", "-c", f"(setsid sleep {marker} >/dev/null 2>&1 &); echo ran")
    assert done.stdout == "ran\n", done.stderr
    from tests.kernel.launching import running

    assert running(marker) == []
