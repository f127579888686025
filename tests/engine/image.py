"""The agent's image, built by docker of a base made with debootstrap, and what `docker run` makes of the chart's DaemonSet.

The base's tarball is kept ($NSAGENT_IMAGE_CACHE or ~/.cache/nsagent-image, 110 MB); remove it to get a newer one. Packages
come from where apt of this machine has them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.engine import docker
from tests.engine.docker import Docker
from tests.support import ROOT, require

SUITE = "trixie"
BASE, IMAGE = "nsagent-test-base:1", "nsagent-test-agent:1"
# Of what a slim image has not, and what debootstrap leaves.
_LEFT_OUT = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt/archives", "var/lib/apt/lists")
RUNTIME = "pod"
# Docker knew no capability after AUDIT_READ until its version 23: a runtime of its own has runc give those of the pod alone.
_RUNTIME = """#!/usr/bin/python3
import json, os, sys
if "create" in sys.argv:
    path = sys.argv[sys.argv.index("--bundle") + 1] + "/config.json"
    with open(path) as file:
        config = json.load(file)
    config["process"]["capabilities"] = {{kind: {granted!r} for kind in ("bounding", "effective", "permitted")}}
    with open(path, "w") as file:
        json.dump(config, file)
os.execv({runc!r}, ["runc", *sys.argv[1:]])
"""
_TOOL = str(ROOT / "tools/kubernetes.py")


def _mirror() -> str:
    """Return where this machine's apt has Debian itself."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    found = [line.split(" ")[0] for line in lines if line.endswith(" Debian")]
    require(found, "apt knows no mirror of Debian")
    return found[0]


def base_archive() -> Path:
    """Return a tarball of a minimal Debian."""
    require(shutil.which("debootstrap"), "debootstrap is not installed (apt-get install debootstrap)")
    cache = Path(os.environ.get("NSAGENT_IMAGE_CACHE") or Path.home() / ".cache" / "nsagent-image")
    archive = cache / f"{SUITE}.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="nsagent-test-", dir="/var/tmp") as made:
            argv = ["debootstrap", "--variant=minbase", SUITE, f"{made}/root", _mirror()]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            require(done.returncode == 0, f"debootstrap: {done.stdout[-2000:]}{done.stderr}")
            left_out = [f"--exclude=./{path}/*" for path in _LEFT_OUT]
            subprocess.run(["tar", "-C", f"{made}/root", *left_out, "-cf", f"{made}/tar", "."], check=True)
            shutil.move(f"{made}/tar", archive)
    return archive


def build(engine: Docker) -> int:
    """Build the image, as somebody would in a checkout; return its bytes."""
    engine.docker("import", str(base_archive()), BASE, deadline=600)
    argv = ["build", "--network", "host", "--build-arg", f"BASE={BASE}", "--file", str(ROOT / "deploy/image/Containerfile")]
    engine.docker(*argv, "--tag", IMAGE, str(ROOT), deadline=1800)
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", IMAGE))


def runtime(path: Path) -> str:
    """Write the runtime, for the chart's capabilities; return the flag of dockerd that names it."""
    granted = [f"CAP_{name}" for name in pod()[1]["securityContext"]["capabilities"]["add"]]
    path.write_text(_RUNTIME.format(granted=granted, runc=shutil.which("runc", path=docker.search_path())))
    path.chmod(0o755)
    return f"--add-runtime={RUNTIME}={path}"


def pod(**values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec of the chart's pod with these values, and of the agent's container in it."""
    argv = [sys.executable, _TOOL, "--template", json.dumps(values)]
    rendered = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300).stdout
    (found,) = (each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "DaemonSet")
    spec = found["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def options(spec: dict[str, Any], container: dict[str, Any], host: dict[str, str]) -> list[str]:
    """Return the options of `docker run` that say what the pod does; `host` has other directories for some of its volumes.

    The network is none, and mounts do not propagate: this machine's may be private, and docker refuses then.
    """
    context, sources = container["securityContext"], {volume["name"]: volume for volume in spec["volumes"]}
    assert (spec["hostPID"], context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, True, False)
    made = ["--pid=host", "--network=none", "--cgroupns=private", "--read-only", f"--user={context['runAsUser']}"]
    made += ["--security-opt=no-new-privileges", f"--security-opt=seccomp={ROOT}/deploy/kubernetes/seccomp/nsagent.json"]
    made += [f"--runtime={RUNTIME}", *(f"--cap-drop={each}" for each in context["capabilities"]["drop"])]
    made.append(f"--memory={container['resources']['limits']['memory'].removesuffix('i').lower()}")
    for mount in container["volumeMounts"]:
        source, target = sources[mount["name"]], mount["mountPath"]
        if "emptyDir" in source:
            made.append(f"--tmpfs={target}:size={source['emptyDir']['sizeLimit'].removesuffix('i').lower()}")
        else:
            path = host.get(mount["name"], source["hostPath"]["path"])
            made.append(f"--volume={path}:{target}{':ro' if mount.get('readOnly') else ''}")
    return made
