"""The linters, as tests: each is one test, and its failure is what the linter said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, require

BIN = Path(sys.executable).parent
PYTHON_DIRECTORIES = [name for name in ("nsagent", "tests", "bench", "tools", "dashboards") if list((ROOT / name).rglob("*.py"))]
C_SOURCES = sorted([*ROOT.glob("bpf/*.c"), *ROOT.glob("bpf/*.h")])


def lint(remedy: str, tool: Path | str, *args: Path | str) -> None:
    """Run a linter in the project's root; fail with its name, its output and how to mend what it found."""
    try:
        done = subprocess.run([tool, *args], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        require(False, f"{tool} is not installed (make setup)")
        raise
    if done.returncode != 0:
        pytest.fail(f"{Path(tool).name} found faults; {remedy}\n{done.stdout}{done.stderr}", pytrace=False)


def shell_scripts() -> list[Path]:
    """Return every shell script of the project, by its suffix or its first line."""
    candidates = [p for top in ("tools", "deploy", "tests", "bench", ".ci") for p in (ROOT / top).rglob("*") if p.is_file()]
    return [p for p in candidates if p.suffix == ".sh" or p.read_bytes()[:64].split(b"\n")[0] in {b"#!/bin/bash", b"#!/bin/sh"}]


def test_ruff_check() -> None:
    lint("try 'make format'", BIN / "ruff", "check", "--quiet", *PYTHON_DIRECTORIES)


def test_ruff_format() -> None:
    lint("run 'make format'", BIN / "ruff", "format", "--check", *PYTHON_DIRECTORIES)


def test_mypy_strict() -> None:
    lint("see CONTRIBUTING.md", BIN / "mypy", "--strict", *PYTHON_DIRECTORIES)


def test_codespell() -> None:
    lint("a word that is right goes to ignore-words-list in pyproject.toml", BIN / "codespell", ".")


def test_clang_format() -> None:
    assert C_SOURCES, "bpf/ holds no C"
    lint("run 'make format'", BIN / "clang-format", "--dry-run", "--Werror", *C_SOURCES)


def test_shellcheck() -> None:
    scripts = shell_scripts()
    assert ROOT / ".ci/run" in scripts
    lint("each SC number is explained in shellcheck's wiki", "shellcheck", *scripts)


def test_linters_can_fail(tmp_path: Path) -> None:
    """A linter that finds nothing anywhere would keep all of the above green."""
    bad = tmp_path / "bad.c"
    bad.write_text("int  main( ){return 0 ;}\n")
    with pytest.raises(pytest.fail.Exception, match="clang-format found faults"):
        lint("", BIN / "clang-format", "--style=file:.clang-format", "--dry-run", "--Werror", bad)


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: path.name)
def test_bpf_names_its_licence(path: Path) -> None:
    """The kernel demands a GPL-compatible program; the rest of the project is Apache-2.0."""
    assert "SPDX-License-Identifier: GPL-2.0 OR Apache-2.0" in path.read_text().splitlines()[0]
