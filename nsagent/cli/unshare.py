"""`nsagent unshare`: unshare(2) in place, then CMD, as the system call of that name does."""

from __future__ import annotations

import errno
import os

import click

from nsagent import libc, namespaces
from nsagent.errors import AccessError, LaunchError, NsagentError, UnsupportedError, UsageError
from nsagent.launch import idmaps
from nsagent.launch.idmaps import Extent
from nsagent.namespaces import NamespaceKind

EPILOG = """\
This process itself changes its namespaces and becomes CMD: no fork, no cgroup, no mounts, nothing to tidy up. So pid
and time hold for the children of CMD, as the call has it. `nsagent run` makes a whole job.

Examples:
  nsagent unshare uts -- sh -c 'hostname bird; hostname'      the host keeps its name
  nsagent unshare user,uts                                    a shell, as root of a user namespace of one id
  nsagent unshare pid -- sh -c "sh -c 'echo \\$\\$'; true"    prints 1: the first child is PID 1
"""


@click.command(epilog=EPILOG, context_settings={"allow_interspersed_args": False})
@click.argument("kinds", metavar="LIST")
@click.argument("argv", metavar="[-- CMD [ARG]...]", nargs=-1, type=click.UNPROCESSED)
def unshare(kinds: str, argv: tuple[str, ...]) -> None:
    """Move into new namespaces of the kinds in LIST (cgroup ipc mnt net pid time user uts, or all), and become CMD.

    Without CMD: $SHELL. With `user` the caller becomes root of the new user namespace.
    """
    if argv[:1] == ("--",):  # parsing ended at LIST, before it
        argv = argv[1:]
    wanted = namespaces.parse_kinds(kinds)
    if not wanted:
        raise UsageError("nothing to unshare", hint=f"name kinds: {' '.join(namespaces.KINDS)}")
    change(wanted)
    execute(argv or (os.environ.get("SHELL") or "/bin/sh",))


def change(wanted: frozenset[NamespaceKind]) -> None:
    """Unshare `wanted` in one call, and map the caller's ids to root's where a user namespace is among them.

    Raises: AccessError (EPERM), UnsupportedError (EINVAL, ENOSYS: this kernel lacks a kind), LaunchError (ENOSPC and
    others).
    """
    uid, gid = os.geteuid(), os.getegid()
    names = ",".join(sorted(wanted))
    try:
        libc.unshare(sum(kind.flag for kind in wanted))
    except OSError as exc:
        raise _refused(exc, names) from exc
    if NamespaceKind.USER in wanted:
        idmaps.write(os.getpid(), idmaps.IdMaps((Extent(0, uid),), (Extent(0, gid),), setgroups=False))


def _refused(exc: OSError, names: str) -> NsagentError:
    if exc.errno == errno.EPERM:
        return AccessError(
            f"unshare {names}: {os.strerror(exc.errno)}",
            capability="CAP_SYS_ADMIN",
            hint="run as root, or add 'user' to the list: in a new user namespace the others need no privilege",
        )
    if exc.errno in (errno.EINVAL, errno.ENOSYS):
        return UnsupportedError(f"unshare {names}", "this kernel lacks one of them")
    hint = "a limit in /proc/sys/user is reached" if exc.errno in (errno.ENOSPC, errno.EUSERS) else ""
    return LaunchError(
        f"unshare {names}: {os.strerror(exc.errno or 0)}", stage="unshare", call="unshare", errno=exc.errno or 0, hint=hint
    )


def execute(argv: tuple[str, ...]) -> None:
    """Become `argv`. Raises LaunchError with 127 where it is not found and 126 where it cannot be run."""
    import signal

    for name in ("SIGPIPE", "SIGXFSZ"):  # the interpreter ignores them, and execve passes that on
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as exc:
        missing = exc.errno in (errno.ENOENT, errno.ENOTDIR)
        raise LaunchError(
            f"{argv[0]}: {'command not found' if missing else exc.strerror}",
            stage="exec",
            call="execve",
            errno=exc.errno or 0,
            path=argv[0],
            exit_code=127 if missing else 126,
            hint="it is looked up in PATH" if missing else "it must be executable by this user; a script needs a '#!' line",
        ) from exc
