"""Every command of the documentation is one that this nsagent takes, and is run by a test or listed with the reason why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nsagent import cli
from tests import docs
from tests.kernel import test_docs_commands as run
from tests.support import ROOT

COMMANDS = sorted({(command.page, command.text) for command in docs.walk_commands()})
_ENDS = {"|", "||", "&", "&&", ";", "(", ")", ">", ">>", "<", "2>", "\n"}
_PLACEHOLDER = re.compile(r"[A-Z.…]|\.\.\.")


def simple_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of nsagent in a line of shell; variables before it and `sudo` are left out."""
    lexer = shlex.shlex(text.replace("$(", "what-it-prints ( "), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    lexer.commenters = ""
    words: list[str] = []
    for token in [*lexer, ";"]:
        if token not in _ENDS:
            words.append(token)
            continue
        while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] == "sudo"):
            words.pop(0)
        if words and Path(words[0]).name == "nsagent":
            yield words[1:]
        words = []


def parse(words: list[str]) -> None:
    """Have the real command line parse the words, as it does before it runs anything; raises what it would print."""
    command: click.Command = cli.cli
    context = command.make_context("nsagent", list(words), auto_envvar_prefix="NSAGENT")
    while isinstance(command, click.Group):
        left = [*context._protected_args, *context.args]
        name, found, left = command.resolve_command(context, left)
        assert found is not None
        command = found
        context = command.make_context(name, left, parent=context)


@pytest.mark.parametrize("command", [text for _, text in COMMANDS if "nsagent" in text])
def test_is_a_command_line_of_nsagent(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agent.toml").write_text('listen = "127.0.0.1:0"\n')
    (tmp_path / "nightly.toml").write_text('command = ["true"]\n')
    monkeypatch.chdir(tmp_path)  # files that are read as soon as they are named
    for words in simple_commands(command.replace("/etc/nsagent/agent.toml", "agent.toml").replace("$$", "4242")):
        parse(words)


@pytest.mark.parametrize(
    "command", ["nsagent run --no-such -- true", "nsagent nothing", "true && nsagent ps --json=1", "sudo nsagent trace --kind x"]
)
def test_parsing_can_fail(command: str) -> None:
    (words,) = simple_commands(command)
    with pytest.raises(click.ClickException):
        parse(words)


def inline() -> list[tuple[str, str]]:
    """Return what stands in backticks and begins with nsagent, with its page."""
    found = []
    for path in (*docs.pages(), ROOT / "CHANGELOG.md"):
        text = docs.without_blocks(path.read_text(encoding="utf-8"))
        found += [(str(path.relative_to(ROOT)), " ".join(words.split())) for words in re.findall(r"`(nsagent [^`]+)`", text)]
    return found


def unknown(text: str) -> str:
    """Return what of `nsagent COMMAND --option ...` nsagent does not know, "" for nothing; it may have gaps."""
    words = [word.split("=")[0] for word in text.split(" -- ", maxsplit=1)[0].split()[1:]]
    command: click.Command = cli.cli
    context = click.Context(command)
    while isinstance(command, click.Group) and words and words[0].strip("-") and not words[0].startswith("-"):
        for name in words[0].split("|"):  # `nsagent ns list|tree|show`
            found = command.get_command(context, name.rstrip(".,"))
            if found is None:
                return "" if _PLACEHOLDER.match(name) else name
        assert found is not None
        command = found
        words.pop(0)
    options = {option for each in (*command.params, *cli.cli.params) for option in each.opts} | {"--help"}
    strange = [word for word in words if re.match(r"--?[a-z]", word) and word.rstrip(",.]") not in options]
    return ", ".join(strange)


def test_what_stands_in_backticks_is_known() -> None:
    assert len(inline()) > 60
    assert [(page, text, unknown(text)) for page, text in inline() if unknown(text)] == []
    assert unknown("nsagent ns lst") == "lst"
    assert unknown("nsagent run --memry 1G") == "--memry"


def test_every_block_says_what_it_is() -> None:
    assert [f"{block.page}:{block.line}" for block in docs.walk_blocks() if not block.language] == []
    for path in docs.pages():  # four spaces make a block too, which says nothing of itself
        text = docs.without_blocks(path.read_text(encoding="utf-8"))
        assert not re.search(r"^(?![ *\-\d|]).*\n\n {4}\S", text, re.MULTILINE), path


def test_each_is_run_or_has_a_reason() -> None:
    texts = {command.text for command in docs.walk_commands()}
    assert not {text for text in run.NOT_RUN if text not in texts}, "these are gone from the documentation"
    assert not {text for text in (*run.BEFORE, *run.EXIT) if text not in texts}, "these are gone from the documentation"
    assert not set(run.NOT_RUN) & {*run.BEFORE, *run.EXIT}
