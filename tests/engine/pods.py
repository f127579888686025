"""Real pods without a kubelet: the CRI of a containerd, its messages written by hand."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Final

IMAGE: Final = "docker.io/nsagent-test/waiter:1"
_POD, _NODE = 0, 2  # NamespaceMode: a network of the pod's own, which a CNI plugin makes, or the host's


def field(number: int, value: bytes | str | int) -> bytes:
    """Encode one field of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """Encode a number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def make_archive(rootfs: Path, archive: Path) -> None:
    """Write an image of one layer as `docker save` does."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, ".")
    digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/waiter"]},
              "rootfs": {"type": "layers", "diff_ids": [digest]}}  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
            ("layer.tar", layer.getvalue()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


class Pods:
    """The CRI at a socket."""

    def __init__(self, socket: str) -> None:
        grpc: Any = importlib.import_module("grpc")
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])

    def _call(self, method: str, request: bytes) -> str:
        """Return the first field of the answer, a string; empty where it has none."""
        answer = bytes(self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")(request, timeout=120))
        return answer[2 : 2 + answer[1]].decode() if len(answer) > 1 and answer[0] == 0x0A else ""

    def run(
        self,
        parent: str,
        uid: str,
        pod: str,
        namespace: str,
        container: str,
        *,
        network: bool = False,
        argument: str = "",
        resources: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> tuple[str, str]:
        """Start a pod of one container, its cgroups below `parent`; return the ids of sandbox and container.

        `network`: one of its own (cni.py). `resources`: CPU period and quota in usec, shares, memory limit in bytes; 0: none.
        """
        metadata = field(1, pod) + field(2, uid) + field(3, namespace)
        linux = field(1, parent) + field(2, field(1, field(1, _POD if network else _NODE)))
        config = field(1, metadata) + field(8, linux)
        sandbox = self._call("RunPodSandbox", field(1, config))
        made = field(1, field(1, container)) + field(2, field(1, IMAGE)) + field(3, "/bin/waiter")
        made += field(4, argument) if argument else b""
        made += field(15, field(1, b"".join(field(number, value) for number, value in enumerate(resources, 1))))
        number = self._call("CreateContainer", field(1, sandbox) + field(2, made) + field(3, config))
        self._call("StartContainer", field(1, number))
        return sandbox, number

    def remove(self, sandbox: str) -> None:
        """Stop and remove a pod with its containers."""
        self._call("StopPodSandbox", field(1, sandbox))
        self._call("RemovePodSandbox", field(1, sandbox))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
