"""Objects made for another node, and what a compiler that fails, hangs or dies leaves: one line, and a file."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from nsagent.errors import LoadError, UnsupportedError
from nsagent.kernel import attach, build, create, objects
from tests.kernel.agents import running
from tests.support import require_root, run_nsagent

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def test_an_object_made_elsewhere_is_used_and_no_compiler_asked(world: list[str], tmp_path: Path) -> None:
    done = run_nsagent("bpf", "build", "-o", str(tmp_path / "objects"))
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "objects").iterdir()
    assert done.stdout == f"{path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert objects.read_object(str(path)).key.build_id == objects.kernel_build_id()
    flags = ["--object-dir", str(tmp_path / "objects"), "--cache-dir", str(tmp_path / "cache")]
    with running(world, *flags, env={"NSAGENT_BCC_PYTHON": "/nonexistent"}) as agent:
        assert agent.facts["bpf"] == "loaded"
        log = agent.stop()
    assert "warm=true" in log
    assert "compiling" not in log


def test_for_another_kernel(tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    shutil.copy("/sys/kernel/btf/vmlinux", btf)
    done = run_nsagent("bpf", "build", "-o", str(tmp_path), "--btf", str(btf), "--build-id", "ab" * 20, "--subsystem", "none")
    assert done.returncode == 0, done.stderr
    found = objects.read_object(done.stdout.strip())
    assert found.key.build_id == "ab" * 20
    assert {program.name for program in found.programs} >= {"on_birth", "on_pass", "leave_unshare"}
    notes = run_nsagent("bpf", "build", "-o", str(tmp_path), "--btf", str(btf), "--notes", "/sys/kernel/notes")
    assert os.path.basename(notes.stdout).startswith(objects.kernel_build_id()[:40])


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--btf", "/etc/hostname"], 2, "build id"),
        (["--build-id", "xyz"], 2, "hex"),
        (["--btf", "/nonexistent", "--build-id", "ab"], 2, "/nonexistent"),
        (["--btf", "/etc/passwd", "--build-id", "ab", "--subsystem", "none"], 125, "cannot compile"),
    ],
    ids=["no id", "no hex", "no file", "no BTF"],
)
def test_what_cannot_be_built(tmp_path: Path, flags: list[str], code: int, words: str) -> None:
    done = run_nsagent("bpf", "build", "-o", str(tmp_path), *flags)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.json"))


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in the place of the interpreter that has bcc: the child is whatever it does."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(build, "interpreters", lambda: [str(program)])


def compile_it(log_dir: Path, deadline: float = 120.0) -> LoadError:
    with pytest.raises(LoadError) as caught:
        build.compile_object(objects.kernel_build_id(), None, log_dir=str(log_dir), deadline=deadline)
    return caught.value


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo begun >&2; kill -SEGV $$", "the compiler was ended by SIGSEGV"),
        ("echo begun >&2; echo 'a.c:1:2: error: no such thing' >&2; exit 1", "a.c:1:2: error: no such thing"),
        ("echo begun >&2; exit 1", "begun"),
    ],
    ids=["crashes", "refuses", "ends"],
)
def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiler(tmp_path, monkeypatch, script)
    error = compile_it(tmp_path / "logs")
    assert error.message == f"cannot compile the BPF programs: {message}"
    assert (tmp_path / "logs" / "compile.log").read_text().startswith("begun")
    assert str(tmp_path / "logs" / "compile.log") in error.hint
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("nsagent-")]


def test_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiler(tmp_path, monkeypatch, "echo $$ > $TMPDIR/../child; echo begun >&2; exec sleep 1000")
    log, child = tmp_path / "logs" / "compile.log", tmp_path / "child"
    for deadline in (1, 10, 100):  # in which a slow machine may not have started it
        error = compile_it(log.parent, deadline)
        assert error.message == f"cannot compile the BPF programs: it took longer than {deadline} s and was stopped"
        if log.read_text():
            break
    assert log.read_text().startswith("begun")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("nsagent-")]
    assert not Path(f"/proc/{child.read_text().strip()}").exists()


def test_without_bcc_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(UnsupportedError) as caught:
        build.compile_object(objects.kernel_build_id(), None)
    assert "python3-bpfcc" in caught.value.hint


def test_the_verifiers_text_is_in_a_file(tmp_path: Path, pin_dir: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: object, fds: dict[str, int]) -> int:
        raise LoadError("program x: the verifier refused it: R1 invalid", log="0: (bf) r1 = r5\nR1 invalid", hint="report it")

    found, _ = attach.find_object(cache_dir, None)
    monkeypatch.setattr(attach, "find_object", lambda *args, **options: (found, True))
    monkeypatch.setattr(create, "load_program", refuse)
    with pytest.raises(LoadError) as caught:
        attach.attach(str(pin_dir), str(tmp_path), subsystem=None, trace=False)
    assert (tmp_path / "verifier.log").read_text() == caught.value.log
    assert str(tmp_path / "verifier.log") in caught.value.hint
