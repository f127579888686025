"""Limits as the list of files to write on this host; writing one and reading it back."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any, Final

from nsagent.cgroups import v1, v2
from nsagent.cgroups.files import read_text, write
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.limits import Limits, Setting
from nsagent.errors import AccessError, NsagentError, UnsupportedError, UsageError

_NEEDS: Final = (
    ("--cpus", "cpus", "cpu"),
    ("--cpu-weight", "cpu_weight", "cpu"),
    ("--memory", "memory_bytes", "memory"),
    ("--memory-high", "memory_high_bytes", "memory"),
    ("--pids", "pids", "pids"),
    ("--cpuset", "cpuset", "cpuset"),
    ("--io-max", "io_max", "io"),
    ("--io-weight", "io_weight", "io"),
    ("--hugetlb", "hugetlb", "hugetlb"),
)
_HUGE_PAGES: Final = "/sys/kernel/mm/hugepages"


def plan(layout: Layout, limits: Limits) -> list[tuple[Hierarchy, Setting]]:
    """Return the writes that set `limits`, in order; touches nothing.

    Raises UnsupportedError (with the flag, the controller and the remedy) for a limit this host cannot enforce, and
    UsageError for one no kernel could.
    """
    for flag, name, controller in _NEEDS:
        if getattr(limits, name) in (None, ()):
            continue
        hierarchy = layout.of(controller)
        if hierarchy is None:
            raise UnsupportedError(
                flag,
                f"the {controller} controller is in no mounted hierarchy",
                hint=f"mount the {controller} controller (nsagent doctor shows the layout), or leave {flag} out",
            )
        if not hierarchy.writable:
            raise UnsupportedError(
                flag, f"{hierarchy.mountpoint} is mounted read-only", hint=f"mount -o remount,rw {hierarchy.mountpoint}"
            )
    if limits.devices is not None and layout.of("devices") is None and layout.v2 is None:
        raise UnsupportedError("--device-policy", "neither v1's devices controller nor cgroup v2 is mounted")
    limits.check()
    for each in limits.hugetlb:
        if not os.path.isdir(f"{_HUGE_PAGES}/hugepages-{each.page_bytes >> 10}kB"):
            raise UnsupportedError(
                f"--hugetlb {each.page}",
                "this host has no huge pages of this size",
                hint=f"'ls {_HUGE_PAGES}' shows those it has",
            )
    bfq = limits.io_weight is not None and _any_disk("queue/scheduler", "[bfq]")
    writes: list[tuple[Hierarchy, Setting]] = []
    for hierarchy in layout.hierarchies:
        if hierarchy.version == 1:
            settings = v1.settings(limits, hierarchy.controllers, bfq=bfq)
        else:
            iocost = limits.io_weight is not None and "enable=1" in read_text(f"{hierarchy.mountpoint}/io.cost.qos")
            settings = v2.settings(limits, hierarchy.controllers, bfq=bfq, iocost=iocost)
        writes += [(hierarchy, setting) for setting in settings]
    return writes


def feasible(layout: Layout, limits: Limits) -> tuple[Limits, list[str]]:
    """Return those of `limits` that this host has, and why it has not the others. Raises UsageError as `plan`."""
    had: dict[str, Any] = {}
    refused = []
    for name, value in limits._asdict().items():
        if value in (None, ()):
            continue
        alone = {name: value}
        if name == "swap_bytes":  # means something beside that of memory alone, and goes with it
            if "memory_bytes" not in had:
                continue
            alone["memory_bytes"] = limits.memory_bytes
        try:
            plan(layout, Limits(**alone))
            had[name] = value
        except UnsupportedError as exc:
            refused.append(exc.message)
    return Limits(**had), refused


def write_setting(place: str, setting: Setting) -> None:
    """Write one setting and check that the kernel took it as meant."""
    path = f"{place}/{setting.file}"
    try:
        write(path, setting.value)
    except FileNotFoundError:
        if setting.optional:
            return
        raise UnsupportedError(
            setting.flag, f"this kernel has no {setting.file}", hint=f"leave {setting.flag} out, or boot a kernel that has it"
        ) from None
    except OSError as exc:
        if exc.errno == errno.EPERM and setting.file == "devices.allow":  # the cgroups above forbid it, and so it is here too
            return
        if exc.errno in (errno.EINVAL, errno.ERANGE, errno.ENODEV, errno.ENXIO):
            hint = "a whole disk, as lsblk -d shows it" if setting.flag == "--io-max" else ""
            raise UsageError(
                f"{setting.flag}: the kernel refuses {setting.value!r} for {path}: {os.strerror(exc.errno)}", hint=hint
            ) from exc
        raise translate(exc, f"{setting.flag}: {path} cannot be written") from exc
    got = read_text(f"{place}/{setting.read_file}")
    if setting.expect and setting.expect not in [line.strip() for line in got.splitlines()]:
        raise UnsupportedError(
            setting.flag,
            f"{place}/{setting.read_file} reads {got.strip()!r} after writing {setting.value!r}: this host does not enforce it",
            hint=f"leave {setting.flag} out, or widen what the cgroups above allow",
        )


def translate(exc: OSError, what: str) -> NsagentError:
    """Make an OSError of a cgroup file one of ours."""
    reason = os.strerror(exc.errno or 0)
    if exc.errno in (errno.EACCES, errno.EPERM):
        return AccessError(f"{what}: {reason}", hint="run as root, or in a delegated cgroup")
    if exc.errno == errno.EROFS:
        return UnsupportedError("cgroups", f"{what}: {reason}", hint="mount -o remount,rw the cgroup filesystems")
    if exc.errno == errno.EAGAIN:
        return UnsupportedError(
            "cgroups", f"{what}: there are too many already", hint="see cgroup.max.descendants of the cgroups above"
        )
    hint = "raise the limit of open files: ulimit -n" if exc.errno == errno.EMFILE else ""
    return NsagentError(f"{what}: {reason}", hint=hint)


def _any_disk(file: str, word: str) -> bool:
    with contextlib.suppress(OSError):
        return any(word in read_text(f"/sys/block/{disk}/{file}") for disk in os.listdir("/sys/block"))
    return False
