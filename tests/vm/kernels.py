"""Debian's kernels as files to boot: fetched by apt from the machine's own mirror, cut down to what a boot needs, cached.

    <cache>/<suite>/vmlinuz  vmlinux.btf  modules/<name>.ko  busybox  kernel.json

The cache is $NSAGENT_VM_CACHE or ~/.cache/nsagent-vm, some 30 MB a kernel; remove it to get newer ones. Suites other than the
installed one have apt sources and lists of their own in a temporary directory: the machine's are read and never written.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nsagent.kernel.objects import kernel_build_id

# What is called by this name in commands and tables: the suite whose linux-image-amd64 it is.
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "trixie-backports"}

# In the order they must be loaded; each kernel has some of them built in, or has none by that name.
MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("fscache", "netfs", "9pnet", "9pnet_virtio", "9p", "overlay"),
    *("virtio_blk", "crc16", "libcrc32c", "crc32c_generic", "mbcache", "jbd2", "ext4"),
)
_PARTS = re.compile(r"linux-(image|binary|modules)-\d")  # since Debian's 6.19 an image is three packages
_PACKAGE = "linux-image-amd64"


class FetchError(Exception):
    """A kernel could not be had; the text says what failed and what to do."""


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to boot. `btf` is what it will show as /sys/kernel/btf/vmlinux, `build_id` that of /sys/kernel/notes."""

    name: str
    suite: str
    release: str
    version: str
    build_id: str
    directory: Path

    @property
    def vmlinuz(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def btf(self) -> Path:
        return self.directory / "vmlinux.btf"

    def modules(self) -> Iterator[Path]:
        """Yield the module files there are, in the order they must be loaded."""
        for name in MODULES:
            path = self.directory / "modules" / f"{name}.ko"
            if path.exists():
                yield path


def cache_dir() -> Path:
    """Return where kernels are kept."""
    return Path(os.environ.get("NSAGENT_VM_CACHE") or Path.home() / ".cache" / "nsagent-vm")


def cached(name: str) -> Kernel | None:
    """Return a kernel of SUITES that was fetched before, without touching the network."""
    directory = cache_dir() / SUITES[name]
    try:
        fields = json.loads((directory / "kernel.json").read_text())
    except FileNotFoundError:
        return None
    return Kernel(**fields | {"name": name, "directory": directory})


def fetch(name: str) -> Kernel:
    """Return a kernel of SUITES, from the cache or from the mirror (55 to 110 MB).

    Raises:
        FetchError: no mirror is configured, it lacks the suite, or dpkg cannot unpack what came.
    """
    if known := cached(name):
        return known
    suite, cache = SUITES[name], cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{suite}-", dir=cache) as temporary:
        work = Path(temporary)
        version = _download(suite, work / "apt")
        tree = work / "tree"
        for package in (work / "apt").glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(tree))
        directory = work / "kernel"
        kernel = _cut_down(tree, Kernel(name, suite, "", version, "", directory))
        # Complete before it has its name: two runs at once each make one, and the first stays.
        final = cache / suite
        shutil.rmtree(final, ignore_errors=True)
        os.replace(directory, final)
    found = cached(name)
    assert found is not None, kernel
    return found


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FetchError(f"{argv[0]}: {words[-1]}")
    return done.stdout


def mirror() -> str:
    """Return the URI the installed Debian's packages come from, as apt's own configuration has it.

    Raises:
        FetchError: apt has no source for the release of /etc/os-release.
    """
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    for line in _run("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(SITE)").splitlines():
        suite, component, uri = line.split(" ", 2)
        if suite == codename and component == "main":
            return uri
    raise FetchError(f"apt has no source for {codename or 'this release'} main: see /etc/apt/sources.list*")


def _keyring() -> str:
    """Return the signed-by option for the archive's keys; none where apt finds them by itself."""
    for suffix in ("pgp", "gpg"):
        path = f"/usr/share/keyrings/debian-archive-keyring.{suffix}"
        if os.path.exists(path):
            return f"signed-by={path}"
    return ""


def _download(suite: str, directory: Path) -> str:
    """Download the packages of the suite's newest kernel; return their version."""
    (directory / "lists" / "partial").mkdir(parents=True)
    (directory / "cache" / "archives" / "partial").mkdir(parents=True)
    source = directory / "sources.list"
    base = suite.removesuffix("-backports")
    source.write_text("".join(f"deb [arch=amd64 {_keyring()}] {mirror()} {name} main\n" for name in {suite, base}))
    options = [
        option
        for setting in (
            f"Dir::Etc::SourceList={source}",
            "Dir::Etc::SourceParts=-",
            f"Dir::State::Lists={directory}/lists",
            f"Dir::Cache={directory}/cache",
            "APT::Architecture=amd64",
            f"APT::Default-Release={suite}",
            "APT::Sandbox::User=root",  # else apt warns that its own user cannot write here
            "Acquire::Languages=none",
            "Acquire::Retries=2",
        )
        for option in ("-o", setting)
    ]
    _run("apt-get", *options, "-qq", "update")
    # busybox-static cannot be installed beside the busybox that many machines have, but it need not be installed
    packages, todo, version = {"busybox-static"}, [_PACKAGE], ""
    while todo:
        text = _run("apt-cache", *options, "show", "--no-all-versions", todo.pop())
        fields = dict(re.findall(r"^(Depends|Version): (.*)$", text, re.M))
        version = version or fields["Version"]
        for dependency in re.split(r"[,|] *", fields.get("Depends", "")):
            name = dependency.split(" ")[0]
            if _PARTS.match(name) and name not in packages:
                packages.add(name)
                todo.append(name)
    _run("apt-get", *options, "-qq", "download", *sorted(packages), cwd=directory)
    return version


def _cut_down(tree: Path, kernel: Kernel) -> Kernel:
    """Keep of an unpacked package what a boot needs, and the kernel's BTF."""
    directory = kernel.directory
    (directory / "modules").mkdir(parents=True)
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if not images:
        raise FetchError(f"{kernel.suite}: the packages hold no vmlinuz")
    shutil.copy(images[0], directory / "vmlinuz")
    shutil.copy(next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists()), directory / "busybox")
    tops = [path for pattern in ("lib/modules/*", "usr/lib/modules/*") for path in tree.glob(pattern)]
    for path in (found for top in tops for found in top.rglob("*.ko*")):
        name = path.name.split(".ko")[0]
        if name in MODULES:
            (directory / "modules" / f"{name}.ko").write_bytes(_decompressed(path.read_bytes()))
    vmlinux = _decompressed(_payload(images[0].read_bytes()))
    sections = _sections(vmlinux)
    (directory / "vmlinux.btf").write_bytes(sections[".BTF"])
    notes = directory / "notes"
    notes.write_bytes(sections[".notes"])
    build_id = kernel_build_id(str(notes), str(directory / "vmlinux.btf"))
    kernel = Kernel(kernel.name, kernel.suite, tops[0].name, kernel.version, build_id, directory)
    fields = asdict(kernel)
    del fields["directory"], fields["name"]
    (directory / "kernel.json").write_text(json.dumps(fields))
    return kernel


def _decompressed(data: bytes) -> bytes:
    """Undo xz, gzip or zstd; what follows the stream (the image's size) is ignored."""
    if data.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        done = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False)
        if not done.stdout:
            raise FetchError(f"zstd: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout
    return data


def _payload(image: bytes) -> bytes:
    """Return the compressed vmlinux of a bzImage. Source: Documentation/arch/x86/boot.rst, payload_offset."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    return image[start : start + length]


def _sections(elf: bytes) -> dict[str, bytes]:
    """Return the sections of a 64-bit ELF file by name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][4]
    sections = {}
    for name, _, _, _, offset, length in headers:
        at = strings + name
        sections[elf[at : elf.index(b"\0", at)].decode()] = elf[offset : offset + length]
    return sections
