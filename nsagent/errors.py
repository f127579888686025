"""Every error nsagent raises on purpose.

    NsagentError                      one line for the user, plus a hint
    ├── UsageError                    what was asked for cannot be parsed or makes no sense           exit 2
    ├── UnsupportedError              this kernel or host lacks the feature                           exit 125
    ├── AccessError                   this user may not; names the capability that would help         exit 125
    ├── ParseError                    a file or message is not of the form it must have
    ├── VanishedError                 a process, namespace or cgroup ended while it was looked at
    ├── LaunchError                   a job could not be started: stage, call, errno, path            exit 125, 126, 127
    ├── UnknownJobError               no job is called so                                             exit 125
    │   └── AmbiguousJobError         several are
    └── LoadError                     BPF could not be compiled, loaded or attached; has the log

`OSError` is translated into these once, at the edge of the module that made the call. Library code never prints or exits:
`nsagent.cli` prints ``error: <message>`` and ``hint: <hint>``, and ends with `exit_code`.
"""

from __future__ import annotations

import os
from typing import Final

_PTRACE: Final = ("CAP_SYS_PTRACE", 19)


def read_effective() -> int:
    """Return the mask of our effective capabilities; 0 where it is not to be read."""
    try:
        with open("/proc/self/status", "rb") as file:
            return int(file.read().partition(b"\nCapEff:")[2].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return 0


def addressed(hint: str) -> str:
    """Return `hint` for who runs this: root is not told to become root, what forbids it then is the machine.

    Nor is CAP_SYS_PTRACE asked of who has it: __ptrace_may_access() of kernel/ptrace.c then refuses two cases only.
    """
    if hint.endswith(f"with {_PTRACE[0]}") and read_effective() >> _PTRACE[1] & 1:
        return f"not for lack of {_PTRACE[0]}: a security module forbids it, or the process is of a user namespace above"
    if hint.startswith("run as root") and os.geteuid() == 0:
        lacking = hint.partition("with ")[2]
        what = f"it takes {lacking}, which" if lacking.startswith("CAP_") else "that is what"
        return f"{what} this machine refuses even to root: by a container's bounds, or a security module"
    return hint


class NsagentError(Exception):
    """Base of all errors with a message meant for the user; `hint` says what to do about it, or is empty."""

    exit_code = 125

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NsagentError):
    """What was asked for cannot be parsed, or contradicts itself."""

    exit_code = 2


class UnsupportedError(NsagentError):
    """The host lacks `feature`, because of `reason`."""

    def __init__(self, feature: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{feature}: {reason}", hint=hint)
        self.feature = feature
        self.reason = reason


class AccessError(NsagentError):
    """The caller may not do this; `capability` (such as ``CAP_SYS_ADMIN``) would allow it, if one would."""

    def __init__(self, message: str, *, capability: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint or (f"run as root, or with {capability}" if capability else ""))
        self.capability = capability


class ParseError(NsagentError):
    """`path` (with `line`, counted from 1, where known) does not have the form it must have."""

    def __init__(self, message: str, *, path: str = "", line: int | None = None, hint: str = "") -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(where + message, hint=hint)
        self.path = path
        self.line = line


class VanishedError(NsagentError):
    """`what` ended or was removed while it was being read: normal on a busy node."""

    def __init__(self, what: str) -> None:
        hint = "it has ended, or never was: 'ps -e', 'nsagent ps' and 'nsagent ns list' show what there is"
        super().__init__(f"{what} is gone", hint=hint)
        self.what = what


class LaunchError(NsagentError):
    """A job was not started. `stage` names the step, `call` the system call, `errno` its error, `path` what it was about."""

    def __init__(
        self, message: str, *, stage: str, call: str = "", errno: int = 0, path: str = "", exit_code: int = 125, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.call = call
        self.errno = errno
        self.path = path
        self.exit_code = exit_code


class UnknownJobError(NsagentError):
    """No job is called so."""


class AmbiguousJobError(UnknownJobError):
    """Several jobs are called so."""


class LoadError(NsagentError):
    """BPF programs could not be compiled, loaded or attached; `log` is the compiler's or the verifier's full text."""

    def __init__(self, message: str, *, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log
