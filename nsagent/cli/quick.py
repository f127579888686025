"""`nsagent run` without click: the same options, of the same table, for a command line that is plain.

What is not plain (help, a file, variables, anything that click would refuse) is left to click: here no word is ever an error.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

_NOT_PLAIN = ("NSAGENT_RUN_", "_NSAGENT_COMPLETE")


def run(args: Sequence[str], environment: Mapping[str, str]) -> int | None:
    """Do what `nsagent run` does and return its exit code; None, with nothing done, where this is not for us."""
    if args[:1] != ["run"] or any(name.startswith(_NOT_PLAIN) for name in environment):
        return None
    gc.disable()  # what is imported is no garbage, and looking for some takes a twentieth of the start
    import nsagent.launch.launcher  # noqa: F401
    from nsagent.cli import job
    from nsagent.cli.failing import guarded

    gc.enable()
    parsed = parse(args[1:])
    return None if parsed is None else guarded(lambda: job.launch(*parsed))


def parse(args: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """Return CMD and the options' words by their keys, as click would; None where it may find fault, or knows more."""
    from nsagent.cli.job import OPTIONS

    known = {each.name: each for each in OPTIONS} | {each.short: each for each in OPTIONS if each.short}
    words = {each.key: each.absent for each in OPTIONS}
    given: dict[str, list[str]] = {}
    left = list(args)
    while left and left[0].startswith("-") and left[0] != "-":
        word = left.pop(0)
        if word == "--":
            break
        name, assigned, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = known.get(name)
        if option is None or (option.is_flag and assigned) or not (option.is_flag or assigned or left):
            return None
        if option.is_flag:
            words[option.key] = True
            continue
        value = value if assigned else left.pop(0)
        if option.choices and value not in option.choices:
            return None
        given.setdefault(option.key, []).append(value)
        words[option.key] = tuple(given[option.key]) if option.multiple else value
    return tuple(left), words
