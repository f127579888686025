"""Doctor on the running kernel: what it says holds, for root, for nobody and inside of namespaces; and it leaves nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from nsagent import doctor, libc, namespaces, procfs
from nsagent.kernel import features
from tests.support import require, require_root

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def in_child(prepare: Callable[[], object]) -> dict[str, Any]:
    """Return doctor's JSON from a forked child, which needs no checkout that others can read."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            with open(write, "w") as out:
                out.write(doctor.to_json(doctor.examine()))
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    assert text, "the child raised"
    report: dict[str, Any] = json.loads(text)
    report["by_name"] = {finding["name"]: finding for finding in report["findings"]}
    return report


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    libc.prctl(4, 1)  # PR_SET_DUMPABLE, which the change of uid has cleared


def test_probing_leaves_no_descriptor_no_child_and_no_pin() -> None:
    features.probe()
    before = sorted(os.listdir("/proc/self/fd"))
    pins = sorted(os.listdir("/sys/fs/bpf"))
    features.probe()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert [p for p in os.listdir("/sys/fs/bpf") if p not in pins and "probe" in p] == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_root_can_load_what_the_accounting_stands_on() -> None:
    found = {feature.name: feature for feature in features.probe()}
    for name in ("btf", "bpf", "tp_btf", "task_storage", "iter_task", "ringbuf", "memlock", "perf_event_open", "clone3"):
        require(found[name].available, f"{name}: {found[name].reason}")
    assert found["ns_id"].available is (namespaces.identify("/proc/self/ns/uts").id != 0)


def test_nobody_is_told_what_to_become() -> None:
    report = in_child(become_nobody)
    assert report["ok"] is False
    assert {"user", "bpf", "tp_btf", "cgroup_write"} <= set(report["lacking"])
    for name in ("user", "bpf", "tp_btf", "perf_event_open"):
        assert report["by_name"][name]["remedy"].startswith("run as root"), name
    assert report["by_name"]["user"]["fact"] == "uid 65534, no capability"
    assert report["by_name"]["processes"]["ok"] is False
    assert report["by_name"]["btf"]["ok"] is features.probe()[0].available


def test_capabilities_are_those_held() -> None:
    held = doctor.decode_capabilities(procfs.read_status("self").capabilities)
    fact = in_child(lambda: None)["by_name"]["user"]["fact"]
    lacks = [name for name in doctor.CAPABILITIES if name not in held]
    assert fact == "uid 0, every capability" + (f" but {', '.join(lacks)}" if lacks else "")


def test_namespaces_that_are_not_the_hosts_are_told() -> None:
    report = in_child(lambda: libc.unshare(libc.CLONE_NEWUSER))
    assert report["by_name"]["user_namespace"]["ok"] is False
    assert report["by_name"]["bpf"]["ok"] is False
    assert {"user_namespace", "bpf"} <= set(report["lacking"])
    assert report["by_name"]["pid_namespace"]["ok"] is True


def test_how_calls_are_traced_is_said_with_its_cost() -> None:
    fentry = in_child(lambda: None)["by_name"]["fentry"]
    if fentry["ok"]:
        assert "their own functions" in fentry["fact"]
    else:
        assert "tracepoints" in fentry["consequence"]
        assert "every system call" in fentry["consequence"]
        assert "--no-trace" in fentry["remedy"]
