"""`nsagent tour`: the experiments of nsagent.tour, on a terminal or for a test."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Final

import click

from nsagent import jobs
from nsagent.errors import NsagentError
from nsagent.namespaces import KINDS

_NAMES: Final = ("uts", "pid", "mnt", "user", "net", "ipc", "time", "cgroup")
_LANGUAGES: Final = ("en", "zh")
assert set(_NAMES) == set(KINDS)


@click.command(
    epilog="""\
Exit codes: 0, each claim held; 1, one was false; 125, nothing can be shown on this host; 130, it was interrupted.

Examples:
  nsagent tour                  all of it, step by step
  nsagent tour pid cgroup       two experiments
  nsagent tour --lang zh net    用中文
  nsagent tour --yes            without asking, for a test of a host

As root all is shown; an ordinary user sees what user namespaces and a delegated cgroup allow. System calls are those that a
running agent hands on; with none, programs are loaded for the tour alone."""
)
@click.argument("names", metavar="[EXPERIMENT]...", nargs=-1, type=click.Choice(_NAMES))
@click.option("--lang", type=click.Choice(_LANGUAGES), help="Language.  [default: that of $LC_ALL, $LC_MESSAGES, $LANG]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before each command.")
@click.option("--no-trace", is_flag=True, help="Show no system calls.")
@click.option("--state-dir", default=jobs.default_state_dir, show_default="/run/nsagent, for users below $XDG_RUNTIME_DIR",
              metavar="DIR", help="The agent's state directory.")  # fmt: skip
def tour(names: tuple[str, ...], lang: str | None, yes: bool, no_trace: bool, state_dir: str) -> int:
    """Show what a container is made of, live on this machine: experiments with uts, pid, mnt, user, net, ipc and time namespaces
    and with cgroups. Each says what is done, does it, shows the evidence of both sides, and asserts what it claims."""
    from nsagent.tour import experiments, limits
    from nsagent.tour.stage import Stage

    texts = _texts(lang or _language())
    page = Page(texts, ask=not yes and sys.stdin.isatty() and sys.stdout.isatty())
    try:
        with Stage(page, texts, trace=not no_trace, agent_dir=state_dir) as stage:
            if stage.untraced:
                page.say(texts["untraced"].format(reason=stage.untraced))
            for name in names or _NAMES:
                page.title(texts[f"title.{name}"])
                stage.attempt(limits.cgroup if name == "cgroup" else getattr(experiments, name))
    except KeyboardInterrupt:
        click.echo(f"\n{texts['interrupted']}", err=True)
        raise
    if not stage.claims:
        raise NsagentError(texts["nothing"], hint="'nsagent doctor' says what this host lacks")
    page.say(texts["end.false" if stage.false else "end.true"].format(claims=stage.claims, false=stage.false))
    return 1 if stage.false else 0


def _language() -> str:
    """Return the language of the reader's messages, locale(7), if the tour has it; else English."""
    words = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    chosen = next((word for word in words if word), "")
    return chosen[:2] if chosen[:2] in _LANGUAGES else "en"


def _texts(language: str) -> Mapping[str, str]:
    texts: Mapping[str, str] = importlib.import_module(f"nsagent.tour.texts.{language}").TEXTS
    return texts


class Page:
    """Shows a tour on standard output."""

    def __init__(self, texts: Mapping[str, str], *, ask: bool) -> None:
        self._texts = texts
        self._ask = ask

    def title(self, text: str) -> None:
        """Begin an experiment."""
        click.secho(f"\n== {text}", bold=True)

    def say(self, text: str) -> None:
        """Explain what comes."""
        click.echo(f"\n{text}")

    def command(self, typed: str) -> None:
        """Show a command; where somebody is there, wait for Enter."""
        click.secho(f"\n  $ {typed}", fg="cyan")
        if self._ask:
            click.prompt(f"  {self._texts['ask']}", default="", show_default=False, prompt_suffix=" ")

    def output(self, text: str) -> None:
        """Show what it printed."""
        for line in text.splitlines():
            click.echo(f"  | {line}")

    def evidence(self, subject: str, text: str) -> None:
        """Show what else was seen."""
        click.echo(f"  {subject}: {text}")

    def claim(self, text: str, holds: bool) -> None:
        """Show a claim, and whether it holds."""
        word = click.style(self._texts["holds" if holds else "false"], fg="green" if holds else "red", bold=True)
        click.echo(f"  {word}: {text}")
