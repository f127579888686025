"""Ways out of a job that others have found. Each is tried where it must fail, in a job that did run, and under `--privileged`,
where it works if it is possible at all: so the attempt is a real one.

What is touched is ours (canary files and processes), or is written with the value it has.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from tests import support
from tests.kernel.launching import USR, Jobs, make_rootfs

pytestmark = pytest.mark.kernel

REWRITE = 'f={}; v=$(cat "$f") && printf %s "$v" 2>/dev/null > "$f" && echo ESCAPED'
ADMIN = ("--cap-add", "SYS_ADMIN")
NEW_USER = ("--isolate", "all")
NODEV_ALONE = ("--device-policy", "open")  # by default there is a second guard


def escapes(jobs: Jobs, *words: str, script: str, pass_fds: tuple[int, ...] = ()) -> bool:
    """Run a script that says ESCAPED where it gets out; whether it does. It must have run."""
    done = jobs.run(*words, "--", "sh", "-c", f"echo ran\n{script}\n:", pass_fds=pass_fds)
    assert done.out.startswith("ran\n"), done.err
    return "ESCAPED" in done.out


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the host's beside the job's root."""
    path = tmp_path / "canary"
    path.write_text("host")
    return path


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's, with all the capabilities that root has."""
    process = subprocess.Popen(["sleep", "1000"], env={"CANARY": "host"})
    yield process
    process.kill()
    process.wait()


def test_a_leaked_descriptor_of_the_hosts_root(jobs: Jobs, rootfs: Path, canary: Path) -> None:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        script = f'for fd in /proc/self/fd/* /dev/fd/*; do test -e "$fd{canary}" && echo ESCAPED; done'
        words = ["--rootfs", str(rootfs), *USR]
        assert not escapes(jobs, *words, script=script, pass_fds=(root,))
        assert not escapes(jobs, *words, "--privileged", script=script, pass_fds=(root,))  # never inherited
        here = script.replace("/proc/self/fd/*", "/proc/self/root")
        assert escapes(jobs, script=here)  # the control: a job in the root of the host
        for fd, more in [*((fd, ()) for fd in range(3, 16)), (root, ("--privileged",))]:  # CVE-2024-21626: where it starts
            start = jobs.run(*words, *more, "--workdir", f"/proc/self/fd/{fd}", "--", "pwd", pass_fds=(root,))
            assert (start.code, start.out) == (125, ""), (fd, start.err)
        (rootfs / "link").symlink_to(f"/proc/self/fd/{root}")
        program = f"/proc/self/fd/{root}/usr/bin/true"
        for last in (["--workdir", "/link", "--", "pwd"], ["--", program], ["--", "/link/usr/bin/true"]):
            assert jobs.run(*words, *last, pass_fds=(root,)).code in {125, 126, 127}
    finally:
        os.close(root)


def test_overwriting_the_launchers_program(jobs: Jobs, rootfs: Path) -> None:
    """CVE-2019-5736: /proc/self/exe as CMD, or as the interpreter of one, and /proc/1/exe of an init."""
    words = ["--rootfs", str(rootfs), *USR]
    (rootfs / "script").write_text("#!/proc/self/exe\n")
    (rootfs / "script").chmod(0o755)
    (rootfs / "link").symlink_to("/proc/self/exe")
    (rootfs / "second").write_text("#!/script\n")
    (rootfs / "second").chmod(0o755)
    for command in ("/proc/self/exe", "/proc/thread-self/exe", "/script", "/link", "/second"):
        for more in ((), ("--privileged",), ("--init",)):
            done = jobs.run(*words, *more, "--", command, "-c", "print('ESCAPED')")
            assert (done.code, done.out) == (126, ""), (command, more, done.err)
    program = 'test -n "$(readlink /proc/1/exe)" && head -c 1 /proc/1/exe > /dev/null && echo ESCAPED'
    assert not escapes(jobs, *words, "--init", script=program)
    assert escapes(jobs, *words, "--init", "--privileged", script=program)


def test_overwriting_the_program_of_exec_by_changing_what_it_looks_at(jobs: Jobs, rootfs: Path) -> None:
    """A FIFO holds up who reads it, and is /proc/self/exe when it is executed; it was, before execveat(2) was asked."""
    change = """import os
os.mkfifo("/prog")
os.chmod("/prog", 0o755)
os.symlink("/proc/self/exe", "/new")
open("/ready", "w").close()
while True:
    fd = os.open("/prog", os.O_WRONLY)
    if os.path.lexists("/new"):
        os.rename("/new", "/prog")
    os.write(fd, b"x")
    os.close(fd)
"""
    name, _ = jobs.detach("--rootfs", str(rootfs), *USR, "--", "python3", "-c", change)
    try:
        support.wait_for((rootfs / "ready").exists, what="a FIFO")
        for _ in range(3):  # its own python is on a volume that is read-only
            program = "import os; print('ESCAPED' * os.access('/proc/self/exe', os.W_OK))"
            done = jobs.command("exec", name, "--", "/prog", "-c", program)
            assert "ESCAPED" not in done.stdout, done
    finally:
        assert jobs.command("rm", "--force", name).returncode == 0


def test_scripts_and_links_are_executed_as_the_kernel_does(jobs: Jobs, rootfs: Path) -> None:
    words = ["--rootfs", str(rootfs), *USR, "--volume", f"{rootfs}/tmp:/scripts"]
    (rootfs / "tmp" / "show").write_text("#! \t/bin/sh\t-e \nprintf '%s|' $0 \"$@\" $-\n")
    (rootfs / "tmp" / "outer").write_text("#!/scripts/show one two\n")
    (rootfs / "tmp" / "nothing").write_text("#!/nosuch\n")
    for script in ("show", "outer", "nothing"):
        (rootfs / "tmp" / script).chmod(0o755)
    (rootfs / "tmp" / "link").symlink_to("../scripts/../scripts/show")
    (rootfs / "tmp" / "loop").symlink_to("loop")
    assert jobs.run(*words, "--", "/scripts/show", "a b").out == "/scripts/show|a b|e|"
    assert jobs.run(*words, "--", "/scripts/link").out == "/scripts/link|e|"
    assert jobs.run(*words, "--", "/scripts/outer", "x").out == "/scripts/show|one two|/scripts/outer|x|e|"
    assert [jobs.run(*words, "--", f"/scripts/{name}").code for name in ("nothing", "loop", "none")] == [127, 126, 127]
    (rootfs / "tmp" / "show").chmod(0o644)
    assert jobs.run(*words, "--", "/scripts/show").code == 126


def test_writing_what_the_kernel_obeys(jobs: Jobs, rootfs: Path) -> None:
    script = REWRITE.format("/proc/sys/kernel/core_pattern")
    root = ("--rootfs", str(rootfs), *USR)
    for words in ((), NEW_USER, (*NEW_USER, *ADMIN), root):
        assert not escapes(jobs, *words, script=script), words
    assert escapes(jobs, "--privileged", script=script)
    again = f"mount -o remount,rw,bind /proc/sys 2>/dev/null; umount /proc/sys 2>/dev/null; {script}"
    assert not escapes(jobs, script=again)
    assert not escapes(jobs, *NEW_USER, *ADMIN, script=again), "it is another's file there"
    for file in ("/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/bus/pci/00/00.0"):
        if os.path.isfile(file):
            opened = f"(: >> {file}) 2>/dev/null && echo ESCAPED"
            assert not escapes(jobs, script=opened), file
            assert escapes(jobs, "--privileged", script=opened)


def test_writing_to_sysfs(jobs: Jobs) -> None:
    names = ("ksm/pages_to_scan", "transparent_hugepage/khugepaged/pages_to_scan", "transparent_hugepage/use_zero_page")
    file = next((f"/sys/kernel/mm/{name}" for name in names if os.path.exists(f"/sys/kernel/mm/{name}")), "")
    support.require(file, "none of these files is in /sys")
    script = REWRITE.format(file)
    for words in ((), ("--net", "none"), (*NEW_USER, *ADMIN)):
        assert not escapes(jobs, *words, script=script), words
    assert escapes(jobs, "--privileged", script=script)
    firmware = 'test -n "$(ls /sys/firmware 2>/dev/null)" && echo ESCAPED'
    assert not escapes(jobs, script=f"{firmware}; head -c 1 /proc/kcore 2>/dev/null | grep -q . && echo ESCAPED")


def v1_root() -> Path:
    """The root of a v1 hierarchy, with its release_agent."""
    for hierarchy in read_layout().hierarchies:
        if hierarchy.version == 1 and os.path.exists(f"{hierarchy.mountpoint}/release_agent"):
            return Path(hierarchy.mountpoint)
    pytest.skip("no v1 hierarchy with a release_agent")


def test_release_agent(jobs: Jobs) -> None:
    """CVE-2022-0492: the program that the kernel runs as root of the host when a v1 cgroup is empty."""
    top = v1_root()
    script = REWRITE.format(top / "release_agent") + f"\nls {top}/*/release_agent 2>/dev/null && echo ESCAPED"
    rewrite = REWRITE.format("/tmp/c/release_agent")
    keys = [hierarchy.key for hierarchy in read_layout().hierarchies if hierarchy.version == 1]
    mounts = "\n".join(f"mkdir -p /tmp/c; mount -t cgroup -o {key} none /tmp/c 2>/dev/null && {rewrite}" for key in keys)
    own_tmp = ("--tmpfs", "/tmp", "--workdir", "/")
    for words in ((), ("--isolate", "mnt,pid"), NEW_USER):
        assert not escapes(jobs, *words, script=script), words
        assert not escapes(jobs, *words, *own_tmp, script=mounts), words
    assert not escapes(jobs, *NEW_USER, *ADMIN, "--seccomp", "unconfined", *own_tmp, script=mounts)
    assert escapes(jobs, "--privileged", "--isolate", "mnt,pid", script=script)


def test_lifting_its_own_limits(jobs: Jobs) -> None:
    hierarchy = read_layout().of("pids")
    support.require(hierarchy, "no pids controller")
    assert hierarchy is not None
    place = hierarchy.mountpoint
    script = f"""
        for f in {place}/pids.max {place}/nsagent/nsagent-test-*/pids.max; do
            test -e $f && grep -q '^77$' $f && (echo max > $f) 2>/dev/null && grep -q max $f && echo ESCAPED
        done
        for f in {place}/tasks {place}/cgroup.procs {place}/nsagent/cgroup.procs; do
            (echo $$ > $f) 2>/dev/null && echo ESCAPED
        done"""
    words = ("--pids", "77")
    for more in ((), ("--isolate", "mnt,pid"), NEW_USER, (*NEW_USER, *ADMIN)):
        assert not escapes(jobs, *words, *more, script=script), more
    again = f"mount -o remount,rw,bind {place} 2>/dev/null; umount {place} 2>/dev/null;{script}"
    assert not escapes(jobs, *words, script=again)
    assert not escapes(jobs, *words, *NEW_USER, *ADMIN, script=again)
    assert escapes(jobs, *words, "--privileged", script=script)


PTRACE = """
import ctypes, os
c = ctypes.CDLL(None, use_errno=True)
c.ptrace.argtypes = [ctypes.c_long] * 4
if c.ptrace(16, {pid}, 0, 0) == 0:  # PTRACE_ATTACH
    os.waitpid({pid}, 0x40000000)
    c.ptrace(17, {pid}, 0, 0)
    print("ESCAPED")
"""


def test_looking_into_processes_of_the_host(jobs: Jobs, tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    program = tmp_path / "attach.py"
    program.write_text(PTRACE.format(pid=victim.pid))
    tmp_path.chmod(0o755)
    attach = f"{sys.executable} {program}"
    read = f"grep -q CANARY /proc/{victim.pid}/environ 2>/dev/null && echo ESCAPED"
    root = f"test -e /proc/{victim.pid}/root/etc && echo ESCAPED"
    shared = ("--isolate", "mnt")
    for script in (attach, read, root):
        for words in ((), NEW_USER, shared, ("--no-proc",), ("--isolate", "all", *ADMIN, "--no-proc")):
            assert not escapes(jobs, *words, script=script), (words, script)
        assert escapes(jobs, "--privileged", *shared, script=script), script
    assert victim.poll() is None


def test_signals_to_processes_of_the_host(jobs: Jobs, victim: subprocess.Popen[bytes]) -> None:
    script = f"kill -0 {victim.pid} 2>/dev/null && echo ESCAPED; kill -KILL -1 2>/dev/null"
    for words in ((), NEW_USER, ("--no-proc",)):
        assert not escapes(jobs, *words, script=script), words
    assert not escapes(jobs, "--privileged", script=script)  # a PID namespace has no name for it
    assert victim.poll() is None
    reached = f"kill -0 {victim.pid} && echo ESCAPED"
    assert escapes(jobs, "--privileged", "--isolate", "mnt", script=reached)  # the control: none of its own


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A node, made by the host: of a disk that can be read; where this host lets nobody make one, of /dev/zero."""
    disks = [line.split()[:2] for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    for kind, numbers in [*((stat.S_IFBLK, disk) for disk in disks), (stat.S_IFCHR, ["1", "5"])]:
        node = tmp_path / "nodes" / "-".join(numbers)
        node.parent.mkdir(exist_ok=True)
        try:
            os.mknod(node, 0o600 | kind, os.makedev(*map(int, numbers)))
            with node.open("rb") as file:
                if file.read(1):
                    return node
        except OSError:
            continue
    pytest.skip("no device of this host can be read")


def test_device_nodes(jobs: Jobs, rootfs: Path, device: Path) -> None:
    volume, status, left = device.parent, device.stat(), f"/data/{device.name}"
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    make = f"(mknod {{0}} {kind} {os.major(status.st_rdev)} {os.minor(status.st_rdev)} || test -{kind} {{0}}) 2>/dev/null"
    node = f"{make}; head -c 1 {{0}} 2>/dev/null | wc -c | grep -q 1 && echo ESCAPED"
    words = ("--rootfs", str(rootfs), *USR, "--volume", f"{volume}:/data", "--tmpfs", "/scratch")
    for place in ("/tmp/disk", "/data/disk", left, "/scratch/disk", "/dev/disk", "/dev/shm/disk", "/disk"):
        for more in (NODEV_ALONE, NEW_USER):
            assert not escapes(jobs, *words, *more, script=node.format(place)), (place, more)
    for place in ("/var/tmp", "/tmp", "/run", "/dev/shm"):
        path = f"{place}/{support.unique_name('disk')}"
        assert not escapes(jobs, *NODEV_ALONE, script=f"{node.format(path)}; rm -f {path}"), place
    if kind == "b":  # else it is one that every job has
        mounted = f"mount -t tmpfs none /mnt && {node.format('/mnt/disk')}"
        assert not escapes(jobs, *ADMIN, script=mounted)
        assert escapes(jobs, *ADMIN, *NODEV_ALONE, script=mounted)
    assert escapes(jobs, *words, "--privileged", script=node.format(left))
    assert escapes(jobs, *words, "--privileged", script=node.format("/disk"))


def test_a_user_namespace_inside(jobs: Jobs) -> None:
    """It has all capabilities, but over nothing that is not its own; and by default it cannot be had."""
    inside = "unshare --user --map-root-user --mount --pid --fork"
    made = f"{inside} echo ESCAPED 2>/dev/null"
    assert not escapes(jobs, script=made)
    assert not escapes(jobs, *NEW_USER, script=made)
    unconfined = ("--seccomp", "unconfined")
    assert escapes(jobs, *unconfined, script=made)  # the control, and the way to what follows
    attempts = {
        "a sysctl": f"mount -o remount,rw,bind /proc/sys; umount /proc/sys; {REWRITE.format('/proc/sys/kernel/core_pattern')}",
        "a proc that shows all": "mkdir -p /tmp/p; mount -t proc none /tmp/p && echo ESCAPED",
        "what is covered": "umount /proc/kcore && echo ESCAPED; umount /sys/firmware && echo ESCAPED",
        "a writable sysfs": "mount -o remount,rw,bind /sys && echo ESCAPED; umount /sys/fs/cgroup && echo ESCAPED",
        "a device": "mount -o remount,dev,bind /dev && echo ESCAPED; mknod /dev/n b 1 1 && echo ESCAPED",
    }
    for what, attempt in attempts.items():
        script = f"{inside} sh -c '{attempt.replace(chr(39), chr(34))}' 2>/dev/null"
        for words in ((), NEW_USER):
            assert not escapes(jobs, *words, *unconfined, "--tmpfs", "/tmp", "--workdir", "/", script=script), (what, words)
    assert escapes(jobs, "--privileged", script=REWRITE.format("/proc/sys/kernel/core_pattern"))


def test_links_and_dots_in_volumes(jobs: Jobs, rootfs: Path, canary: Path, tmp_path: Path) -> None:
    outside, source = tmp_path / "outside", tmp_path / "source"
    outside.mkdir()
    source.mkdir()
    (source / "shown").write_text("x")
    (rootfs / "absolute").symlink_to(outside)
    (rootfs / "relative").symlink_to("../" * 20 + str(outside)[1:])
    (rootfs / "magic").symlink_to("/proc/self/root")
    words = ("--rootfs", str(rootfs), *USR)
    for target in ("/absolute/a", "/relative/b", f"/usr/..{'/..' * 9}{outside}/c", "/tmp/../../../d"):
        done = jobs.run(*words, "--volume", f"{source}:{target}", "--", "sh", "-c", f"cat {target}/shown")
        assert (done.code, done.out) == (0, "x"), (target, done.err)
        assert list(outside.iterdir()) == [], target
    # below its own, empty /proc, which in the end is covered
    assert jobs.run(*words, "--volume", f"{source}:/magic/x", "--", "true").code == 0
    assert list(outside.iterdir()) == []
    ways = ("/data/../", "/data/../../", "/proc/1/root/../", "/proc/1/cwd/../", "/proc/1/cwd/", "/proc/1/root/")
    up = "\n".join(f"test -e {way}canary && echo ESCAPED" for way in ways)
    up += f"\ntest -e {canary} && echo ESCAPED; cd /data; cd ..; test -e canary && echo ESCAPED"
    up += f"\ntest -e /proc/1/root{canary} && echo ESCAPED"
    (source / "link").symlink_to("../canary")
    up += "\ntest -e /data/link && echo ESCAPED"
    for more in ((), ("--privileged",), ("--isolate", "all")):
        assert not escapes(jobs, *words, *more, "--volume", f"{source}:/data", script=up), more
    assert escapes(jobs, "--tmpfs", "/mnt", script=f"test -e {canary} && echo ESCAPED")  # the control: without a root of its own


CHROOT = """
import os
os.makedirs("/tmp/below", exist_ok=True)
here = os.open("/", os.O_RDONLY)
os.chroot("/tmp/below")
os.fchdir(here)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print("ESCAPED" if os.path.exists({canary!r}) else "inside")
"""


def test_leaving_a_root_by_chroot(jobs: Jobs, rootfs: Path, canary: Path) -> None:
    """The classic: a directory held open while the root becomes one below it."""
    program = rootfs / "tmp" / "out.py"
    program.write_text(CHROOT.format(canary=str(canary)))
    words = ("--rootfs", str(rootfs), *USR, "--", "python3", "/tmp/out.py")
    for more in ((), ("--privileged",)):
        assert jobs.run(*more, *words).out == "inside\n"
