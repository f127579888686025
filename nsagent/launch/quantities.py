"""The words of the command line to numbers: sizes, times, CPUs, devices. Text in, or UsageError with a hint."""

from __future__ import annotations

import math
import os
import re
import stat
from typing import Final

from nsagent.cgroups.limits import HugetlbMax, IoMax
from nsagent.errors import UsageError
from nsagent.launch.joining import CLOCKS, ClockOffset

IO_KEYS: Final = ("rbps", "wbps", "riops", "wiops")

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|s|m|h|d|)", re.ASCII)
_TIMES_NS: Final = {
    "us": 10**3,
    "ms": 10**6,
    "": 10**9,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_IO_MAX: Final = re.compile(r"(?P<device>.+?):(?P<limits>[a-z]+=[^:]*)", re.DOTALL)


def parse_bytes(text: str, flag: str) -> int:
    """Return bytes: 1048576, 1024K, 1M, 1MiB are all the same (powers of 1024, as docker and systemd have it)."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{flag} {text!r} is not a size", hint="a number with K, M, G or T, such as 512M or 1.5G")
    size = (
        int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])
        if "." in match[1]
        else (int(match[1]) * 1024 ** _POWERS[match[2].lower()])
    )
    if not 0 < size < 1 << 63:
        raise UsageError(f"{flag} {text!r} is out of range", hint="more than 0 and less than 8 EiB")
    return size


def parse_duration(text: str, flag: str) -> int:
    """Return nanoseconds: 1s, 500ms, 2m, 1h30m; a bare number is seconds."""
    words = text.strip()
    position = total = 0
    while position < len(words) and (match := _TIME.match(words, position)) and match[0]:
        total += int(float(match[1]) * _TIMES_NS[match[2]])
        position = match.end()
    if position < len(words) or not 0 < total < 1 << 63:
        raise UsageError(f"{flag} {text!r} is not a time", hint="such as 500ms, 1s, 2m or 1h30m")
    return total


def parse_clock_offset(text: str) -> ClockOffset:
    """Parse CLOCK:TIME, with a sign where it is to be behind: boottime:7d, monotonic:-10s."""
    clock, _, time = text.partition(":")
    if clock not in CLOCKS:
        raise UsageError(f"--clock-offset {text!r} is not CLOCK:TIME", hint=f"the clocks are {' and '.join(CLOCKS)}: boottime:7d")
    behind = time.startswith("-")
    offset_ns = parse_duration(time[1:] if behind or time.startswith("+") else time, f"--clock-offset {clock}")
    return ClockOffset(clock, -offset_ns if behind else offset_ns)


def parse_cpus(text: str) -> float:
    """Return how many CPUs' time may be used: 0.5 is half of one. The kernel's least is 1 ms in a period of 100 ms."""
    try:
        cpus = float(text)
    except ValueError:
        cpus = math.nan
    if not 0.01 <= cpus <= 1e5:
        raise UsageError(f"--cpus {text!r} is not a number of CPUs", hint="at least 0.01, such as 0.5 or 2")
    return cpus


def parse_count(text: str, flag: str, least: int, most: int) -> int:
    """Return a whole number between `least` and `most`."""
    if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII) or not least <= int(text) <= most:
        raise UsageError(f"{flag} {text!r} is not a possible number", hint=f"a whole one from {least} to {most}")
    return int(text)


def parse_cpuset(text: str, online: str) -> str:
    """Return the CPU list in the kernel's form, cpuset(7) FORMATS; `online`: the CPUs that exist, in that form."""
    wanted = _cpu_list(text)
    if not wanted:
        raise UsageError(f"--cpuset {text!r} is not a list of CPUs", hint="such as 0-1 or 0,2-3")
    missing = sorted(wanted - _cpu_list(online))
    if missing:
        raise UsageError(f"--cpuset {text!r} names CPU {missing[0]}", hint=f"the CPUs of this host are {online.strip()}")
    return text.strip()


def read_online_cpus(sysfs: str = "/sys") -> str:
    """Return the list of the CPUs that are online, in the kernel's form."""
    with open(f"{sysfs}/devices/system/cpu/online", encoding="ascii") as file:
        return file.read()


def _cpu_list(text: str) -> set[int]:
    cpus: set[int] = set()
    for piece in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", piece, re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            return set()
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return cpus


def parse_io_max(text: str) -> IoMax:
    """Return the limits of DEVICE:rbps=1M,wiops=100; bps are bytes, iops operations a second.

    DEVICE is a block device, any path on one, or major:minor. The kernel limits whole disks: of a partition, its disk.
    """
    match = _IO_MAX.fullmatch(text)
    hint = f"DEVICE:KEY=NUMBER,... with the keys {' '.join(IO_KEYS)}, such as /dev/vda:rbps=10M,wiops=100"
    if not match:
        raise UsageError(f"--io-max {text!r} is not a device and its limits", hint=hint)
    limits: dict[str, int] = {}
    for word in match["limits"].split(","):
        key, _, value = word.partition("=")
        if key not in IO_KEYS or key in limits:
            raise UsageError(f"--io-max {text!r}: {word!r} is none of its limits", hint=hint)
        limits[key] = parse_bytes(value, f"--io-max {key}")
    return IoMax(resolve_device(match["device"]), **limits)


def parse_hugetlb(text: str) -> HugetlbMax:
    """Return the limit of PAGESIZE=BYTES, such as 2MB=64M; 0 bytes: none of that size."""
    page, _, limit = text.partition("=")
    if not page or not limit:
        raise UsageError(f"--hugetlb {text!r} is not a size of pages and its limit", hint="such as 2MB=64M, or 1GB=0")
    limit_bytes = 0 if limit.strip() == "0" else parse_bytes(limit, f"--hugetlb {page}")
    return HugetlbMax(parse_bytes(page, "--hugetlb"), limit_bytes)


def resolve_device(text: str, sysfs: str = "/sys") -> str:
    """Return major:minor of the whole disk that `text` is, or lies on."""
    if re.fullmatch(r"\d+:\d+", text, re.ASCII):
        number = text
    else:
        try:
            found = os.stat(text)
        except OSError as exc:
            raise UsageError(
                f"--io-max: {text}: {exc.strerror}", hint="name a block device, a path on one, or major:minor"
            ) from exc
        device = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
    entry = f"{sysfs}/dev/block/{number}"
    if not os.path.isdir(entry):
        raise UsageError(
            f"--io-max: {text} is not on a block device of this host ({number})",
            hint="'lsblk' lists them; a file system without a device of its own cannot be limited",
        )
    if os.path.exists(f"{entry}/partition"):
        with open(f"{os.path.realpath(entry)}/../dev", encoding="ascii") as file:
            number = file.read().strip()
    return number
