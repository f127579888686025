"""What block devices are called, which the IO files of cgroups have by number.

Sources: Documentation/ABI/stable/sysfs-dev-block (/sys/dev/block/MAJOR:MINOR), sysfs-block-dm (dm/name); drivers/base/core.c,
dev_uevent() (DEVNAME); kernel/ksysfs.c (uevent_seqnum).
"""

from __future__ import annotations

import os
import re
from typing import Final

from nsagent.cgroups.files import read
from nsagent.cgroups.stats import IoStats

_DEVNAME: Final = re.compile(rb"^DEVNAME=(.+)$", re.MULTILINE)


class BlockNames:
    """Names of block devices below /dev: vda, nvme0n1p2, mapper/vg-root. What has none (any more) goes by its number.

    Names are kept until some device came, went or was renamed, for each of which the kernel counts a uevent: a number is given
    out again, and `dmsetup rename` gives a device another name under its number.
    """

    def __init__(self, sysfs: str = "/sys") -> None:
        self._sysfs = sysfs
        self._seen = b""
        self._names: dict[str, str] = {}

    def look(self) -> bool:
        """See whether what is known still holds; tell whether something has another name now."""
        seen = read(f"{self._sysfs}/kernel/uevent_seqnum")
        if seen == self._seen:
            return False
        self._seen, before = seen, self._names
        self._names = {}
        for number in before:
            self.name(number)
        return self._names != before

    def rename(self, stats: IoStats | None) -> IoStats | None:
        """Return what an IO file says, by names."""
        return stats and IoStats({self.name(number): device for number, device in stats.devices.items()})

    def name(self, number: str) -> str:
        """Return the name of ``major:minor``."""
        if number not in self._names:
            name = self._read(number)
            taken = name in self._names.values()  # two were read while one followed the other
            self._names[number] = number if taken else name
        return self._names[number]

    def _read(self, number: str) -> str:
        """Return a device's name now. One of the device mapper is anybody's choice, "vda" too, so it stands below mapper/."""
        place = f"{self._sysfs}/dev/block/{number}"
        mapped = read(f"{place}/dm/name").removesuffix(b"\n")
        if mapped:
            return f"mapper/{os.fsdecode(mapped)}"
        found = _DEVNAME.search(read(f"{place}/uevent"))
        return os.fsdecode(found[1]) if found else number
