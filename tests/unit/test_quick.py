"""A plain `nsagent run` is read without click, and means what click makes of it."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.cli import quick
from nsagent.cli.job import OPTIONS
from nsagent.cli.run import run

_NAMES = [*(each.name for each in OPTIONS), *(each.short for each in OPTIONS if each.short)]
_ASSIGNED = [f"{each.name}=auto" for each in OPTIONS]
_OTHERS = ["auto", "none", "1", "", "-", "--", "-x", "--no-such", "-tq", "--help", "sh", "-c"]
_WORDS = st.sampled_from([*_NAMES, *_ASSIGNED, *_OTHERS])


def by_click(args: list[str]) -> tuple[tuple[str, ...], dict[str, object]] | None:
    """Return what click makes of a command line; None where it refuses it, or shows its help."""
    try:
        with run.make_context("run", list(args)) as context:
            words = dict(context.params)
    except (click.ClickException, click.exceptions.Exit):
        return None
    return words.pop("argv"), words


@given(st.lists(_WORDS, max_size=7))
def test_it_means_what_click_makes_of_it(args: list[str]) -> None:
    found = quick.parse(args)
    if found is not None:
        assert found == by_click(args)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["true"],
        ["--", "true", "--cpus"],
        ["--cpus", "0.5", "--memory=256M", "-v", "/a:/b", "--volume", "/c:/d", "-q", "--userns", "auto", "--", "sh", "-c", "a b"],
        ["--report", "json", "--report", "textfile:/x", "--net=none", "-t", "-d", "--dry-run", "make", "-j8"],
        ["--name", "--cpus", "true"],
    ],
)
def test_a_plain_line_is_read_without_click(args: list[str]) -> None:
    found = quick.parse(args)
    assert found is not None
    assert found == by_click(args)


@pytest.mark.parametrize(
    "args", [["--help"], ["-f", "job.toml"], ["--cpus"], ["--userns", "x"], ["--init=1"], ["-tq"], ["-v/a:/b"], ["--no-such"]]
)
def test_what_is_not_plain_is_left_to_click(args: list[str]) -> None:
    assert quick.parse([*args]) is None


def test_other_commands_and_variables_are_left_to_click() -> None:
    assert quick.run(["ps"], {}) is None
    assert quick.run(["--debug", "run", "true"], {}) is None
    assert quick.run(["run", "true"], {"NSAGENT_RUN_MEMORY": "1M"}) is None
    assert quick.run([], {}) is None
