"""--user, --userns and id maps as root has them: who CMD is, inside and outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import USR, Jobs, make_rootfs

pytestmark = pytest.mark.kernel


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = make_rootfs(tmp_path)
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nbob:x:1234:99::/home/bob:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\nbobs:x:99:\nstaff:x:50:bob\nmany:x:77:al,bob\n")
    return root


WHO = ["sh", "-c", "id -u; id -g; id -G; echo $HOME; grep -c 0000000000000000 /proc/self/status"]


@pytest.mark.parametrize("userns", [[], ["--userns", "auto"]])
@pytest.mark.parametrize(
    ("user", "who"),
    [
        ("bob", "1234 99 99 50 77 /home/bob"),
        ("1234", "1234 99 99 50 77 /home/bob"),
        ("bob:staff", "1234 50 50 /home/bob"),
        ("5:6", "5 6 6 /"),
        ("7", "7 0 0 /"),
    ],
)
def test_who_cmd_is(jobs: Jobs, rootfs: Path, user: str, who: str, userns: list[str]) -> None:
    done = jobs.run(*userns, "--rootfs", str(rootfs), *USR, "--user", user, "--", *WHO)
    assert done.code == 0, done.err
    *words, empty = done.out.split()
    assert " ".join(words) == who
    assert int(empty) >= 4, "CapInh, CapPrm, CapEff, CapAmb"


def test_names_of_the_host(jobs: Jobs) -> None:
    assert jobs.run("--user", "daemon", "--", *WHO).out.split()[:2] == ["1", "1"]
    set_by_hand = jobs.run("--user", "daemon", "--env", "HOME=/mine", "--", "sh", "-c", "echo $HOME")
    assert set_by_hand.out == "/mine\n"
    unknown = jobs.run("--user", "nobody-of-this-name", "--", "echo", "ran")
    assert (unknown.code, unknown.out) == (125, "")
    assert "nobody-of-this-name" in unknown.err


def test_files_belong_to_the_user(jobs: Jobs, tmp_path: Path) -> None:
    place = Path("/var/tmp") / support.unique_name("out")
    place.mkdir()
    os.chown(place, 1234, 99)
    write = ["--user", "1234:99", "--volume", f"{place}:/mnt", "--workdir", "/mnt", "--", "touch"]
    try:
        assert jobs.run(*write, "made").code == 0
        status = (place / "made").stat()
        assert (status.st_uid, status.st_gid) == (1234, 99)
        assert jobs.run(*write, "/etc/made").code != 0
        mapped = jobs.run("--map-uid", "0:1234", "--map-gid", "0:99", "--volume", f"{place}:/mnt", "--", "touch", "/mnt/mapped")
        assert mapped.code == 0, mapped.err
        assert (place / "mapped").stat().st_uid == 1234
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def test_a_directory_that_the_user_may_not_enter(jobs: Jobs, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    done = jobs.run("--user", "1234", "--workdir", str(closed), "--", "pwd")
    assert done.code == 125
    assert "directory" in done.err
    assert jobs.run("--workdir", str(closed), "--", "pwd").out == f"{closed}\n"


def test_maps_as_asked_for(jobs: Jobs) -> None:
    show = ["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g"]
    done = jobs.run("--map-uid", "0:5000:10", "--map-uid", "10:7000", "--map-gid", "0:6000:5", "--", *show)
    assert done.out.split() == ["0", "5000", "10", "10", "7000", "1", "0", "6000", "5", "0", "0"]
    only_user = jobs.run("--map-uid", "7:5000", "--user", "7:7", "--", *show)
    assert only_user.out.split() == ["7", "5000", "1", "7", "5000", "1", "7", "7"], only_user.err
    missing = jobs.run("--map-uid", "0:5000:10", "--user", "10", "--", "id")
    assert missing.code == 125
    assert "not in the user namespace" in missing.err
    assert jobs.run("--map-uid", "zero", "--", "id").code == 2
    assert jobs.run("--userns", "none", "--isolate", "all", "--", "id").code == 2


def test_the_user_dies_with_the_launcher_too(jobs: Jobs) -> None:
    """A change of ids clears PR_SET_PDEATHSIG: it is set again."""
    import subprocess

    from tests.kernel.launching import running

    marker = f"71{os.getpid()}.5"
    _, argv = jobs.argv("--user", "1234", "--", "sleep", marker, report=False)
    with subprocess.Popen(argv) as launcher:
        support.wait_for(lambda: running(marker), what="the job")
        launcher.kill()
    support.wait_for(lambda: not running(marker), what="the end of the job")
