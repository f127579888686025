"""Boot a kernel in qemu by plain emulation and run one command in it, with this host's files.

The guest's root is the host's, read-only over 9p under a tmpfs overlay: what is installed here is installed there, at the same
paths, and nothing the guest writes reaches the host but through `out`. Emulated Python is some 30 times slower.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.kernels import Kernel

LAYOUTS: Final = ("v2", "v1", "hybrid")
_QEMU: Final = "qemu-system-x86_64"
PACKAGES: Final = {_QEMU: "qemu-system-x86", "zstd": "zstd"}


class MachineError(Exception):
    """The kernel died or did not come to an end; the text ends with its console."""


@dataclass(frozen=True)
class Outcome:
    """How a command in a machine ended. `seconds`: the host's, for the boot that came to its end; `boots`: how many it took."""

    status: int
    output: str
    console: str
    seconds: float
    boots: int


def missing() -> str:
    """Return what this host lacks to run machines, in words; empty where it lacks nothing."""
    if os.uname().machine != "x86_64":
        return "Debian's amd64 kernels are booted on x86-64 hosts only"
    absent = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    return f"these Debian packages are not installed: {' '.join(absent)} (make test-vm installs them)" if absent else ""


def run(
    kernel: Kernel,
    command: str,
    out: Path,
    *,
    layout: str = "v2",
    deadline_s: float = 300,
    memory_mib: int = 1536,
    cpus: int = 2,
    disk_mib: int = 0,
    icount: bool = False,
    systemd: bool = False,
    tries: int = 2,
) -> Outcome:
    """Boot `kernel`, run `command` by /bin/sh as root in a cgroup `layout`, power off.

    `systemd`: as a unit of this host's systemd, which is PID 1 and makes the layout that is its default.

    `out` is a directory of the host, made if it is missing, that the command finds writable at /run/out; `disk_mib` gives it
    an empty ext4 at /run/disk; `icount` makes its time independent of this host's load. A kernel that dies before the command
    has ended, which emulation makes some do, is booted again, `tries` times in all.

    Raises:
        MachineError: it died each time, or `deadline_s` passed.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = ""
    with tempfile.TemporaryDirectory(prefix="nsagent-vm-") as temporary:
        work = Path(temporary)
        (work / "initrd").write_bytes(_initrd(kernel, command))
        argv = _argv(kernel, work, out, layout=layout, memory_mib=memory_mib, cpus=cpus, disk_mib=disk_mib, icount=icount)
        if systemd:
            # tmpfiles would empty /tmp, where the sources may be, file by file in the overlay.
            argv[argv.index("-append") + 1] += " nsagent.init=systemd systemd.mask=systemd-tmpfiles-setup.service"
        for boot in range(1, tries + 1):
            for name in ("status", "log"):
                (out / name).unlink(missing_ok=True)
            started = time.monotonic()
            try:
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_s, check=False)
                ended = f"qemu ended with {done.returncode} {done.stderr.decode(errors='replace').strip()}"
            except subprocess.TimeoutExpired:
                ended = f"not done after {deadline_s:g} s"
            console = _text(work / "console")
            if (out / "status").exists() and _text(out / "status").strip():
                seconds = time.monotonic() - started
                return Outcome(int(_text(out / "status")), _text(out / "log"), console, seconds, boot)
            if ended.startswith("not"):
                break
        words = f"{kernel.release} {layout}: {ended} (boot {boot} of {tries})"
        raise MachineError(f"{words}\n--- output\n{_text(out / 'log')[-3000:]}\n--- console\n{console[-4000:]}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _argv(
    kernel: Kernel, work: Path, out: Path, *, layout: str, memory_mib: int, cpus: int, disk_mib: int, icount: bool
) -> list[str]:
    # One thread runs all CPUs: more are faster, and oops now and then while a kernel patches its own text.
    # icount: the guest's clock counts its instructions, 2 ns each, so this host's load is no delay there. Debian's 6.1 and 6.12
    # hang with it in their decompressor (qemu 7.2), 7.3 does not.
    words = f"console=ttyS0 quiet loglevel=4 panic=-1 psi=1 nsagent.layout={layout}"
    argv = [
        *("setpriv", "--pdeathsig", "KILL"),  # no machine outlives what started it
        *(_QEMU, "-accel", "tcg,thread=single", "-cpu", "max", "-smp", str(cpus), "-m", str(memory_mib)),
        *("-nodefaults", "-no-reboot", "-nographic", "-serial", f"file:{work}/console"),
        *("-kernel", str(kernel.vmlinuz), "-initrd", f"{work}/initrd", "-append", words),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"local,id=out,path={out},security_model=none", "-device", "virtio-9p-pci,fsdev=out,mount_tag=out"),
    ]
    if icount:
        argv += ["-icount", "shift=1,sleep=off"]
    if disk_mib:
        with (work / "disk").open("wb") as file:
            file.truncate(disk_mib << 20)
        argv += ["-drive", f"file={work}/disk,if=none,id=disk,format=raw,cache=unsafe"]
        argv += ["-device", "virtio-blk-pci,drive=disk"]
    return argv


def _initrd(kernel: Kernel, command: str) -> bytes:
    """Return an initrd of busybox, the kernel's modules, init.sh and the command."""
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(
        ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "new"), (stat.S_IFDIR | 0o755, b"")
    )
    modules = list(kernel.modules())
    files["bin/busybox"] = (stat.S_IFREG | 0o755, (kernel.directory / "busybox").read_bytes())
    files["init"] = (stat.S_IFREG | 0o755, Path(__file__).with_name("init.sh").read_bytes())
    files["command"] = (stat.S_IFREG | 0o644, command.encode() + b"\n")
    files["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{path.stem}\n" for path in modules).encode())
    for path in modules:
        files[f"modules/{path.name}"] = (stat.S_IFREG | 0o644, path.read_bytes())
    return b"".join(_cpio(name, mode, data) for name, (mode, data) in files.items()) + _cpio("TRAILER!!!", 0, b"")


def _cpio(name: str, mode: int, data: bytes) -> bytes:
    """Return one member of a newc archive. Source: Documentation/driver-api/early-userspace/buffer-format.rst."""
    path = name.encode() + b"\0"
    words = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % word for word in words) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
