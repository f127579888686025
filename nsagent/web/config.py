"""TLS, users and headers of the agent's HTTP server, by a file in the format of Prometheus' exporter-toolkit.

The file and what it names are looked at for each connection, one stat(2) each, and read again when they changed. What cannot be
read then is logged, and the last that could stays. A setting that is not understood is refused: most keep somebody out.
Source: github.com/prometheus/exporter-toolkit, docs/web-configuration.md.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nsagent.errors import AccessError, NsagentError, ParseError, UnsupportedError, UsageError
from nsagent.web import tls
from nsagent.web.auth import INSTALL_HINT, Users

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "tls_server_config": (
        *("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version", "max_version"),
        *("cipher_suites", "prefer_server_cipher_suites"),
    ),
    "http_server_config": ("http2", "headers"),
    "basic_auth_users": (),  # any
}
_UNSUPPORTED: Final = frozenset(  # of exporter-toolkit's, what Python's ssl cannot do, or nobody asked for yet
    ("cert", "key", "client_ca", "client_allowed_sans", "curve_preferences", "rate_limit", "auth_excluded_paths")
)
_HEADERS: Final[Mapping[str, str]] = {  # exporter-toolkit's, and what each may be
    "Content-Security-Policy": r".*",
    "Strict-Transport-Security": r".*",
    "X-Content-Type-Options": r"nosniff|",
    "X-Frame-Options": r"(?i:deny|sameorigin)|",
    "X-XSS-Protection": r".*",
}
_Seen = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Web:
    """What one reading gave. `headers` are lines of every answer; `files` are all it came from, as `seen` just before."""

    files: tuple[str, ...]
    seen: _Seen
    tls: ssl.SSLContext | None = None
    users: Users | None = None
    headers: tuple[str, ...] = ()


class WebConfig:
    """The web configuration as its files are now."""

    def __init__(self, path: str) -> None:
        """Read it. Raises what `read` does."""
        self._path = path
        self._lock = threading.Lock()
        self.last = read(path)
        self._seen = self.last.seen

    def current(self) -> Web:
        """Return it, read again where a file changed: by one thread, others have the last meanwhile. Safe from any thread."""
        now = _look(self.last.files)
        if now != self._seen and self._lock.acquire(blocking=False):
            try:
                self._seen = now
                self._use(read(self._path))
                log.info("event=web_config_read path=%s", self._path)
            except NsagentError as error:  # told once: until a file changes again
                log.warning("event=web_config_kept path=%s reason=%s", self._path, error)
            finally:
                self._lock.release()
        return self.last

    def use(self, web: Web) -> None:
        """Take what was read elsewhere, by `read` of the same path."""
        with self._lock:
            self._use(web)

    def _use(self, web: Web) -> None:
        self.last, self._seen = web, web.seen


def read(path: str) -> Web:
    """Read the file, and the certificates that it names; their paths are relative to its directory.

    Raises:
        AccessError: a file cannot be read.
        ParseError: it is not YAML, or a certificate is none.
        UsageError: a key or value that is not understood, or not supported here.
        UnsupportedError: a Python package is missing.
    """
    seen = _look((path,))
    document = _load(path)
    for section, allowed in _KEYS.items():
        found = document.get(section)
        if found is not None and not isinstance(found, dict):
            raise UsageError(f"{path}: {section} has no keys with values")
        if allowed:
            _known(found or {}, allowed, f"{path}: {section}")
    secured, http = document.get("tls_server_config") or {}, document.get("http_server_config") or {}
    files = tls.files_of(secured, path) if secured else {}
    named = tuple(files.values())
    seen += _look(named)
    context = tls.make_context(secured, files, path) if secured else None
    users = _read_users(document.get("basic_auth_users") or {}, path)
    return Web((path, *named), seen, context, users, _read_headers(http, path))


def _load(path: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise UnsupportedError("--web.config.file", "the Python package PyYAML is not installed", hint=INSTALL_HINT) from error
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror}", hint="see --web.config.file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ParseError(f"not YAML: {error.problem}", path=path, line=line) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParseError(f"not YAML: {' '.join(str(error).split())}", path=path) from error
    if not isinstance(document or {}, dict):
        raise UsageError(f"{path}: it has no keys with values", hint=f"there are {', '.join(_KEYS)}")
    _known(document or {}, _KEYS, path)
    return document or {}


def _known(found: Mapping[Any, Any], allowed: Iterable[str], where: str) -> None:
    for key in found:
        if key in _UNSUPPORTED:
            raise UsageError(f"{where}: {key} is not supported by nsagent", hint=f"there are {', '.join(allowed)}")
        if key not in allowed:
            raise UsageError(f"{where}: no setting is called {key!r}", hint=f"there are {', '.join(allowed)}")


def _read_users(found: Mapping[Any, Any], path: str) -> Users | None:
    for user, text in found.items():
        if not isinstance(user, str) or not isinstance(text, str) or ":" in user:
            raise UsageError(f"{path}: basic_auth_users: {user!r} is no user with a hash", hint="put both in quotes")
    return Users(found, f"{path}: basic_auth_users") if found else None


def _read_headers(found: Mapping[str, Any], path: str) -> tuple[str, ...]:
    if not isinstance(found.get("http2", True), bool):  # what it says is no matter: HTTP/2 is not spoken
        raise UsageError(f"{path}: http_server_config: http2 is true or false")
    headers = found.get("headers") or {}
    if not isinstance(headers, dict):
        raise UsageError(f"{path}: http_server_config: headers has no keys with values")
    _known(headers, _HEADERS, f"{path}: headers")
    for name, value in headers.items():
        if not isinstance(value, str) or not re.fullmatch(_HEADERS[name], value) or not (value.isascii() and value.isprintable()):
            raise UsageError(f"{path}: headers: {name} cannot be {value!r}")
    return tuple(f"{name}: {value}" for name, value in headers.items() if value)


def _look(files: Iterable[str]) -> _Seen:
    return tuple(map(_stat, files))


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
