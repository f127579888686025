"""What CMD may do, as asked for: capabilities and the seccomp filter. Data, and how its words are read.

Source: man 7 capabilities; the default is docker's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from nsagent.errors import UsageError

# include/uapi/linux/capability.h, in the order of their numbers
NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE"),
    *("NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO"),
    *("SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME"),
    *("SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
ALL: Final = (1 << len(NAMES)) - 1
_DEFAULT: Final = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
UNCONFINED: Final = "unconfined"


def mask(names: Iterable[str]) -> int:
    """Return the bits of capabilities by name, without CAP_."""
    return sum(1 << NAMES.index(name) for name in names)


DEFAULT: Final = mask(_DEFAULT)


class Security(NamedTuple):
    """`cap_add`, `cap_drop`: bit masks, ALL for all there are. `seccomp`: a profile's path, `unconfined`, or "" (default).

    `privileged`: all capabilities, no filter, set-user-ID programs work, mounts as the host has them.
    """

    privileged: bool = False
    cap_add: int = 0
    cap_drop: int = 0
    seccomp: str = ""

    @property
    def capabilities(self) -> int:
        """The bits CMD may have, where the launcher has them."""
        if self.cap_drop == ALL:
            return self.cap_add
        return (self.cap_add | (ALL if self.privileged else DEFAULT)) & ~self.cap_drop

    @property
    def filtered(self) -> bool:
        """Whether there is a seccomp filter."""
        return self.seccomp != UNCONFINED and not (self.privileged and not self.seccomp)

    @property
    def no_new_privileges(self) -> bool:
        """Whether execve(2) gives nothing more, as of set-user-ID programs: prctl(2), PR_SET_NO_NEW_PRIVS."""
        return not self.privileged


def parse_capabilities(words: Iterable[str], flag: str) -> int:
    """Return the mask of capabilities by name (``SYS_ADMIN``, ``cap_sys_admin``, ``ALL``), comma-separated or repeated."""
    found = 0
    for name in [part for word in words for part in word.split(",")]:
        plain = name.strip().upper().removeprefix("CAP_")
        if plain == "ALL":
            found |= ALL
        elif plain in NAMES:
            found |= mask((plain,))
        else:
            close = [known for known in NAMES if plain and plain in known]
            hint = f"did you mean {' or '.join(close)}?" if close else "capabilities(7) has their names; or ALL"
            raise UsageError(f"{flag} {name!r}: no such capability", hint=hint)
    return found


def parse_seccomp(text: str) -> str:
    """Return the absolute path of a profile, or UNCONFINED. Raises UsageError where there is no such file."""
    if text == UNCONFINED:
        return text
    if not os.path.isfile(text):
        raise UsageError(f"--seccomp {text!r}: no such file", hint="a profile in docker's JSON form, or 'unconfined'")
    return os.path.abspath(text)


def describe(capabilities: int) -> str:
    """Return capabilities for people."""
    if capabilities == ALL:
        return "all"
    if capabilities == DEFAULT:
        return f"default ({' '.join(sorted(_DEFAULT))})"
    return " ".join(sorted(name for number, name in enumerate(NAMES) if capabilities >> number & 1)) or "none"
