"""What CMD finds at / and below: a root of its own, volumes, tmpfs, /proc, /sys and /dev; and what it cannot do with them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import USR, Jobs, make_rootfs

pytestmark = pytest.mark.kernel


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A directory with another filesystem mounted inside."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "nsagent-test", str(inner)], check=True)
    (inner / "deep").write_text("deep")
    (inner.parent / "flat").write_text("flat")
    yield inner.parent
    subprocess.run(["umount", str(inner)], check=True)


def mountpoints(mountinfo: str) -> list[str]:
    return [line.split(" ")[4] for line in mountinfo.splitlines()]


@pytest.mark.parametrize("isolate", ["cgroup,ipc,mnt,pid,uts", "all", "mnt", "mnt,user"])
def test_a_root_of_its_own(jobs: Jobs, rootfs: Path, isolate: str) -> None:
    (rootfs / "marker").write_text("mine")
    script = "cat /marker; pwd; ls -di /; echo; cat /proc/self/mountinfo"
    done = jobs.run("--isolate", isolate, "--rootfs", str(rootfs), *USR, "--", "sh", "-c", script)
    assert done.code == 0, done.err
    first, _, mountinfo = done.out.partition("\n\n")
    assert first.split() == ["mine/", str(rootfs.stat().st_ino), "/"]
    allowed = ("/usr", "/proc", "/sys", "/dev")
    assert [p for p in mountpoints(mountinfo) if p != "/" and not p.startswith(allowed)] == [], "the old root is gone"
    assert mountpoints(mountinfo).count("/") == 1
    assert sorted(p.name for p in rootfs.iterdir() if p.is_dir() and not p.is_symlink()) == [
        "dev",
        "etc",
        "proc",
        "sys",
        "tmp",
        "usr",
    ]
    assert not any(list((rootfs / name).iterdir()) for name in ("dev", "proc", "sys", "usr")), "nothing is left there"


def test_the_new_root_is_no_chroot(jobs: Jobs, rootfs: Path) -> None:
    """The known way out of a chroot ends at the same root."""
    escape = (
        "import os; os.mkdir('/tmp/x'); here = os.open('/', 0); os.chroot('/tmp/x'); os.fchdir(here)\n"
        "for _ in range(50): os.chdir('..')\n"
        "os.chroot('.'); print(os.stat('/').st_ino, sorted(os.listdir('/'))[0])"
    )
    done = jobs.run("--rootfs", str(rootfs), *USR, "--", "python3", "-c", escape)
    assert done.out.split() == [str(rootfs.stat().st_ino), "bin"], done.err


def test_mount_points_are_made_in_the_root(jobs: Jobs, tmp_path: Path) -> None:
    root = tmp_path / "bare"
    root.mkdir()
    (tmp_path / "file").write_text("content")
    links = ["--tmpfs", "/deep/tmp", "--volume", f"{tmp_path}/file:/deep/in/file"]
    done = jobs.run("--rootfs", str(root), *USR, *links, "--", "/usr/bin/env", "-i", "/usr/bin/true")
    assert done.code in (0, 127), done.err  # without lib64 there is no loader: the mounts were made all the same
    assert (root / "deep" / "tmp").is_dir()
    assert (root / "deep" / "in" / "file").read_text() == ""


def test_read_only(jobs: Jobs, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    script = "for f in /x /etc/x /tmp/x /out/x /dev/shm/x; do (echo > $f) 2>/dev/null && echo $f; done"
    mounts = ["--rootfs", str(rootfs), *USR, "--tmpfs", "/tmp", "--volume", f"{tmp_path}/out:/out"]
    assert jobs.run("--read-only", *mounts, "--", "sh", "-c", script).out.split() == ["/tmp/x", "/out/x", "/dev/shm/x"]
    assert jobs.run(*mounts, "--", "sh", "-c", script).out.split() == ["/x", "/etc/x", "/tmp/x", "/out/x", "/dev/shm/x"]
    assert (tmp_path / "out" / "x").exists()
    here = tmp_path / "out" / "y"
    ro_host = jobs.run("--read-only", "--", "sh", "-c", f"echo > {here}; echo $?")
    assert ro_host.out.strip() != "0"
    assert "Read-only file system" in ro_host.err
    assert not here.exists()


def test_a_volume_has_what_is_mounted_below_it_and_is_read_only_to_the_bottom(jobs: Jobs, mounted: Path) -> None:
    script = "cat /v/flat /v/inner/deep; for f in /v/a /v/inner/a; do (echo > $f) 2>/dev/null && echo $f; done; true"
    with_root = ["--tmpfs", "/mnt", "--", "sh", "-c"]
    script = script.replace("/v/", "/mnt/v/")
    done = jobs.run("--volume", f"{mounted}:/mnt/v:ro", *with_root, script)
    assert done.out == "flatdeep", done.err
    assert jobs.run("--volume", f"{mounted}:/mnt/v", *with_root, script).out == "flatdeep/mnt/v/a\n/mnt/v/inner/a\n"
    assert (mounted / "inner" / "a").exists()


def test_links_and_dots_in_the_target_stay_inside(jobs: Jobs, rootfs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "f").write_text("data")
    (rootfs / "absolute").symlink_to(outside)
    (rootfs / "upwards").symlink_to("../../../../../../.." + str(outside))
    for target in ("/absolute/v", "/upwards/v", f"/etc/../../../..{outside}/v"):
        run = ["--rootfs", str(rootfs), *USR, "--volume", f"{tmp_path}/data:{target}", "--", "cat", f"{outside}/v/f"]
        done = jobs.run(*run)
        assert done.out == "data", done.err
        assert list(outside.iterdir()) == [], target
    (tmp_path / "source").symlink_to(tmp_path / "data")
    followed = jobs.run("--rootfs", str(rootfs), *USR, "-v", f"{tmp_path}/source:/s", "--", "cat", "/s/f")
    assert followed.out == "data", followed.err


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_root_cannot_lead_the_kernels_mounts_astray(jobs: Jobs, rootfs: Path, name: str) -> None:
    (rootfs / name).rmdir()
    (rootfs / name).symlink_to("etc")
    done = jobs.run("--rootfs", str(rootfs), *USR, "--", "true")
    assert done.code == 125
    assert f"/{name}" in done.err.splitlines()[0]
    (rootfs / name).unlink()
    assert jobs.run("--rootfs", str(rootfs), *USR, "--", "true").code == 0  # the control; the directory is made


def test_a_volume_through_a_link_to_proc_is_under_it(jobs: Jobs, rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "link").symlink_to("proc")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "version").write_text("fake")
    done = jobs.run("--rootfs", str(rootfs), *USR, "-v", f"{tmp_path}/fake:/link/self", "--", "cat", "/proc/self/comm")
    assert done.out == "cat\n", done.err


def test_a_tmpfs_has_its_size(jobs: Jobs, tmp_path: Path) -> None:
    script = f"df -k --output=size {tmp_path} | tail -1; stat -c %a {tmp_path}; pwd; ls"
    done = jobs.run("--tmpfs", f"{tmp_path}:size=256k,mode=750", "--", "sh", "-c", script, cwd=tmp_path)
    assert done.out.split() == ["256", "750", str(tmp_path)], done.err
    program = f"cp /bin/true {tmp_path}/t && {tmp_path}/t; echo $?"
    assert jobs.run("--tmpfs", str(tmp_path), "--", "sh", "-c", program).out == "126\n"
    assert jobs.run("--tmpfs", f"{tmp_path}:exec", "--", "sh", "-c", program).out == "0\n"


def test_dev_has_a_few_nodes_and_no_others_can_be_made(jobs: Jobs, rootfs: Path) -> None:
    for root in ([], ["--rootfs", str(rootfs), *USR]):
        listing = jobs.run(*root, "--", "ls", "/dev").out.split()
        assert " ".join(listing) == "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
        nodes = "cd {}; mknod n c 1 3 && echo made && (echo x > n) 2>/dev/null && echo opened; rm -f n"
        for place in ("/dev", "/tmp", "/dev/shm"):
            assert jobs.run(*root, "--", "sh", "-c", nodes.format(place)).out == "made\n"
        assert jobs.run(*root, "--privileged", "--", "sh", "-c", nodes.format("/tmp")).out == "made\nopened\n"
    works = (
        "echo x > /dev/null; head -c 3 /dev/zero | wc -c; echo x > /dev/full || echo full; python3 -c 'import pty; pty.openpty()'"
    )
    done = jobs.run("--", "sh", "-c", works)
    assert done.out.split() == ["3", "full"], done.err
    assert done.code == 0


def test_a_device_is_there_when_it_is_named(jobs: Jobs) -> None:
    done = jobs.run("--volume", "/dev/null:/dev/mine", "--", "sh", "-c", "echo x > /dev/mine; stat -c %F /dev/mine")
    assert (done.out, done.err) == ("character special file\n", "")


def test_proc_and_sys_cannot_be_written(jobs: Jobs) -> None:
    knob = "/proc/sys/kernel/panic"
    value = Path(knob).read_text().strip()
    write = ["sh", "-c", f"echo {value} > {knob} && echo written; cat {knob}"]
    assert jobs.run("--", *write).out == f"{value}\n"
    assert jobs.run("--privileged", "--", *write).out == f"written\n{value}\n"
    sysfs = "/sys/kernel/mm/transparent_hugepage/enabled"
    support.require(os.path.exists(sysfs), "no transparent huge pages")
    now = Path(sysfs).read_text().split("[")[1].split("]")[0]
    write = ["sh", "-c", f"echo {now} > {sysfs} && echo written; cat {sysfs}"]
    assert jobs.run("--", *write).out == Path(sysfs).read_text()
    assert jobs.run("--privileged", "--", *write).out.startswith("written\n")


def test_what_tells_too_much_is_covered(jobs: Jobs) -> None:
    script = "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l"
    assert jobs.run("--", "sh", "-c", script).out.split() == ["0", "0"]
    host = [Path("/proc/timer_list").read_bytes(), os.listdir("/sys/firmware")]
    assert all(host), "the control: they have something outside"


def test_the_cgroups_inside_are_the_jobs_and_read_only(jobs: Jobs, rootfs: Path) -> None:
    mounts = [path for path in support.cgroup_mounts() if path.is_relative_to("/sys/fs/cgroup")]
    script = "for d in {}; do cat $d/cgroup.procs | tr '\n' ' '; mkdir $d/x 2>/dev/null && echo made; done".replace("\n", "\\n")
    for root in ([], ["--rootfs", str(rootfs), *USR], ["--isolate", "all"]):
        done = jobs.run(*root, "--", "sh", "-c", script.format(" ".join(map(str, mounts))))
        words = done.out.split()
        assert "made" not in words
        assert words.count("1") == len(mounts), "PID 1, and who reads, is all there is"
    shared = jobs.run("--isolate", "mnt,pid", "--", "sh", "-c", script.format(mounts[0]))
    assert "made" not in shared.out


def test_the_directory_of_cmd_inside(jobs: Jobs, rootfs: Path) -> None:
    base = ["--rootfs", str(rootfs), *USR]
    assert jobs.run(*base, "--workdir", "/etc", "--", "pwd").out == "/etc\n"
    assert jobs.run(*base, "--", "pwd").out == "/\n"
    wrong = jobs.run(*base, "--workdir", "/proc/self/fd/3", "--", "pwd")
    assert wrong.code == 125
    assert "directory" in wrong.err


def test_what_is_refused_says_what_to_do(jobs: Jobs, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for args, code, words in (
        (["--volume", f"{missing}:/mnt"], 125, f"error: --volume {missing}: No such file or directory"),
        (["--volume", f"/usr:{missing}"], 125, str(missing)),
        (["--volume", "/usr"], 2, "SRC:DST"),
        (["--tmpfs", f"{tmp_path}:size=lots"], 125, "tmpfs"),
        (["--rootfs", str(missing)], 2, "not a directory"),
        (["--isolate", "pid", "--read-only"], 2, "mnt"),
    ):
        done = jobs.run(*args, "--", "echo", "ran")
        assert (done.code, done.out) == (code, ""), args
        first, second = done.err.splitlines()
        assert words in first + second, done.err
        assert second.startswith("hint: ")
    assert not missing.exists()
    assert jobs.cgroups() == []
