"""The documentation is a site without a broken link, and what it quotes of nsagent is what nsagent says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nsagent.kernel import features
from tests.support import ROOT, require, run_nsagent
from tools import commands

DOCS = ROOT / "docs"
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^### `(.+)`$", TROUBLESHOOTING, re.MULTILINE)
_LEVELS = {"warning", "error", "exception"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does; every warning is an error (strict)."""
    mkdocs = Path(sys.executable).with_name("mkdocs")
    require(mkdocs.exists(), "mkdocs is not installed (make setup)")
    out = tmp_path_factory.mktemp("site")
    argv = [str(mkdocs), "build", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"mkdocs found faults:\n{done.stdout}{done.stderr}"
    return out


def test_the_site_has_every_page(site: Path) -> None:
    pages = {str(path.relative_to(DOCS).with_suffix(".html")) for path in DOCS.rglob("*.md")}
    assert pages <= {str(path.relative_to(site)) for path in site.rglob("*.html")}


def test_a_reader_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r'<(?:script|img|link)\b[^>]*?(?:src|href)="?((?:https?:)?//[^">\s]*)')
    pages = [site / "index.html", site / "how-it-works.html", site / "runbooks/NsagentDown.html"]
    assert [fetched.findall(page.read_text(encoding="utf-8")) for page in pages] == [[]] * len(pages)
    assert not re.search(r"(?:href|src|url\()=?[\"']?https?:", "".join(path.read_text() for path in DOCS.glob("img/*.svg")))


def test_the_commands_are_those_of_the_help() -> None:
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == commands.to_markdown(), (
        "run: .venv/bin/python -m tools.commands markdown > docs/commands.md"
    )


def test_examples_are_blocks_and_not_prose() -> None:
    pages = list(commands.walk_pages())
    prose = [(page.name, block.text) for page in pages for block in (*page.help, *page.epilog) if not block.examples]
    assert [name for name, text in prose if text.startswith("Examples") or re.search(r"\bnsagent .* nsagent ", text)] == []
    examples = {page.name: block.text for page in pages for block in page.epilog if block.examples}
    assert len(examples) > 20
    assert examples["nsagent ns diff"].startswith("nsagent ns diff $$ 4242\nnsagent ns diff 1 ")


def test_the_help_indents_examples() -> None:
    assert "\n    nsagent ns diff $$ 4242\n" in run_nsagent("ns", "diff", "--help").stdout


def test_every_manual_page_has_its_name_and_its_options(tmp_path: Path) -> None:
    commands.write_man(tmp_path)
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert {"nsagent.1", "nsagent-run.1", "nsagent-ns-show.1"} <= set(pages)
    for name, text in pages.items():
        assert text.startswith(f".TH {name.removesuffix('.1').upper()} 1 "), name
        assert f".SH NAME\n{name.removesuffix('.1')} \\- " in text
    assert "\\-\\-memory SIZE" in pages["nsagent-run.1"]
    assert not [line for text in pages.values() for line in text.splitlines() if line.startswith("'")]  # a request, to roff


def _template(node: ast.expr) -> str | None:
    """Return the text of a literal, with … for what is put in; None for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


@cache
def _nodes() -> tuple[ast.AST, ...]:
    paths = sorted((ROOT / "nsagent").rglob("*.py"))
    return tuple(node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def _errors() -> frozenset[str]:
    """Return the texts of nsagent's errors as they are printed: that of an UnsupportedError is `feature: reason`."""
    calls = [node for node in _nodes() if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2]
    texts = {_template(node) for node in _nodes() if isinstance(node, ast.expr)}
    return frozenset(filter(None, texts)) | {": ".join(_template(word) or "…" for word in call.args) for call in calls}


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_error_is_one_of_nsagents(quoted: str) -> None:
    assert quoted in _errors()


def test_errors_are_quoted() -> None:
    assert len(QUOTED) > 25
    assert "nsagent never says this" not in _errors()


def _warnings() -> Iterator[str]:
    """Yield the names of the events that the agent logs as warnings or errors."""
    for node in _nodes():
        called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if called in _LEVELS or isinstance(node, ast.JoinedStr):  # a failure's text is made before it is logged
            texts = (_template(each) for each in ast.walk(node) if isinstance(each, ast.Constant))
            yield from (found[1] for text in texts if text and (found := re.match(r"event=(\w+)", text)))


def test_every_warning_of_the_log_is_told() -> None:
    told = re.findall(r"^\| `(\w+)` \| ", TROUBLESHOOTING, re.MULTILINE)
    assert told == sorted(set(_warnings()))


def test_every_feature_of_doctor_is_told() -> None:
    rows = [f"| {name.replace('_', ' ')}{' *' if needed else ''} | {lack} | {do} |" for name, needed, lack, do in features.TABLE]
    assert TROUBLESHOOTING.splitlines()[-len(rows) :] == rows
