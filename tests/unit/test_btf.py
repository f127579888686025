"""BTF and its projection, on kernels recorded by tests/fixtures/btf/record.py: real offsets, and hostile bytes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nsagent.errors import NsagentError, ParseError, UnsupportedError
from nsagent.kernel import headers
from nsagent.kernel.btf import FUNC, STRUCT, TYPEDEF, Btf
from nsagent.kernel.compile import find_target, list_programs

FIXTURES = Path(__file__).parent.parent / "fixtures" / "btf"
RECORDED = sorted(path.name for path in FIXTURES.glob("*.btf"))


def recorded(name: str) -> Btf:
    return Btf((FIXTURES / name).read_bytes(), name)


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_kernel_projects_what_accounting_needs(name: str) -> None:
    btf = recorded(name)
    text = headers.project(btf).text
    for member in headers.REQUIRED:
        assert f"#define HAVE_{member.replace('.', '_')} 1" in text
    offset = btf.member(btf.ids[STRUCT, "task_struct"], "tgid")
    assert offset is not None
    assert f"char __pad_tgid[{offset.bit_offset // 8}]; int tgid;" in text


def test_the_kernels_differ_where_they_should() -> None:
    new, arm = headers.project(recorded("x86_64-6.18.btf")), headers.project(recorded("arm64-6.1.btf"))
    assert "HAVE_rss_percpu" in new.text
    assert "HAVE_rss_atomic" in arm.text
    assert "namespace_id" in arm.missing
    assert not new.missing
    assert set(new.kfuncs) == set(headers.KFUNCS)
    assert not arm.kfuncs
    assert "unsigned long di" in new.text
    assert "u64 regs[31]" in arm.text
    assert "HAVE_pt_regs_di" not in arm.text
    refused = {name for name in RECORDED if "STORAGE_REFUSED_WHEN_BUSY" in headers.project(recorded(name)).text}
    assert refused == {"x86_64-6.1.btf", "arm64-6.1.btf"}


@pytest.mark.parametrize(
    ("member", "offset"),
    [
        ("ns_common.inum", 16),
        ("nsproxy.uts_ns", 8),
        ("kernfs_node.id", 104),
        ("css_set.dfl_cgrp", 128),
        ("task_struct.__state", 24),
        ("task_struct.tgid", 1356),
        ("task_struct.thread_pid", 1456),
        ("task_struct.nvcsw", 1696),
        ("task_struct.real_cred", 1888),
        ("task_struct.ioac", 2272),
        ("mm_struct.pgtables_bytes", 80),  # these three in an anonymous struct of an anonymous union
        ("mm_struct.rss_stat", 696),
        ("mm_struct.owner", 800),
        ("task_struct.state", None),
    ],
)
def test_offsets_are_those_pahole_prints(member: str, offset: int | None) -> None:
    """Of Debian's 6.1.0-56-arm64, as `pahole -C STRUCT` of dwarves prints them."""
    btf = recorded("arm64-6.1.btf")
    struct_name, _, name = member.partition(".")
    found = btf.member(btf.ids[STRUCT, struct_name], name)
    assert (None if found is None else found.bit_offset // 8) == offset


@pytest.mark.parametrize(("name", "machine"), [("x86_64-6.18.btf", "x86_64"), ("arm64-6.1.btf", "aarch64")])
def test_every_program_has_its_target(name: str, machine: str) -> None:
    btf = recorded(name)
    for program in list_programs(machine):
        assert bool(find_target(btf, TYPEDEF, FUNC, program)) == (program.type == "tracing"), program


def test_a_missing_member_is_a_missing_feature_or_a_clear_end() -> None:
    btf = recorded("x86_64-6.18.btf")
    del btf.ids[STRUCT, "task_delay_info"]
    assert list(headers.project(btf).missing) == ["io_delay"]
    del btf.ids[STRUCT, "kernfs_node"]
    with pytest.raises(UnsupportedError, match=r"kernfs_node\.id"):
        headers.project(btf)


def test_pads_add_up_to_the_kernels_sizes() -> None:
    """Each struct is as large as in the kernel: an array of them strides right."""
    btf = recorded("x86_64-6.18.btf")
    sizes = dict(re.findall(r"struct (\w+) \{ union \{ char __size\[(\d+)\]", headers.project(btf).text))
    assert int(sizes["percpu_counter"]) == 40
    assert all(int(size) == btf.size(btf.ids[STRUCT, name]) for name, size in sizes.items())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "shorter than its header"),
        (b"\x9f\xeb", "shorter than its header"),
        (struct.pack("<HBBIIIII", 0x9FEB, 1, 0, 24, 0, 0, 0, 0), "not little-endian BTF"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1), "past the end"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1) + struct.pack("<III", 0, 31 << 24, 0) + b"\0", "unknown kind"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1) + struct.pack("<III", 9, 4 << 24, 0) + b"\0", "no end"),
    ],
)
def test_broken_btf_is_named(data: bytes, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        Btf(data)


def test_types_that_lead_in_circles_end() -> None:
    typedef = struct.pack("<III", 0, 8 << 24, 1)
    btf = Btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(typedef), len(typedef), 1) + typedef + b"\0")
    with pytest.raises(ParseError, match="never end"):
        btf.strip(1)
    nested = struct.pack("<III", 0, 4 << 24 | 1, 8) + struct.pack("<III", 0, 1, 0)  # a struct in itself
    assert Btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(nested), len(nested), 1) + nested + b"\0").member(1, "x") is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 255)), min_size=1, max_size=40))
@example([(4, 255)])
def test_no_damage_does_more_than_raise_our_own_errors(damage: list[tuple[int, int]]) -> None:
    data = bytearray((FIXTURES / "x86_64-6.18.btf").read_bytes())
    for at, value in damage:
        data[at % len(data)] = value
    try:
        headers.project(Btf(bytes(data)))
    except NsagentError:
        pass
