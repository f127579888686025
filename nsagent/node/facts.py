"""What a node's sample says of the host and the agent, and what does not change while it runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from nsagent import __version__
from nsagent.cgroups.layout import Layout
from nsagent.kernel.attach import Attached
from nsagent.sample import Facts, Machine


def read_facts(layout: Layout | None, attached: Attached | None, features: Mapping[str, str | None]) -> Facts:
    """Return the facts of this node, read where `layout` and `attached` say."""
    compiler = attached.compiler.removeprefix("bcc ") if attached else ""
    build = {"version": __version__, "python": platform.python_version(), "bcc": compiler, "kernel": os.uname().release}
    mode = {
        "cgroup": layout.mode if layout else "none",
        "bpf": "loaded" if attached else "off",
        "accounting": "exact" if attached else "approximate",
        "psi": "on" if _reads("/proc/pressure/cpu") else "off",
        "delayacct": "on" if keeps_delays() else "off",
    }
    return Facts(build, mode, features)


def read_machine() -> Machine:
    """Return what hardware this is. Sources: man 3 sysconf; man 4 random; man 5 machine-id; sysfs-firmware-dmi."""
    return Machine(
        os.sysconf("SC_NPROCESSORS_ONLN"),
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        (
            _reads("/proc/sys/kernel/random/boot_id"),
            _reads("/etc/machine-id") or _reads("/var/lib/dbus/machine-id"),
            _reads("/sys/class/dmi/id/product_uuid"),
        ),
    )


def keeps_delays() -> bool:
    """Tell whether the kernel accounts IO delays."""
    return _reads("/proc/sys/kernel/task_delayacct") == "1"


def _reads(path: str) -> str:
    """Return the content of a file of /proc; empty where it cannot be read (EOPNOTSUPP: psi=0)."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
