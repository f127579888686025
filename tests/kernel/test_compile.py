"""The sources compile for every recorded kernel, each with what it has and lacks: a machine is not needed for that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nsagent.errors import LoadError, UnsupportedError
from nsagent.kernel import build
from nsagent.kernel.compile import MAPS, list_programs
from tests import support

pytestmark = pytest.mark.kernel

FIXTURES = Path(__file__).parent.parent / "fixtures" / "btf"


@pytest.mark.parametrize("subsystem", ["cpuacct", None], ids=["v1", "v2"])
@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("x86_64-*.btf")))
def test_every_recorded_kernel(name: str, subsystem: str | None) -> None:
    support.require(shutil.which("/usr/bin/python3"), "no /usr/bin/python3 with bcc (make setup)")
    support.require(os.uname().machine == "x86_64", "the recorded kernels are for x86-64")
    document = build.compile_object("00", subsystem, btf=str(FIXTURES / name))
    programs = {program["name"]: program for program in document["programs"]}
    unknown = {"cgroups"} if "cgroup_ends" in document["missing"] else set()
    assert programs.keys() == {program.name for program in list_programs("x86_64") if program.group not in unknown}
    for program in programs.values():
        assert bool(program["insns"]) != bool(program["same_as"])
        assert {name for _, name in program["relocations"]} <= set(MAPS)
        assert program["type"] != "tracing" or program["btf_id"]
    assert ("namespace_id" in document["missing"]) == (name not in {"x86_64-6.18.btf", "x86_64-7.3.btf"})


def test_a_compiler_error_is_one_cause_and_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = build.read_sources() | {"zz.c": "int on_nothing(u64 *ctx) { return no_such_thing; }\n"}
    monkeypatch.setattr(build, "read_sources", lambda: sources)
    with pytest.raises(LoadError, match="no_such_thing") as caught:
        build.compile_object("00", None, log_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    (log,) = tmp_path.iterdir()
    assert "no_such_thing" in log.read_text()
    assert str(log) in caught.value.hint


def test_without_btf_or_bcc_the_reason_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="does not exist"):
        build.compile_object("00", None, btf=str(tmp_path / "none"))
    monkeypatch.setattr(build, "interpreters", lambda: ["/bin/false"])
    with pytest.raises((UnsupportedError, LoadError)):
        build.compile_object("00", None)
