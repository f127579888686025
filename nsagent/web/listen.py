"""The socket that the agent's HTTP server listens at: an address of TCP, or a path."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from nsagent.errors import AccessError, NsagentError, UsageError

BACKLOG = 128
_UNIX_MODE = 0o660


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket with that address, not yet listening; an empty host is all addresses.

    Raises:
        NsagentError: the port is in use.
        AccessError: a port below 1024 without CAP_NET_BIND_SERVICE.
        UsageError: no such address on this host.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if not host:
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:  # getaddrinfo's is one too
        raise translate(error, where) from error
    return found


def bind_unix(path: str) -> socket.socket:
    """Return a Unix socket at `path`, of mode 0660 and listening; one that nobody listens at any more is replaced.

    It listens at once: to a second agent, one that is bound alone would look as if it were left over.
    For a process without threads: the mode comes from its umask, so that nobody can connect before it is right.

    Raises:
        NsagentError: somebody listens there, or it is something else than a socket.
        AccessError: no permission in its directory.
        UsageError: no such directory.
    """
    where = f"unix:{path}"
    _remove_stale(path)
    found = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~_UNIX_MODE)
    try:
        found.bind(path)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise translate(error, where) from error
    finally:
        os.umask(before)
    return found


def address_of(listener: socket.socket) -> str:
    """Return ``127.0.0.1:10417``, ``[::1]:10417`` or ``unix:/path``, with the port that was given for port 0."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def remove_path(listener: socket.socket) -> None:
    """Remove the path of a Unix socket, before it is closed; nothing of another one."""
    if listener.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):
            os.unlink(listener.getsockname())


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NsagentError(f"cannot listen on unix:{path}: it is no socket", hint="choose another path with --listen")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(path)
        if answer == errno.ECONNREFUSED:  # unix(7): nobody listens
            os.unlink(path)
        elif answer in (0, errno.EAGAIN, errno.EINPROGRESS):  # EAGAIN: its backlog is full
            raise translate(OSError(errno.EADDRINUSE, ""), f"unix:{path}")
        elif answer != errno.ENOENT:
            raise OSError(answer, os.strerror(answer))
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate(error, f"unix:{path}") from error


def translate(error: OSError, where: str) -> NsagentError:
    """Return what `error` means to who wanted to listen at `where`."""
    reason = error.strerror or os.strerror(error.errno or 0)
    unix = where.startswith("unix:")
    if error.errno == errno.EADDRINUSE and unix:
        return NsagentError(
            f"cannot listen on {where}: somebody listens there",
            hint=f"see who with 'ss -lxp src {where.removeprefix('unix:')}', or choose another path with --listen",
        )
    if error.errno == errno.EADDRINUSE:
        port = where.rpartition(":")[2]
        return NsagentError(
            f"cannot listen on {where}: the port is in use",
            hint=f"see who has it with 'ss -ltnp sport = :{port}', or choose another with --listen",
        )
    if error.errno == errno.EACCES:
        capability = "CAP_DAC_OVERRIDE" if unix else "CAP_NET_BIND_SERVICE"
        return AccessError(f"cannot listen on {where}: {reason}", capability=capability)
    hint = "its directory must exist" if unix else "--listen names an address of this host and a port"
    return UsageError(f"cannot listen on {where}: {reason}", hint=hint)
