"""What doctor says, and that each "no" has its reason, consequence and remedy; on the real kernel where root is not needed."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from nsagent import doctor
from nsagent.doctor import Finding, Report
from nsagent.kernel import btf, build, features, probes
from nsagent.kernel.features import TABLE
from nsagent.kernel.probes import Paths
from tests.support import require, run_nsagent


def test_capabilities_have_their_numbers() -> None:
    assert doctor.decode_capabilities(1 << 21 | 1 << 19) == ["sys_ptrace", "sys_admin"]
    assert doctor.decode_capabilities(1 << 38 | 1 << 39) == ["perfmon", "bpf"]
    assert doctor.decode_capabilities(1 << 24 | 1 << 45) == ["sys_resource", "cap_45"]
    assert doctor.decode_capabilities(0) == []


def test_every_feature_has_a_probe_a_consequence_and_a_remedy() -> None:
    assert len({row[0] for row in TABLE}) == len(TABLE)
    for name, _needed, consequence, remedy in TABLE:
        assert callable(getattr(probes.Probes, name))
        assert consequence
        assert remedy


def test_each_no_explains_itself_and_each_yes_is_short() -> None:
    found = features.probe()
    assert [feature.name for feature in found] == [row[0] for row in TABLE]
    for feature in found:
        assert feature.reason, feature
        assert bool(feature.consequence) is bool(feature.remedy) is not feature.available, feature


def tree(tmp_path: Path) -> Paths:
    """An empty /proc and /sys."""
    for part in ("proc/self/ns", "sys/kernel", "cgroup"):
        (tmp_path / part).mkdir(parents=True)
    return Paths(str(tmp_path / "proc"), str(tmp_path / "sys"), str(tmp_path / "cgroup"))


def ask(paths: Paths, name: str) -> features.Feature:
    return next(feature for feature in features.probe(paths) if feature.name == name)


def test_a_kernel_without_btf(tmp_path: Path) -> None:
    found = {feature.name: feature for feature in features.probe(tree(tmp_path))}
    assert found["btf"].available is False
    assert found["btf"].reason.startswith("no ")
    assert "CONFIG_DEBUG_INFO_BTF" in found["btf"].remedy
    assert found["tp_btf"].available is found["iter_task"].available is found["task_storage"].available is False
    assert found["iter_task"].reason in {"no BTF", "bpf(2) is refused", "no bpf(2) in this kernel"}
    assert found["ns_id"].available is False


def test_broken_btf_is_a_no_and_no_traceback(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    (tmp_path / "sys/kernel/btf").mkdir()
    for data in (b"", b"\x9f\xeb", os.urandom(200), struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 500, 500, 9)):
        (tmp_path / "sys/kernel/btf/vmlinux").write_bytes(data)
        assert ask(paths, "tp_btf").available is False


def test_find_btf_ids_agrees_with_the_full_parser() -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    require(path.exists(), f"no {path}")
    data = path.read_bytes()
    wanted = {"btf_trace_task_newtask": btf.TYPEDEF, "bpf_iter_task": btf.FUNC, "ns_common": btf.STRUCT}
    full = btf.Btf(data).ids
    assert probes.find_btf_ids(data, {**wanted, "no_such_type": btf.FUNC}) == {n: full[k, n] for n, k in wanted.items()}


@pytest.mark.parametrize(
    ("name", "file", "text", "available"),
    [
        ("psi", "proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", True),
        ("psi", "proc/pressure/memory", "", False),
        ("task_delayacct", "proc/sys/kernel/task_delayacct", "1\n", True),
        ("task_delayacct", "proc/sys/kernel/task_delayacct", "0\n", False),
        ("bpf_jit", "proc/sys/net/core/bpf_jit_enable", "0\n", False),
        ("bpf_jit", "proc/sys/net/core/bpf_jit_enable", "2\n", True),
        ("kernel_reads", "sys/kernel/security/lockdown", "none integrity [confidentiality]\n", False),
        ("kernel_reads", "sys/kernel/security/lockdown", "none [integrity] confidentiality\n", True),
        ("kprobe", "sys/bus/event_source/devices/kprobe/type", "6\n", True),
        ("time_namespaces", "proc/self/ns/time", "", True),
        ("user_namespaces", "proc/self/ns/user", "", False),
        ("clone_into_cgroup", "proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n", False),
    ],
)
def test_features_of_a_recorded_tree(tmp_path: Path, name: str, file: str, text: str, available: bool) -> None:
    paths = tree(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert ask(paths, name).available is available


def test_bcc_is_looked_for_in_other_interpreters_and_told_from_its_namesake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "interpreters", lambda: [str(tmp_path / "python")])
    assert ask(Paths(), "bcc").reason.endswith("does not run (FileNotFoundError)")
    (tmp_path / "python").write_text(f"#!/bin/sh\necho {tmp_path}/bcc/__init__.py\n")
    (tmp_path / "python").chmod(0o755)
    lattice = ask(Paths(), "bcc")
    assert (lattice.available, lattice.reason) == (False, f"{tmp_path}/bcc/__init__.py is another library")
    assert "python3-bpfcc" in lattice.remedy
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "libbcc.py").touch()
    assert ask(Paths(), "bcc").available is True


REPORT = Report(
    {"nsagent": "1", "kernel": "6"},
    (
        Finding("btf", True, "/sys/kernel/btf/vmlinux", needed=True),
        Finding("bpf", False, "refused", "approximate", "run as root", needed=True),
        Finding("ring_buf", False, "refused", "approximate", "run as root", needed=True),
        Finding("psi", False, "off", "no pressure", "psi=1"),
    ),
)


def test_text_is_fact_then_consequence_then_remedy() -> None:
    assert doctor.to_text(REPORT).splitlines() == [
        "nsagent 1 kernel 6",
        "btf       /sys/kernel/btf/vmlinux  ok",
        "bpf       refused                  LACKING: approximate; run as root",
        "ring buf  refused                  LACKING: as bpf",
        "psi       off                      no pressure; psi=1",
        "",
        "nsagent cannot do all of its job here: bpf, ring buf",
    ]


def test_json_has_the_same() -> None:
    document = json.loads(doctor.to_json(REPORT))
    assert (document["ok"], document["lacking"]) == (False, ["bpf", "ring_buf"])
    assert document["findings"][3] == {
        "name": "psi", "ok": False, "fact": "off", "consequence": "no pressure", "remedy": "psi=1", "needed": False,
    }  # fmt: skip


def test_cgroup_layouts(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    top = paths.cgroupfs
    for name in ("cpu", "systemd", "unified"):
        os.mkdir(f"{top}/{name}")
    Path(f"{top}/unified/cgroup.controllers").write_text("hugetlb misc\n")
    v1 = f"31 30 0:9 / {top}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    v1 += f"32 30 0:8 / {top}/systemd rw - cgroup x rw,xattr,name=systemd\n"
    v2 = f"33 30 0:7 / {top}/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    for text, fact in (
        (v1, "v1 (cpu, cpuacct: v1)"),
        (v1 + v2, "hybrid (cpu, cpuacct: v1; hugetlb, misc: v2)"),
        (v2, "v2 (hugetlb, misc: v2)"),
        ("22 27 0:21 / /proc rw - proc proc rw\n", "no cgroup filesystem"),
        (v2.replace(top, "/elsewhere"), "no cgroup filesystem"),
    ):
        (tmp_path / "proc/self/mountinfo").write_text(text)
        found = {finding.name: finding for finding in doctor.examine(paths).findings}
        assert fact in found["cgroup_layout"].fact
        assert found["cgroup_layout"].ok is ("no cgroup" not in fact)
        assert ("cgroup_write" in found) is found["cgroup_layout"].ok


def test_the_command_agrees_with_its_exit_code() -> None:
    done = run_nsagent("doctor", "-o", "json")
    document = json.loads(done.stdout)
    assert done.returncode == (0 if document["ok"] else 1)
    assert document["lacking"] == [f["name"] for f in document["findings"] if f["needed"] and not f["ok"]]
    assert done.stderr == ""


def test_an_empty_proc_is_told_and_no_traceback(tmp_path: Path) -> None:
    done = run_nsagent("doctor", "--path.procfs", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "cannot do all of its job here" in done.stdout
    assert "mount -t proc" in done.stdout
