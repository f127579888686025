"""The wheel carries what an installed nsagent needs: the BPF sources, the type marker, the licences, the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, require


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel of the work tree, as pip does, with the build backend that is installed: no network."""
    have = subprocess.run([sys.executable, "-c", "import hatchling"], capture_output=True, check=False)
    require(have.returncode == 0, "hatchling is not installed (make setup)")
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(out)]
    argv = [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"pip wheel failed:\n{done.stdout}{done.stderr}"
    (path,) = out.glob("nsagent-*.whl")
    return zipfile.ZipFile(path)


def test_carries_every_module_and_every_bpf_source(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "nsagent").rglob("*.py")}
    sources = {f"nsagent/{p.relative_to(ROOT)}" for p in (ROOT / "bpf").glob("*.[ch]")}
    assert len(sources) >= 3
    assert modules | sources | {"nsagent/py.typed", "nsagent/bpf/LICENSES/GPL-2.0.txt"} <= names
    assert wheel.read("nsagent/bpf/nsagent.h") == (ROOT / "bpf/nsagent.h").read_bytes()


def test_carries_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} - {"nsagent"} == {
        next(n.split("/")[0] for n in wheel.namelist() if ".dist-info/" in n)
    }


def test_metadata_names_licence_and_dependencies(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = wheel.read(name).decode().splitlines()
    required = {line.split()[1] for line in metadata if line.startswith("Requires-Dist:") and "extra ==" not in line}
    assert {word.split(">")[0] for word in required} == {"click", "prometheus-client", "pyseccomp"}  # never PyPI's bcc
    assert "License-Expression: Apache-2.0 AND (GPL-2.0-only OR Apache-2.0)" in metadata


def test_declares_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    assert "nsagent = nsagent.cli:main" in wheel.read(name).decode()


def test_version_is_the_packages(wheel: zipfile.ZipFile) -> None:
    version = (ROOT / "nsagent/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
    assert Path(str(wheel.filename)).name.startswith(f"nsagent-{version}-")
