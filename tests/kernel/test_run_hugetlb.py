"""`--hugetlb`: read back before CMD runs, refused by name, and obeyed by mmap(2)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.cgroups.layout import Hierarchy, read_layout
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel

PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
MAP = """
import mmap, sys
MAP_HUGETLB = 0x40000
def have(pages):
    with mmap.mmap(-1, pages << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB) as memory:
        for page in range(pages):
            memory[page << 21] = 1
have(1)
print("one")
have(2)
print("two")
"""


@pytest.fixture
def hierarchy() -> Hierarchy:
    """Where the controller is; 2 MB pages are there."""
    found = read_layout().of("hugetlb")
    if found is None or not PAGES.is_dir():
        pytest.skip("this host has no hugetlb controller, or no pages of 2 MB")
    return found


@pytest.fixture
def reserved() -> Iterator[None]:
    """Two huge pages more than there were."""
    file = PAGES / "nr_hugepages"

    def add(count: int) -> int:
        before = int(file.read_text())
        file.write_text(str(before + count))
        return int(file.read_text()) - before

    got = add(2)
    try:
        if got < 2:
            pytest.skip("two huge pages are not to be had")
        yield
    finally:
        add(-got)


def test_it_reads_back_from_inside(jobs: Jobs, hierarchy: Hierarchy) -> None:
    ends = ("limit_in_bytes", "rsvd.limit_in_bytes") if hierarchy.version == 1 else ("max", "rsvd.max")
    row = ":hugetlb:" if hierarchy.version == 1 else "^0::"
    script = f"path={hierarchy.mountpoint}$(grep '{row}' /proc/self/cgroup | cut -d: -f3); cd $path; cat hugetlb.2MB.{ends[0]}"
    script += f"; test ! -e hugetlb.2MB.{ends[1]} || cat hugetlb.2MB.{ends[1]}"
    done = jobs.run("--hugetlb", "2MB=5M", "--isolate", "pid", "--", "sh", "-c", script)
    assert done.code == 0, done.err
    assert set(done.out.split()) == {str(4 << 20)}  # whole pages


def test_a_size_this_host_lacks_is_refused_by_name(jobs: Jobs, hierarchy: Hierarchy) -> None:
    assert hierarchy.writable
    refused = jobs.run("--hugetlb", "3MB=6M", "--", "true")
    assert refused.code == 125
    assert refused.err.startswith("error: --hugetlb 3MB: this host has no huge pages of this size\nhint: ")
    noted = jobs.run("--best-effort", "--hugetlb", "3MB=6M", "--", "true")
    assert noted.code == 0, noted.err
    assert "not limited: --hugetlb 3MB: this host has no huge pages of this size" in noted.report["notes"]


@pytest.mark.usefixtures("hierarchy", "reserved")
def test_more_than_the_limit_cannot_be_mapped(jobs: Jobs) -> None:
    command = ("--", "python3", "-c", MAP)
    assert jobs.run("--hugetlb", "2MB=4M", *command).out == "one\ntwo\n"  # the control
    limited = jobs.run("--hugetlb", "2MB=2M", *command)
    assert (limited.out, limited.code) == ("one\n", 1), limited.err
    assert f"Errno {errno.ENOMEM}" in limited.err
    none = jobs.run("--hugetlb", "2MB=0", *command)
    assert (none.out, none.code) == ("", 1), none.err
