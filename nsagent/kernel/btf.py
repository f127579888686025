"""Read BTF, the kernel's description of its own types: names, members, offsets. Standard library only; input is untrusted.

Source: Documentation/bpf/btf.rst, include/uapi/linux/btf.h. Only little-endian BTF is read (x86-64, arm64).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nsagent.errors import ParseError

_MAGIC = 0xEB9F
_MAX_DEPTH = 16  # anonymous members nest three deep in practice

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO = range(1, 14)
VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(14, 20)

# Bytes that follow the 12-byte head of a type: fixed, and for each of its vlen members.
_TAIL = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
_TAIL_EACH = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}


class Member(NamedTuple):
    """A field: offset in bits from the start of the outermost struct, and width in bits if it is a bit field (else 0)."""

    type: int
    bit_offset: int
    bit_width: int


class Btf:
    """Types by id. `ids` maps (kind, name) to the first id with that name.

    Raises:
        ParseError: the bytes are not well-formed BTF.
    """

    def __init__(self, data: bytes, path: str = "") -> None:
        self._data = data
        self._path = path
        try:
            magic, version, _, header, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", data)
        except struct.error:
            raise self._bad("shorter than its header") from None
        if magic != _MAGIC or version != 1:
            raise self._bad(f"not little-endian BTF version 1 (magic {magic:#x}, version {version})")
        if header < 24 or header + max(type_off + type_len, str_off + str_len) > len(data):
            raise self._bad("sections reach past the end")
        self._strings = data[header + str_off : header + str_off + str_len]
        self._offsets = self._scan(header + type_off, header + type_off + type_len)

    def _bad(self, why: str) -> ParseError:
        return ParseError(f"broken BTF: {why}", path=self._path)

    def _scan(self, at: int, end: int) -> list[int]:
        """Return the byte offset of each type; index 0 is void. Fills `ids` on the way."""
        offsets = [0]
        self.ids: dict[tuple[int, str], int] = {}
        self._unnamed: list[int] = []  # enums
        unpack, tail, each = struct.Struct("<II").unpack_from, _TAIL, _TAIL_EACH
        wanted = (STRUCT, UNION, ENUM, TYPEDEF, FUNC, VAR)
        while at < end:
            try:
                name, info = unpack(self._data, at)
            except struct.error:
                raise self._bad(f"type {len(offsets)} is cut off") from None
            kind = info >> 24 & 0x1F
            if not 0 < kind <= ENUM64:
                raise self._bad(f"type {len(offsets)} is of unknown kind {kind}")
            if name and kind in wanted:
                self.ids.setdefault((kind, self._name(name)), len(offsets))
            elif kind == ENUM:
                self._unnamed.append(len(offsets))
            offsets.append(at)
            at += 12 + tail.get(kind, 0) + each.get(kind, 0) * (info & 0xFFFF)
        if at != end:
            raise self._bad("the last type is cut off")
        return offsets

    def _name(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise self._bad(f"string at {offset} has no end")
        return self._strings[offset:end].decode("ascii", "replace")

    def head(self, type_id: int) -> tuple[int, str, int, int, bool]:
        """Return (kind, name, size or type, vlen, kind_flag) of a type; void is (0, "", 0, 0, False)."""
        if type_id == 0:
            return 0, "", 0, 0, False
        if not 0 < type_id < len(self._offsets):
            raise self._bad(f"reference to type {type_id} of {len(self._offsets)}")
        name, info, size = struct.unpack_from("<III", self._data, self._offsets[type_id])
        return info >> 24 & 0x1F, self._name(name), size, info & 0xFFFF, bool(info >> 31)

    def tail(self, type_id: int) -> bytes:
        """Return what follows the head of a type: its members, values or parameters, as they are."""
        kind, _, _, vlen, _ = self.head(type_id)
        at = self._offsets[type_id] + 12
        return self._data[at : at + _TAIL.get(kind, 0) + _TAIL_EACH.get(kind, 0) * vlen]

    def raw_members(self, type_id: int) -> list[tuple[str, int, int]]:
        """Return (name, type, raw offset) of each member of a struct or union; anonymous ones have no name."""
        return [
            (self._name(name) if name else "", type_id, raw)
            for name, type_id, raw in struct.iter_unpack("<III", self.tail(type_id))
        ]

    def size(self, type_id: int) -> int:
        """Return the size in bytes of a struct, union, enum or int."""
        return self.head(type_id)[2]

    def member(self, type_id: int, name: str) -> Member | None:
        """Find a member by name, looking through anonymous structs and unions; None where this kernel has none."""
        return self._member(type_id, name, 0, 0)

    def _member(self, type_id: int, name: str, base: int, depth: int) -> Member | None:
        kind, _, _, _, kind_flag = self.head(type_id)
        if kind not in (STRUCT, UNION) or depth > _MAX_DEPTH:
            return None
        inner: list[tuple[int, int]] = []
        for member_name, member_type, raw in self.raw_members(type_id):
            offset, width = (raw & 0xFFFFFF, raw >> 24) if kind_flag else (raw, 0)
            if not member_name:
                inner.append((member_type, offset))
            elif member_name == name:
                return Member(member_type, base + offset, width)
        for member_type, offset in inner:
            if found := self._member(member_type, name, base + offset, depth + 1):
                return found
        return None

    def strip(self, type_id: int) -> int:
        """Follow typedefs, qualifiers and type tags to the type they stand for."""
        for _ in range(2 * _MAX_DEPTH):
            kind, _, target, _, _ = self.head(type_id)
            if kind not in (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG):
                return type_id
            type_id = target
        raise self._bad(f"typedefs of type {type_id} never end")

    def element(self, type_id: int) -> int:
        """Return the element type of an array, else the type itself; both stripped."""
        type_id = self.strip(type_id)
        if self.head(type_id)[0] != ARRAY:
            return type_id
        return self.strip(int(struct.unpack_from("<I", self.tail(type_id))[0]))

    def enum(self, name: str) -> int:
        """Return the type of an enum by its name, or one without a name by that of a value of it; 0 where there is none."""
        named = self.ids.get((ENUM, name))
        return named or next((type_id for type_id in self._unnamed if name in self.values(type_id)), 0)

    def values(self, type_id: int) -> dict[str, int]:
        """Return the names and values of an enum; empty for void."""
        return {self._name(n): v for n, v in struct.iter_unpack("<Ii", self.tail(type_id))} if type_id else {}

    def parameters(self, type_id: int) -> int:
        """Count the parameters of the function a typedef, pointer, function or prototype leads to; -1 if it leads to none."""
        for _ in range(2 * _MAX_DEPTH):
            kind, _, target, vlen, _ = self.head(type_id)
            if kind == FUNC_PROTO:
                return vlen
            if kind not in (TYPEDEF, PTR, FUNC, CONST):
                return -1
            type_id = target
        return -1
