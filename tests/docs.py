"""The commands of the documentation: each line of a block that is marked as `sh` or `console`, without its comment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s+)#(?:\s.*|$)")  # in these pages a comment has a space after its sign, and `$#` has none before


class Block(NamedTuple):
    """A block of code. `line` is that of its first line."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """What one would type, in the block that begins at that line."""

    page: str
    block: int
    line: int
    text: str


def pages() -> list[Path]:
    """Return README.md, CONTRIBUTING.md and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def walk_blocks() -> Iterator[Block]:
    """Yield the blocks of all pages."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            line = text.count("\n", 0, found.start("text")) + 1
            yield Block(str(path.relative_to(ROOT)), line, found["language"], found["text"])


def without_blocks(text: str) -> str:
    """Return the prose of a page."""
    return _FENCE.sub("", text)


def walk_commands() -> Iterator[Command]:
    """Yield what is to be typed: in `sh` each line, in `console` what follows `$ ` or `# `; a backslash joins two lines."""
    for block in walk_blocks():
        if block.language not in ("sh", "console"):
            continue
        begun, first = "", 0
        for number, line in enumerate(block.text.splitlines(), block.line):
            text = line.strip()
            if block.language == "console" and not begun:
                if text[:2] not in ("$ ", "# "):
                    continue
                text = text[2:]
            text = begun + _without_comment(text)
            first = first or number
            if text.endswith("\\") or _open(text):
                begun = text.removesuffix("\\") if text.endswith("\\") else f"{text}\n"
                continue
            if text:
                yield Command(block.page, block.line, first, text.removeprefix(".venv/bin/"))  # a checkout's
            begun, first = "", 0
        assert not begun, f"{block.page}:{first}: the command does not end"


def _without_comment(text: str) -> str:
    """Cut a comment off, but nothing that stands in quotes."""
    for found in _COMMENT.finditer(text):
        if not _open(text[: found.start()]):
            return text[: found.start()].rstrip()
    return text


def _open(text: str) -> bool:
    """Tell whether a quote is not closed yet."""
    try:
        shlex.split(text.replace("$(", "(").rstrip("\\"))
    except ValueError:
        return True
    return False
