"""Each command of nsagent as a page, from its own help: docs/commands.md, and manual pages.

    python -m tools.commands markdown > docs/commands.md
    python -m tools.commands man DIR            nsagent.1, nsagent-run.1, ...

click's own formatter is not used: it wraps by version and by terminal, and these files are compared byte by byte.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from nsagent import __version__, cli

_EXAMPLE = re.compile(r"(?P<command>\S.*?)(?P<space> {2,})(?P<says>\S.*)")
_INTRODUCTION = """\
# Commands

Written by `python -m tools.commands markdown > docs/commands.md` from what `--help` says: do not edit.

Every option has a variable: `NSAGENT_`, the command and the option in capitals, with `_` for dashes, dots and spaces, such as
`NSAGENT_RUN_MEMORY=256M` and `NSAGENT_AGENT_WEB_CONFIG_FILE`. An option that is given comes before its variable.

Results are on standard output, and all else on standard error. An error is one line, `error: ...`, and mostly a second,
`hint: ...`, which says what to do; [troubleshooting](troubleshooting.md) has more to say of those that are met most.
`nsagent --debug` shows the traceback of an internal error.
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, or with `examples` lines of which each is a command, with `# ` before what is said of it."""

    text: str
    examples: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One command. `options` are pairs such as (`--memory SIZE`, `Memory, such as 256M.`)."""

    name: str
    usage: str
    help: tuple[Block, ...]
    options: tuple[tuple[str, str], ...]
    epilog: tuple[Block, ...]
    children: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return re.split(r"(?<=\.)\s", self.help[0].text, maxsplit=1)[0].rstrip(".")


def walk_pages() -> Iterator[Page]:
    """Yield nsagent itself and each of its commands, those below a group after it."""
    yield from _walk(cli.cli, click.Context(cli.cli, info_name="nsagent"))


def _walk(command: click.Command, context: click.Context) -> Iterator[Page]:
    children = {}
    if isinstance(command, click.Group):
        found = {name: command.get_command(context, name) for name in command.list_commands(context)}
        children = {name: child for name, child in found.items() if child is not None}
    yield Page(
        context.command_path,
        " ".join([context.command_path, *command.collect_usage_pieces(context)]),
        tuple(_blocks(inspect.cleandoc(command.help or ""))),
        tuple(_option(each) for each in command.params if isinstance(each, click.Option) and not each.hidden),
        tuple(_blocks(command.epilog or "")),
        tuple(children),
    )
    for name, child in children.items():
        yield from _walk(child, click.Context(child, info_name=name, parent=context))


def _blocks(text: str) -> Iterator[Block]:
    """Take prose and examples apart: indented lines are examples, and what stands before them in their paragraph is prose."""
    for paragraph in text.replace("\b\n", "").strip().split("\n\n"):
        lines = paragraph.splitlines()
        prose = [line for line in lines if not line.startswith("  ")]
        examples = [line[2:] for line in lines if line.startswith("  ")]
        if prose and prose != ["Examples:"]:
            yield Block(" ".join(prose))
        if examples:
            yield Block("\n".join(map(_example, examples)), examples=True)


def _example(line: str) -> str:
    """Return a line of examples as a shell takes it: what is said of a command becomes a comment."""
    if line.startswith("  "):
        return f"{line[: len(line) - len(line.lstrip())]}# {line.lstrip()}"
    found = _EXAMPLE.fullmatch(line)
    return f"{found['command']}{found['space']}# {found['says']}" if found else line


def _option(option: click.Option) -> tuple[str, str]:
    """Return the words that are typed, and the help with the default, which is left out where there is none to tell."""
    words = ", ".join([*option.opts, *option.secondary_opts])
    if not option.is_flag:
        choices = "|".join(map(str, option.type.choices)) if isinstance(option.type, click.Choice) else ""
        words += f" {option.metavar or (f'[{choices}]' if choices else option.type.name.upper())}"
    default = option.show_default if isinstance(option.show_default, str) else option.default
    if isinstance(default, list | tuple):
        default = ", ".join(map(str, default))
    told = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    text = re.sub(r"\s*\[default: (.*)\]$", r" Default: \1.", option.help or "")
    return words, f"{text}{f' Default: {default}.' if told else ''}"


def to_markdown() -> str:
    """Return docs/commands.md."""
    parts = [_INTRODUCTION]
    for page in walk_pages():
        if page.name == "nsagent":
            continue
        parts.append(f"{'#' * len(page.name.split())} {page.name}\n")
        parts += [f"{_prose(block.text)}\n" for block in page.help]
        parts.append(f"```text\n{page.usage}\n```\n")
        if options := [f"- `{words}`: {_prose(text)}" for words, text in page.options]:
            parts.append("\n".join(options) + "\n")
        parts += [f"```sh\n{b.text}\n```\n" if b.examples else f"{_prose(b.text)}\n" for b in page.epilog]
    return "\n".join(parts)


def _prose(text: str) -> str:
    """Return help as Markdown: one line, in which only what stands in backticks is markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\\|])", r"\\\1", part) for part in parts)


def to_man(page: Page) -> str:
    """Return the manual page, in man(7)'s macros."""
    title = page.name.replace(" ", "-")
    lines = [f'.TH {title.upper()} 1 "" "nsagent {__version__}" "nsagent"', ".SH NAME", f"{title} \\- {_roff(page.summary)}"]
    lines += [".SH SYNOPSIS", _roff(page.usage), ".SH DESCRIPTION", *_roff_blocks(page.help)]
    if page.children:
        lines.append(".SH COMMANDS")
        lines += [f".BR {title}\\-{name} (1)\n.br" for name in page.children]
    if page.options:
        lines.append(".SH OPTIONS")
        lines += [line for words, text in page.options for line in (".TP", f".B {_roff(words)}", _roff(text))]
    if page.epilog:
        lines += [".SH NOTES", *_roff_blocks(page.epilog)]
    lines += [".SH SEE ALSO", ".BR nsagent (1)" if page.name != "nsagent" else ".BR namespaces (7),\n.BR cgroups (7)"]
    return "\n".join(lines) + "\n"


def _roff_blocks(blocks: tuple[Block, ...]) -> Iterator[str]:
    for block in blocks:
        yield ".PP"
        if block.examples:
            yield from (".nf", ".RS 2", *map(_roff, block.text.splitlines()), ".RE", ".fi")
        else:
            yield _roff(block.text)


def _roff(text: str) -> str:
    """Return text that roff takes for nothing but text; groff_char(7) has the escapes."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq").replace("^", "\\(ha")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped.replace("~", "\\(ti")


def write_man(directory: Path) -> None:
    """Write the manual pages into a directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    for page in walk_pages():
        (directory / f"{page.name.replace(' ', '-')}.1").write_text(to_man(page), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["markdown"]:
        sys.stdout.write(to_markdown())
    elif len(sys.argv) == 3 and sys.argv[1] == "man":
        write_man(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
