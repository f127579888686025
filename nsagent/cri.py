"""The names that a Kubernetes runtime (containerd, CRI-O) has for pods and containers, over the CRI at its socket.

Of two answers six fields each are read, so the messages are taken apart here, and no generated code of the whole API is needed.
Source: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto; protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from nsagent.errors import AccessError, ParseError, UnsupportedError, VanishedError
from nsagent.identity import Labels, Names

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.default_authority", "localhost"),  # else the path of the socket, which newer servers in Go refuse
    ("grpc.enable_http_proxy", 0),
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_pods(path: str, deadline_s: float) -> dict[str, Names]:
    """Return what the runtime at a Unix socket says, by id of a container, id of a sandbox, and pod uid; within `deadline_s`.

    gRPC is imported when a socket is there: it takes 20 MB.

    Raises:
        VanishedError: there is no socket.
        UnsupportedError: grpcio is not installed.
        AccessError: it does not answer, or not in time.
        ParseError: its answer is none.
    """
    end = time.monotonic() + deadline_s
    if not os.path.exists(path):
        raise VanishedError(path)
    try:
        grpc: Any = importlib.import_module("grpc")
    except ImportError as error:
        raise UnsupportedError("cri", f"{path} needs gRPC", hint="pip install 'nsagent[cri]'") from error
    with grpc.insecure_channel(f"unix:{path}", options=_OPTIONS) as channel:

        def ask(method: str) -> bytes:
            call = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
            try:
                return bytes(call(b"", timeout=max(0.0, end - time.monotonic())))
            except grpc.RpcError as error:
                raise AccessError(f"{path} does not answer {method}: {error.code().name}") from error

        return parse_pods(ask("ListPodSandbox"), ask("ListContainers"), path)


def parse_pods(sandboxes: bytes, containers: bytes, path: str) -> dict[str, Names]:
    """Parse a ListPodSandboxResponse and a ListContainersResponse. Raises ParseError."""
    names: dict[str, Names] = {}
    try:
        for sandbox in _all(sandboxes, 1):
            metadata = _one(sandbox, 2)  # PodSandboxMetadata
            pod = Names("", "", _text(metadata, 2), _text(metadata, 1), _text(metadata, 3), _labels(sandbox, 5))
            names[_text(sandbox, 1)] = names[pod.pod_uid] = pod
        for container in _all(containers, 1):
            image = _one(container, 4)  # ImageSpec: what the user wrote, since v1.28, else what the kubelet made of it
            pod = names.get(_text(container, 2), Names())
            names[_text(container, 1)] = pod._replace(
                container=_text(_one(container, 3), 1),
                image=_text(image, 18) or _text(image, 1),
                labels=tuple(sorted({**dict(pod.labels), **dict(_labels(container, 8))}.items())),
            )
    except (IndexError, ValueError) as error:
        raise ParseError("no list of pods or containers", path=path) from error
    names.pop("", None)
    return names


def _all(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the strings, or messages, of a field. Raises IndexError or ValueError where it is no message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        size, at = _varint(message, at) if kind == _BYTES else ({_FIXED64: 8, _FIXED32: 4}.get(kind, -1), at)
        if not 0 <= size <= len(message) - at:
            raise ValueError(f"a field of type {kind} with {size} bytes")
        if key == number << 3 | _BYTES:
            yield message[at : at + size]
        at += size


def _one(message: bytes, number: int) -> bytes:
    """Return a field's last value, which is the one that counts; empty if there is none."""
    return next(reversed([b"", *_all(message, number)]))


def _labels(message: bytes, number: int) -> Labels:
    """Return a map<string, string>: its entries are messages of a key and a value, of which the last of a key counts."""
    return tuple(sorted({_text(entry, 1): _text(entry, 2) for entry in _all(message, number)}.items()))


def _text(message: bytes, number: int) -> str:
    return _one(message, number).decode("utf-8", "replace")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
