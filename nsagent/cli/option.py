"""An option of `nsagent run`, as data: click makes a parameter of it, and nsagent.cli.quick reads it without click."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """`name` is `--long`, `short` `-l` or "". With neither `metavar` nor `choices` it takes no value.

    `multiple`: it may be repeated, and its value is a tuple of texts.
    """

    name: str
    help: str
    short: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    multiple: bool = False
    default: Any = None
    show_default: str | None = None

    @property
    def key(self) -> str:
        """Its name among the words of a command line."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value."""
        return self.metavar is None and not self.choices

    @property
    def absent(self) -> Any:
        """Its value where it is not given."""
        return False if self.is_flag else self.default or () if self.multiple else self.default


def add(command: Callable[..., Any], options: Iterable[Option]) -> Callable[..., Any]:
    """Make click's parameters of them, in their order."""
    import click

    for each in reversed(tuple(options)):
        more: dict[str, Any] = {"is_flag": True} if each.is_flag else {"metavar": each.metavar, "multiple": each.multiple}
        if each.choices:
            more["type"] = click.Choice(each.choices)
        if each.default is not None:
            more["default"] = list(each.default) if each.multiple else each.default
        if each.show_default is not None:
            more["show_default"] = each.show_default
        command = click.option(*filter(None, (each.short, each.name)), help=each.help, **more)(command)
    return command
