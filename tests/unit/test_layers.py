"""The house holds: imports go down only, one module knows bcc, and `nsagent run` starts light: docs/architecture.md."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, nsagent_argv, require_root

PACKAGE = ROOT / "nsagent"
LAYERS = (  # from the bottom; a line may import what is above it here, and none of its neighbours
    {"libc", "errors"},
    {"kernel", "procfs", "namespaces", "config"},
    {"usage", "events", "cgroups", "jobs", "inventory", "records"},
    {"procusage", "history", "findings", "sinks", "origins", "nsfigures", "conservation", "workloads"},
    {"identity"},
    {"cri"},
    {"runtimes"},
    {"sample"},
    {"metrics"},
    {"web", "control", "doctor", "launch", "watch", "patrol", "reload", "textfile", "notify"},
    {"node"},
    {"agent", "tour"},
    {"cli"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
ONLY_FOR = {"config": {"node", "agent", "cli"}}
LAUNCH_USES = {"launch", "cgroups", "namespaces", "jobs", "libc", "errors"}
HEAVY = {"prometheus_client", "psutil", "asyncio", "http", "bcc", "logging.handlers", "email", "multiprocessing", "ssl"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of all that a module imports, at any depth; `from nsagent import x` is nsagent.x."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = str(node.module)
            if module == "nsagent":
                yield from ((node.lineno, f"nsagent.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def faults_of(path: Path, name: str) -> list[str]:
    """Return what `path`, taken as module `name`, imports against the rules."""
    part = name.split(".")[1]
    faults = []
    for line, target in imports_of(path):
        if not target.startswith("nsagent.") or target == "nsagent.__version__":
            continue
        wanted = target.split(".")[1]
        if wanted == part:
            continue
        if wanted not in RANK:
            faults.append(f"{path}:{line}: {target} is in no layer: add it to LAYERS and to docs/architecture.md")
        elif RANK[wanted] >= RANK[part]:
            faults.append(f"{path}:{line}: {part} (layer {RANK[part]}) imports {wanted} (layer {RANK[wanted]})")
        elif part not in ONLY_FOR.get(wanted, {part}):
            faults.append(f"{path}:{line}: {wanted} is for {sorted(ONLY_FOR[wanted])} only")
        elif part == "launch" and wanted not in LAUNCH_USES:
            faults.append(f"{path}:{line}: launch imports {wanted}: nsagent run would start slower")
    return faults


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != PACKAGE or p.name != "__init__.py"], ids=name_of)
def test_imports_go_down(path: Path) -> None:
    name = name_of(path)
    assert name.split(".")[1] in RANK, f"{name} is in no layer: add it to LAYERS and to docs/architecture.md"
    assert faults_of(path, name) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("nsagent.usage", "from nsagent.metrics import encode", "imports metrics"),
        ("nsagent.usage", "def f():\n    from nsagent import events", "imports events"),
        ("nsagent.web.server", "import nsagent.config", "config is for"),
        ("nsagent.launch.child", "from nsagent import usage", "would start slower"),
        ("nsagent.sample", "from nsagent import helpers", "in no layer"),
    ],
)
def test_rules_catch_what_they_forbid(tmp_path: Path, name: str, source: str, fault: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert fault in "\n".join(faults_of(path, name))


def test_only_the_compiler_child_imports_bcc() -> None:
    importers = {name_of(p) for p in MODULES for _, target in imports_of(p) if target.split(".")[0] == "bcc"}
    assert importers <= {"nsagent.kernel.compile"}


def modules_after(code: str) -> set[str]:
    """Run `code` in a new interpreter of this environment; return the names of all modules it has loaded at its end."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd="/")
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy(modules: set[str]) -> set[str]:
    """Return those of `modules` that are HEAVY, or inside something HEAVY."""
    return {m for m in modules if any(m == h or m.startswith(f"{h}.") for h in HEAVY)}


def test_importing_nsagent_imports_nothing_else() -> None:
    assert modules_after("import nsagent") - modules_after("import __future__") == {"nsagent"}


def test_help_imports_click_and_no_command() -> None:
    loaded = modules_after("from nsagent import cli; assert cli.invoke(['--help']) == 0")
    assert {m for m in loaded if m.startswith("nsagent")} == {
        "nsagent",
        "nsagent.cli",
        "nsagent.cli.failing",
        "nsagent.cli.frame",
        "nsagent.errors",
    }
    assert heavy(loaded) == set()


def test_planning_a_run_imports_nothing_heavy() -> None:
    loaded = modules_after("from nsagent import cli; assert cli.invoke(['run', '--dry-run', '--', 'true']) == 0")
    assert "nsagent.cli.run" in loaded
    assert heavy(loaded) == set()


@pytest.mark.kernel
def test_a_real_run_imports_nothing_heavy() -> None:
    require_root()
    argv = [sys.executable, "-X", "importtime", *nsagent_argv(), "run", "--report", "none", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True, cwd="/")
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "nsagent.launch" in loaded
    assert heavy(loaded) == set()
    assert {"click", "dataclasses", "inspect"} & loaded == set(), "a fifth of its time, and a tenth"


def test_an_agent_without_tls_and_users_imports_nothing_for_them(tmp_path: Path) -> None:
    empty = tmp_path / "web.yml"
    empty.write_text("http_server_config: {http2: false}\n")
    loaded = modules_after(f"from nsagent import agent; from nsagent.web import config; config.read({str(empty)!r})")
    assert {"nsagent.web.config", "yaml"} <= loaded
    assert {"ssl", "bcrypt"} & loaded == set()
    scraped = modules_after("from nsagent import agent; from nsagent.metrics.process import Process; Process()(False)")
    assert {"prometheus_client", "ssl"} & scraped == set()
    assert "yaml" not in modules_after("from nsagent import agent")
