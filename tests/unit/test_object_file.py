"""The object file: what the loader accepts from a disk, and the exact thing wrong with all it does not."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.errors import AccessError, NsagentError, ParseError
from nsagent.kernel.abi import ABI_VERSION
from nsagent.kernel.objfile import kernel_build_id, parse_object, read_object

LD_MARKER = struct.pack("=BBhiBBhi", 0x18, 0x01, 0, 0x4D415053, 0, 0, 0, 7)
MOV = struct.pack("=BBhi", 0xB7, 0, 0, 0)
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
CODE = MOV + LD_MARKER + LD_MARKER + EXIT

GOOD: dict[str, Any] = {
    "abi": ABI_VERSION,
    "build_id": "ab" * 20,
    "source": "cd" * 32,
    "compiler": "bcc 0.26.0",
    "maps": {
        "rows": {"type": "array", "key_size": 4, "value_size": 360, "max_entries": 10240, "flags": ["mmapable"]},
        "tasks": {"type": "task_storage", "key_size": 4, "value_size": 64, "max_entries": 0, "flags": []},
        "events": {"type": "ringbuf", "max_entries": 1 << 20},
    },
    "programs": [
        {
            "name": "on_exit",
            "group": "account",
            "type": "tracing",
            "attach": "tp_btf",
            "target": "sched_process_exit",
            "btf_id": 1234,
            "insns": base64.b64encode(CODE).decode(),
            "relocations": [[1, "rows"]],
        }
    ],
    "missing": {"io_delay": "no task_struct.delays"},
}


def parsed(value: Any) -> Any:
    return parse_object(json.dumps(value).encode(), "o.json")


def test_reads_a_whole_object() -> None:
    obj = parsed(GOOD)
    assert obj.key == ("cd" * 32, "ab" * 20)
    assert obj.maps["rows"].flags == ("mmapable",)
    assert obj.maps["events"].max_entries == 1 << 20
    assert obj.programs[0].relocations == ((1, "rows"),)
    assert obj.missing == {"io_delay": "no task_struct.delays"}


def test_fills_descriptors_into_relocated_loads_only() -> None:
    linked = parsed(GOOD).programs[0].linked({"rows": 77})
    assert linked[8:24] == struct.pack("=BBhiBBhi", 0x18, 0x11, 0, 77, 0, 0, 0, 0)
    assert linked[24:40] == LD_MARKER  # the plain 64-bit constant stays
    assert linked[:8] + linked[40:] == MOV + EXIT


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *way, last = path.split(".")
        at: Any = document
        for word in way:
            at = at[int(word)] if isinstance(at, list) else at[word]
        if value is ...:
            del at[last]
        else:
            at[last] = value

    return apply


P = "programs.0."
STRAY = struct.pack("=BBhiBBhi", 0x18, 0x11, 0, 5, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("abi", ABI_VERSION + 1, "abi"),
        ("abi", ..., "abi"),
        ("source", "xyz", "source"),
        ("build_id", "ab" * 21, "build_id"),
        ("build_id", 5, "build_id is not a str"),
        ("maps", [], "maps is not a dict"),
        ("maps.a/b", {"type": "hash"}, "not a name"),
        ("maps.a.b", {"type": "hash"}, "KeyError"),
        ("maps.meta", {"type": "array", "key_size": 4, "value_size": 8, "max_entries": 1}, "the loader's own name"),
        ("maps.rows.type", "prog_array", "unknown type"),
        ("maps.rows.type", ["hash"], "not a str"),
        ("maps.rows.max_entries", 1 << 40, "max_entries"),
        ("maps.rows.max_entries", True, "not a int"),
        ("maps.rows.max_entries", -1, "max_entries"),
        ("maps.rows.value_size", 1 << 20, "larger than"),
        ("maps.rows.key_size", 0, "key_size"),
        ("maps.rows.flags", ["sudo"], "unknown flag"),
        ("maps.rows.flags", [["mmapable"]], "unknown flag"),
        ("maps.tasks.value_size", 12, "odd size"),
        ("maps.events.key_size", 4, "key_size"),
        (P + "name", "../../etc", "not a name"),
        (P + "name", "a.b", "not a name"),
        (P + "attach", "kprobe_multi", "unknown attach"),
        (P + "type", "tracepoint", "type 'tracepoint' with tp_btf"),
        (P + "target", "../../../etc/passwd", "target"),
        (P + "target", "", "target"),
        (P + "btf_id", 0, "btf_id"),
        (P + "btf_id", 1 << 31, "btf_id"),
        (P + "insns", "!!", "insns"),
        (P + "insns", "", "insns"),
        (P + "insns", base64.b64encode(CODE[:-1]).decode(), "insns"),
        (P + "insns", base64.b64encode(STRAY + CODE[16:]).decode(), "refers to a descriptor"),
        (P + "insns", base64.b64encode(MOV + LD_MARKER[:8]).decode(), "relocation"),
        (P + "insns", base64.b64encode(MOV + LD_MARKER + STRAY + EXIT).decode(), "refers to a descriptor"),
        (P + "relocations", [[0, "rows"]], "not on a whole ld_imm64"),
        (P + "relocations", [[2, "rows"]], "not on a whole ld_imm64"),
        (P + "relocations", [[99, "rows"]], "relocation"),
        (P + "relocations", [[1, "nothing"]], "no map"),
        (P + "relocations", [[1]], "relocation"),
        (P + "relocations", [1], "not a list"),
        ("programs", {}, "not a list"),
        ("programs", [GOOD["programs"][0]] * 2, "two programs have one name"),
    ],
)
def test_names_what_is_wrong(path: str, value: Any, words: str) -> None:
    document = copy.deepcopy(GOOD)
    if words == "KeyError":  # a dot in a map's name cannot be said by path
        document["maps"]["a.b"] = value
        words = "not a name"
    else:
        change(path, value)(document)
    with pytest.raises(ParseError, match=words) as caught:
        parsed(document)
    assert caught.value.message.startswith("o.json: not a usable object: ")
    assert caught.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_no_document(text: bytes) -> None:
    with pytest.raises(ParseError):
        parse_object(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
places = st.sampled_from(
    [*GOOD, "maps.rows", "maps.rows.type", "maps.rows.flags", P[:-1], *(P + key for key in GOOD["programs"][0])]
)


@given(places, json_values)
def test_any_value_anywhere_is_accepted_or_a_parse_error(path: str, value: Any) -> None:
    document = json.loads(json.dumps(GOOD))
    *way, last = path.split(".")
    at: Any = document
    for word in way:
        at = at[int(word)] if isinstance(at, list) else at[word]
    at[int(last) if isinstance(at, list) else last] = value
    try:
        parsed(document)
    except ParseError:
        pass


@given(st.binary(max_size=400))
def test_any_bytes_are_a_parse_error(data: bytes) -> None:
    with pytest.raises(ParseError):
        parse_object(data)


def test_file_must_be_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "object.json"
    path.write_text(json.dumps(GOOD))
    path.chmod(0o600)
    assert read_object(str(path)).key.build_id == "ab" * 20
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(AccessError, match=f"mode 100{mode:o}") as caught:
            read_object(str(path))
        assert str(path) in caught.value.hint
    path.chmod(0o644)
    assert read_object(str(path)).maps
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(AccessError):
        read_object(str(link))
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(AccessError):
        read_object(str(tmp_path / "fifo"))
    with pytest.raises(FileNotFoundError):
        read_object(str(tmp_path / "none"))


def test_file_of_another_owner_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "object.json"
    path.write_text(json.dumps(GOOD))
    path.chmod(0o600)
    os.chown(path, 1234, 1234)
    with pytest.raises(AccessError, match="owner 1234"):
        read_object(str(path))


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    padded = [part + bytes(-len(part) % 4) for part in (name, desc)]
    return struct.pack("=III", len(name), len(desc), kind) + b"".join(padded)


def test_build_id_is_found_among_other_notes(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_bytes(note(b"Xen\0", 6, b"linux") + note(b"Linux\0", 0, b"\1\2\3") + note(b"GNU\0", 3, bytes(range(20))))
    assert kernel_build_id(str(notes)) == bytes(range(20)).hex()


def test_without_a_build_id_the_btf_identifies_the_kernel(tmp_path: Path) -> None:
    notes, btf = tmp_path / "notes", tmp_path / "vmlinux"
    notes.write_bytes(note(b"Xen\0", 6, b"linux") + b"\1\0\0")
    btf.write_bytes(b"types")
    assert kernel_build_id(str(notes), str(btf)) == hashlib.sha1(b"types", usedforsecurity=False).hexdigest()
    btf.unlink()
    with pytest.raises(NsagentError, match="build cannot be told"):
        kernel_build_id(str(tmp_path / "none"), str(btf))
