"""The object: compiled programs, map specifications and relocations in one JSON document, for one build of the kernel.

The compile child writes it, the loader reads it. To the loader it is untrusted data from a disk: it must belong to us,
nobody else may write it (whoever can, runs code in the kernel), and each size is checked before anything is made of it.
Standard library only: the compile child imports this too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from nsagent.errors import AccessError, NsagentError, ParseError
from nsagent.kernel import bpf
from nsagent.kernel.abi import ABI_VERSION

# attach -> (the program's type, its expected attach type); "none" takes the type the document states
ATTACH: Final = {
    "tp_btf": ("tracing", bpf.TRACE_RAW_TP),
    "fentry": ("tracing", bpf.TRACE_FENTRY),
    "fexit": ("tracing", bpf.TRACE_FEXIT),
    "iter": ("tracing", bpf.TRACE_ITER),
    "iter_of": ("tracing", bpf.TRACE_ITER),  # of something that user space names, by a link of its own
    "tracepoint": ("tracepoint", 0),
    "none": ("", 0),
}
META: Final = "meta"  # the map in which the loader notes what it loaded
LD_IMM64: Final = 0x18
PSEUDO_MAP_FD: Final = 1
INSN_BYTES: Final = 8
_FILE_BYTES: Final = 16 << 20
_MAP_BYTES: Final = 1 << 30
_MAX_INSNS: Final = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")  # becomes a file name on bpffs, which refuses dots
_TARGET = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)?")


class ObjectKey(NamedTuple):
    """What an object was made from: SHA-256 of sources and options, and the build of the kernel. Both hex."""

    source: str
    build_id: str


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map to create; sizes in bytes, `flags` the names in `bpf.MAP_FLAGS`."""

    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program; `relocations` pairs the index of a two-slot ld_imm64 with the map whose descriptor goes there.

    With `same_as` it is no program but one more attachment of the program of that name, and has no instructions.
    """

    name: str
    group: str
    type: str
    attach: str
    target: str
    btf_id: int
    insns: bytes
    relocations: tuple[tuple[int, str], ...]
    same_as: str = ""

    def linked(self, fds: dict[str, int]) -> bytes:
        """Return the instructions with the descriptors of `fds` in place."""
        code = bytearray(self.insns)
        for index, name in self.relocations:
            at = index * INSN_BYTES
            code[at + 1] = code[at + 1] & 0x0F | PSEUDO_MAP_FD << 4
            struct.pack_into("=i", code, at + 4, fds[name])
            struct.pack_into("=i", code, at + INSN_BYTES + 4, 0)
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Object:
    """A whole object, checked. `missing` names each feature the compiler had to leave out, with the reason."""

    key: ObjectKey
    compiler: str
    maps: dict[str, MapSpec]
    programs: tuple[ProgramSpec, ...]
    missing: dict[str, str]


def kernel_build_id(notes: str = "/sys/kernel/notes", btf: str = "/sys/kernel/btf/vmlinux") -> str:
    """Return the running kernel's GNU build id in hex; where it has none the SHA-1 of its BTF, which objects depend on.

    Raises:
        NsagentError: neither can be read.
    """
    try:
        with open(notes, "rb") as file:
            data = file.read()
    except OSError:
        data = b""
    at = 0
    while at + 12 <= len(data):  # struct elf_note: sizes of name and description, type; both padded to 4
        name_bytes, desc_bytes, kind = struct.unpack_from("=III", data, at)
        desc = at + 12 + (name_bytes + 3 & ~3)
        if kind == 3 and data[at + 12 : at + 16] == b"GNU\0" and desc_bytes:  # NT_GNU_BUILD_ID
            return data[desc : desc + desc_bytes].hex()
        at = desc + (desc_bytes + 3 & ~3)
    try:
        with open(btf, "rb") as file:
            return hashlib.sha1(file.read(), usedforsecurity=False).hexdigest()
    except OSError as exc:
        raise NsagentError(f"the kernel's build cannot be told: no build id in {notes}, and {btf}: {exc.strerror}") from exc


def read_object(path: str) -> Object:
    """Read an object from a file.

    Raises:
        FileNotFoundError: there is none: compile it.
        AccessError: somebody else owns it or may write it, or it cannot be read.
        ParseError: it is not an object of this ABI.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise AccessError(f"cannot read object {path}: {exc.strerror}") from exc
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise AccessError(
                f"object {path} is no file that only we or root write: owner {status.st_uid}, mode {status.st_mode:o}",
                hint=f"remove it; what it holds would run in the kernel: rm {path}",
            )
        return parse_object(file.read(_FILE_BYTES + 1), path)


def parse_object(data: bytes, path: str = "") -> Object:
    """Check and convert an object's JSON text. Raises ParseError naming the first thing wrong."""
    parse = _Parser(path)
    parse.check(len(data) <= _FILE_BYTES, f"more than {_FILE_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise parse.bad(f"not JSON: {exc}") from exc
    document = parse.of(dict, document, "document")
    parse.check(document.get("abi") == ABI_VERSION, f"abi {document.get('abi')!r}, need {ABI_VERSION}")
    source, build_id = (parse.of(str, document.get(k), k) for k in ("source", "build_id"))
    parse.check(re.fullmatch(r"[0-9a-f]{64}", source), "source is not a SHA-256 in hex")
    parse.check(re.fullmatch(r"([0-9a-f]{2}){1,20}", build_id), "build_id is not hex of at most 20 bytes")
    maps = {name: parse.map(name, spec) for name, spec in parse.of(dict, document.get("maps"), "maps").items()}
    programs: list[ProgramSpec] = []
    names: set[str] = set()
    for spec in parse.of(list, document.get("programs"), "programs"):
        programs.append(parse.program(spec, maps, names))
        parse.check(programs[-1].name not in names, "two programs have one name")
        names.add(programs[-1].name)
    missing = parse.of(dict, document.get("missing", {}), "missing")
    compiler = parse.of(str, document.get("compiler", ""), "compiler")
    return Object(ObjectKey(source, build_id), compiler, maps, tuple(programs), {k: str(v) for k, v in missing.items()})


class _Parser:
    """The checks, each with the file's name in its error."""

    def __init__(self, path: str) -> None:
        self.path = path

    def bad(self, why: str) -> ParseError:
        return ParseError(f"not a usable object: {why}", path=self.path, hint="remove it: nsagent compiles a new one")

    def check(self, condition: object, why: str) -> None:
        if not condition:
            raise self.bad(why)

    def of(self, kind: type, value: Any, what: str) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.bad(f"{what} is not a {kind.__name__}")
        return value

    def name(self, value: Any, what: str) -> str:
        self.check(_NAME.fullmatch(self.of(str, value, what)), f"{what} {value!r} is not a name")
        return str(value)

    def within(self, value: Any, what: str, low: int, high: int) -> int:
        number: int = self.of(int, value, what)
        self.check(low <= number <= high, f"{what} is {number}, not {low} to {high}")
        return number

    def map(self, name: str, spec: Any) -> MapSpec:
        what = f"map {self.name(name, 'map')}"
        self.check(name != META, f"{what}: the loader's own name")
        spec = self.of(dict, spec, what)
        kind = self.of(str, spec.get("type"), f"{what}: type")
        self.check(kind in bpf.MAP_TYPES, f"{what}: unknown type {kind!r}")
        keyless, ring = kind in ("queue", "ringbuf"), kind == "ringbuf"
        key_size = self.within(spec.get("key_size", 0), f"{what}: key_size", *((0, 0) if keyless else (1, 512)))
        value_size = self.within(spec.get("value_size", 0), f"{what}: value_size", *((0, 0) if ring else (1, 1 << 20)))
        entries = self.within(spec.get("max_entries", 0), f"{what}: max_entries", 0 if kind == "task_storage" else 1, 1 << 28)
        self.check(max(key_size + value_size, 1) * entries <= _MAP_BYTES, f"{what}: larger than {_MAP_BYTES} bytes")
        self.check(kind != "task_storage" or (value_size % 8 == 0 and entries == 0), f"{what}: task storage of odd size")
        flags = self.of(list, spec.get("flags", []), f"{what}: flags")
        self.check(all(isinstance(f, str) and f in bpf.MAP_FLAGS for f in flags), f"{what}: unknown flag in {flags}")
        return MapSpec(kind, key_size, value_size, entries, tuple(flags))

    def program(self, spec: Any, maps: Iterable[str], known: Iterable[str]) -> ProgramSpec:
        spec = self.of(dict, spec, "program")
        name = self.name(spec.get("name"), "program")
        what = f"program {name}"
        group = self.name(spec.get("group"), f"{what}: group")
        attach = self.of(str, spec.get("attach"), f"{what}: attach")
        self.check(attach in ATTACH, f"{what}: unknown attach {attach!r}")
        kind = self.of(str, spec.get("type"), f"{what}: type")
        self.check(kind in bpf.PROG_TYPES and ATTACH[attach][0] in ("", kind), f"{what}: type {kind!r} with {attach}")
        target = self.of(str, spec.get("target", ""), f"{what}: target")
        self.check(_TARGET.fullmatch(target) or (attach == "none" and not target), f"{what}: target {target!r}")
        self.check(attach != "tracepoint" or "/" in target, f"{what}: target {target!r} is not category/event")
        btf_id = self.within(spec.get("btf_id", 0), f"{what}: btf_id", 1 if kind == "tracing" else 0, (1 << 31) - 1)
        same_as = self.of(str, spec.get("same_as", ""), f"{what}: same_as")
        if same_as:
            self.check(same_as in known and attach == "tracepoint", f"{what}: same_as {same_as!r} is no program before it")
            return ProgramSpec(name, group, kind, attach, target, 0, b"", (), same_as)
        try:
            insns = base64.b64decode(self.of(str, spec.get("insns"), f"{what}: insns"), validate=True)
        except (binascii.Error, ValueError) as exc:
            raise self.bad(f"{what}: insns: {exc}") from exc
        length = len(insns) // INSN_BYTES
        self.check(len(insns) % INSN_BYTES == 0 and 0 < length <= _MAX_INSNS, f"{what}: {len(insns)} bytes of insns")
        relocations: list[tuple[int, str]] = []
        for pair in self.of(list, spec.get("relocations", []), f"{what}: relocations"):
            self.check(len(self.of(list, pair, f"{what}: relocation")) == 2, f"{what}: relocation {pair}")
            index = self.within(pair[0], f"{what}: relocation", 0, length - 2)
            self.check(self.of(str, pair[1], f"{what}: relocation") in maps, f"{what}: relocation to no map {pair[1]!r}")
            relocations.append((index, pair[1]))
        self._check_loads(what, insns, {index for index, _ in relocations})
        return ProgramSpec(name, group, kind, attach, target, btf_id, insns, tuple(relocations))

    def _check_loads(self, what: str, insns: bytes, relocated: set[int]) -> None:
        """Each relocation is on a ld_imm64, and no other ld_imm64 names a descriptor: it would be ours by chance."""
        plain, at = set(), 0
        while at < len(insns):
            wide = insns[at] == LD_IMM64
            if wide and (index := at // INSN_BYTES) not in relocated:
                self.check(insns[at + 1] >> 4 == 0, f"{what}: ld_imm64 at {index} refers to a descriptor")
            elif wide:
                plain.add(at // INSN_BYTES)
            at += INSN_BYTES * (2 if wide else 1)
        self.check(relocated == plain and at == len(insns), f"{what}: a relocation is not on a whole ld_imm64")
