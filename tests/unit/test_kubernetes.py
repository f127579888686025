"""The chart and the kustomize base: rendered by Helm and by kubectl, the same objects, and what Kubernetes accepts."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nsagent.launch import profile
from nsagent.launch.security import NAMES
from tests.support import ROOT, run_nsagent

BIN = Path(sys.executable).parent
DEPLOY = ROOT / "deploy"
TOOL = str(ROOT / "tools/kubernetes.py")
VERSIONS = ("1.31", "1.34", "1.37")
OPERATOR = {"PodMonitor", "PrometheusRule"}  # of no schema here: tests/e2e/test_federation.py gives them to Prometheus
PLAIN = {"podMonitor": {"enabled": False}, "prometheusRule": {"enabled": False}}
VALUES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "without the operator": PLAIN,
    "least": {
        **PLAIN,
        "dashboards": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "seccomp": {"localhost": False},
        "priorityClass": {"create": False, "name": "system-node-critical"},
        "runtimeSockets": [],
        "podAnnotations": {},
    },
    "much": {
        "image": {"repository": "registry.example/nsagent", "tag": "1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "args": ["--max-series=50000", '--label-allow=team"x'],
        "runtimeSockets": ["/run/crio/crio.sock", "/run/containerd/containerd.sock"],
        "podLabels": {"team": "nodes"},
        "podMonitor": {"labels": {"release": "prometheus"}},
        "prometheusRule": {"labels": {"release": "prometheus"}},
    },
}
Objects = dict[tuple[str, str], dict[str, Any]]


def tool(*args: str) -> str:
    """Run the tool: Helm is a Go library, whose threads and signal handlers no test should have."""
    done = subprocess.run([sys.executable, TOOL, *args], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(text: str) -> Objects:
    """Return a stream's objects by kind and name; none comes twice, and all but cluster-wide ones are in one namespace."""
    found = [each for each in yaml.safe_load_all(text) if each]
    objects = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(objects) == len(found)
    assert {each["metadata"].get("namespace") for (kind, _), each in objects.items() if kind != "PriorityClass"} == {"nsagent"}
    return objects


@functools.cache
def chart(case: str = "as they are") -> Objects:
    return parse(tool("--template", json.dumps(VALUES[case])))


def kustomize(name: str) -> Objects:
    done = subprocess.run(
        [BIN / "kubectl", "kustomize", DEPLOY / "kubernetes" / name], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


def agent(objects: Objects) -> dict[str, Any]:
    """Return the agent's container."""
    (container,) = objects["DaemonSet", "nsagent"]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def test_the_base_is_what_the_chart_renders(tmp_path: Path) -> None:
    """`make kubernetes` writes it."""
    tool(str(tmp_path))
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    base = {path.name: path.read_text() for path in (DEPLOY / "kubernetes/base").iterdir()}
    base.pop("kustomization.yaml")
    assert len(written) == 7
    assert written == base


@pytest.mark.parametrize(("name", "case"), [("base", "as they are"), ("plain", "without the operator")])
def test_kustomize_and_the_chart_make_the_same_objects(name: str, case: str) -> None:
    made, wanted = kustomize(name), chart(case)
    assert len([kind for kind, _ in wanted if kind == "ConfigMap"]) == 1 + len(list((ROOT / "dashboards/json").glob("*.json")))
    assert made.keys() == wanted.keys()
    for key, each in wanted.items():
        assert made[key] == each, key


def test_helm_finds_nothing_to_complain_of() -> None:
    found = json.loads(tool("--lint"))
    assert found["total_charts_linted"] == 1
    assert found["errors"] == []
    assert [each for each in found["messages"] if each["severity"] > 1] == []


def test_the_chart_refuses_values_that_it_does_not_know() -> None:
    with pytest.raises(AssertionError, match="runtimeSocket"):
        tool("--template", '{"runtimeSocket": "/run/crio/crio.sock"}')


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", VALUES)
def test_kubernetes_accepts_them(case: str, version: str) -> None:
    for (kind, _), each in chart(case).items():
        if kind not in OPERATOR:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_schema_can_refuse(version: str) -> None:
    daemonset = json.loads(json.dumps(chart()["DaemonSet", "nsagent"]))
    agent({("DaemonSet", "nsagent"): daemonset})["securityContext"]["capability"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="capability"):
        kubernetes_validate.validate(daemonset, version, strict=True)


def test_the_rules_are_those_of_the_files() -> None:
    files = sorted((DEPLOY / "prometheus").glob("*.rules.yml"))
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    assert len(groups) >= 5
    assert chart()["PrometheusRule", "nsagent"]["spec"] == {"groups": groups}


@pytest.mark.parametrize("case", VALUES)
def test_the_agent_takes_its_arguments(case: str) -> None:
    container = agent(chart(case))
    command, *flags = container["args"]
    done = run_nsagent(command, "--check", *flags)
    assert (done.returncode, done.stdout[:4]) == (0, "# ok"), done.stderr
    assert f':{container["ports"][0]["containerPort"]}"' in done.stdout
    mounted = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
    for flag in flags:
        name, _, value = flag.partition("=")
        assert name != "--runtime" or mounted[str(Path(value).parent)], flag


def test_it_may_no_more_than_it_says() -> None:
    template = chart()["DaemonSet", "nsagent"]["spec"]["template"]["spec"]
    assert template["automountServiceAccountToken"] is False
    assert "hostNetwork" not in template
    for container in (*template["initContainers"], *template["containers"]):
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"]["drop"] == ["ALL"]
        assert {"requests", "limits"} <= container["resources"].keys()


def test_the_seccomp_profile_lets_through_what_an_agent_needs_and_little_else() -> None:
    path = DEPLOY / "kubernetes/seccomp/nsagent.json"
    assert json.loads(chart()["ConfigMap", "nsagent-seccomp"]["data"]["nsagent.json"]) == json.loads(path.read_text())
    allowed = {name for rule in json.loads(path.read_text())["syscalls"] if "args" not in rule for name in rule["names"]}
    assert {"bpf", "perf_event_open", "open_by_handle_at", "pidfd_open", "execve", "vfork"} <= allowed
    assert allowed.isdisjoint({"mount", "umount2", "setns", "unshare", "init_module", "kexec_load", "keyctl", "reboot"})
    assert allowed.isdisjoint({"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"})
    granted = agent(chart())["securityContext"]["capabilities"]["add"]
    mask = sum(1 << NAMES.index(name) for name in granted)
    assert profile.compile_profile(str(path), mask), "libseccomp takes it"
