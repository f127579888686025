"""The agent's settings: defaults < TOML file < environment < flags. click resolves that order, this module validates.

A configuration file has the words of the flags as keys, without the dashes in front:

    listen = "[::]:10417"
    web.config.file = "/etc/nsagent/web.yml"
    retain = "5m"
    no-trace = true
    events-to = ["journald", "file:/var/log/nsagent/events?keep=9"]
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from typing import Any, Final

from nsagent.errors import AccessError, ParseError, UsageError

DEFAULT_LISTEN: Final = "127.0.0.1:10417"
DEFAULT_RUNTIMES: Final = (
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
)
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_MOST_CONTEXTS: Final = 1 << 20  # 370 MB of rows
_SOCKET_PATH_BYTES: Final = 107  # sun_path of struct sockaddr_un, less its final NUL: man 7 unix
FLAGS: Final = {  # what each field of AgentConfig is called where people see it
    "host": "listen",
    "port": "listen",
    "socket_path": "listen",
    "retain_ns": "retain",
    "ring_bytes": "ring-size",
    "bpf": "no-bpf",
    "trace": "no-trace",
    "findings_off": "finding-off",
    "runtimes": "runtime",
    "label_allow": "label-allow",
    "bpf_stats": "bpf-stats",
    "web_config_file": "web.config.file",
    "web_lifecycle": "web.enable-lifecycle",
    "cgroup_include": "cgroup-include",
    "cgroup_exclude": "cgroup-exclude",
    "max_depth": "max-depth",
    "collectors_off": "no-collector",
    "max_series": "max-series",
    **{name: name.replace("_", "-") for name in ("state_dir", "pin_dir", "cache_dir", "object_dir", "events_to", "log_level")},
}

_PAGE: Final = 4096
_MOST_RING_BYTES: Final = 1 << 30
_LEAST_SERIES: Final = 1000


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent was asked to be. Paths are absolute; `host` is empty for all addresses; `port` 0 is any; with a
    `socket_path` it listens there instead."""

    host: str
    port: int
    state_dir: str
    pin_dir: str
    cache_dir: str
    retain_ns: int
    contexts: int = 10240
    ring_bytes: int = 1 << 20
    bpf: bool = True
    trace: bool = True
    ephemeral: bool = False
    object_dir: str = ""
    events_to: tuple[str, ...] = ()  # as sinks.parse takes them
    findings_off: tuple[str, ...] = ()
    rate: int = 0
    runtimes: tuple[str, ...] = ()  # Unix sockets, see nsagent.runtimes
    label_allow: tuple[str, ...] = ()  # patterns
    bpf_stats: bool = False
    log_level: str = "info"
    socket_path: str = ""
    web_config_file: str = ""
    web_lifecycle: bool = False
    textfile: str = ""  # a directory
    cgroup_include: tuple[str, ...] = ()  # as nsagent.cgroups.selection takes them
    cgroup_exclude: tuple[str, ...] = ()
    max_depth: int | None = None
    max_series: int = 200_000  # 0: no limit
    compat: tuple[str, ...] = ()  # of nsagent.metrics.family.COMPAT
    collectors_off: frozenset[str] = frozenset()  # of nsagent.metrics.family.COLLECTORS

    def __post_init__(self) -> None:
        """Raise UsageError for what makes no sense."""
        if not 16 <= self.contexts <= _MOST_CONTEXTS:
            raise UsageError(f"--contexts {self.contexts} is out of range", hint=f"between 16 and {_MOST_CONTEXTS}")
        if self.ring_bytes & (self.ring_bytes - 1) or not _PAGE <= self.ring_bytes <= _MOST_RING_BYTES:
            raise UsageError(
                f"--ring-size {self.ring_bytes} is no size of a ring buffer",
                hint="a power of two from 4K to 1G: 1M holds 2,400 events",
            )
        if self.rate < 0:
            raise UsageError("--rate cannot be negative", hint="0 is no limit")
        if self.max_series < 0 or 0 < self.max_series < _LEAST_SERIES:
            raise UsageError(
                f"--max-series {self.max_series} is too little",
                hint=f"at least {_LEAST_SERIES}, for what the agent says of itself; 0 is no limit",
            )
        if self.max_depth is not None and self.max_depth < 0:
            raise UsageError("--max-depth cannot be negative", hint="0 is the root alone, 1 what stands directly below it too")
        if self.retain_ns < 0:
            raise UsageError("--retain cannot be negative")
        for path in self.runtimes:
            if not os.path.isabs(path) or len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
                raise UsageError(f"--runtime {path!r} is no path of a Unix socket", hint="such as /run/docker.sock")
        if "" in self.label_allow:
            raise UsageError("--label-allow: an empty pattern names no label", hint="such as team, or 'com.example.*'")
        if "." in os.path.basename(self.pin_dir):
            raise UsageError(f"--pin-dir {self.pin_dir}: bpffs allows no dot in a name")
        if len(os.fsencode(self.socket_path)) > _SOCKET_PATH_BYTES:
            raise UsageError(f"--listen unix:{self.socket_path} is too long", hint=f"at most {_SOCKET_PATH_BYTES} bytes")
        if len(os.fsencode(os.path.join(self.state_dir, "agent.sock"))) > _SOCKET_PATH_BYTES:
            raise UsageError(
                f"--state-dir {self.state_dir} is too long: the path of a Unix socket has at most {_SOCKET_PATH_BYTES} bytes",
                hint="name a directory with a shorter path",
            )


def parse_listen(text: str) -> tuple[str, int]:
    """Parse ``127.0.0.1:10417``, ``[::1]:0``, ``localhost:8080`` or ``:10417`` (all addresses, host is "").

    Raises:
        UsageError: it is not an address with a port.
    """
    hint = "an address and a port, such as 127.0.0.1:10417, [::1]:10417, or :10417 for all addresses"
    host, colon, port = text.strip().rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {text!r} is not an address with a port", hint=hint)
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise UsageError(f"--listen {text!r}: an IPv6 address stands in brackets", hint=hint)
    return host, int(port)


def parse_socket_path(text: str) -> str:
    """Return the path of ``unix:/run/nsagent/http.sock``, "" for what is no such address.

    Raises:
        UsageError: the path is not absolute.
    """
    scheme, colon, path = text.strip().partition(":")
    if scheme != "unix" or not colon or path.isdigit():  # a host can be called unix
        return ""
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"--listen {text!r}: the path is not absolute", hint="such as unix:/run/nsagent/http.sock")
    return path


def default_cache_dir() -> str:
    """Return where compiled BPF objects are kept: /var/cache/nsagent for root, else below the user's cache directory."""
    if os.geteuid() == 0:
        return "/var/cache/nsagent"
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nsagent")


def read_file(path: str, known: frozenset[str]) -> dict[str, Any]:
    """Read a TOML file whose keys are `known` flags without dashes in front; the values are not checked yet.

    Raises:
        AccessError: it cannot be read.
        ParseError: it is not TOML.
        UsageError: a key is no flag of the agent.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}", hint="name the file that --config should read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParseError(f"not TOML: {error}", path=path, hint='a flag a line, such as: listen = "127.0.0.1:10417"') from error
    found = _flat(found, known)
    for key, value in found.items():
        if key not in known:
            raise UsageError(f"{path}: no setting is called {key!r}", hint=f"there are {', '.join(sorted(known))}")
        words = isinstance(value, list) and all(isinstance(word, str) for word in value)
        if not words and not isinstance(value, str | int | float | bool):
            raise UsageError(f"{path}: {key} is neither text, number, true or false, nor a list of texts")
    return found


def _flat(found: dict[str, Any], known: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Undo TOML's dotted keys: web.config.file = "x" came as three tables in each other."""
    flat: dict[str, Any] = {}
    for key, value in found.items():
        name = prefix + key
        table = isinstance(value, dict) and any(each.startswith(f"{name}.") for each in known)
        flat |= _flat(value, known, f"{name}.") if table else {name: value}
    return flat
