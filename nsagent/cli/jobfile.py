"""`nsagent run -f FILE`: a job in TOML, whose keys are the words of the flags. Flags and environment variables come first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from nsagent.errors import AccessError, NsagentError, UsageError

_COMMAND: Final = "command"
_NOT_IN_A_FILE: Final = frozenset({"file", "help"})


class JobFile:
    """A file that was read: `command`, and `words`, which click takes for defaults."""

    def __init__(self, path: str, context: click.Context) -> None:
        """Raises UsageError, with the line, for what is no TOML, no key, or no value of its key; AccessError."""
        self.path = path
        self._lines = _read(path)
        document = _parse(path, self._lines)
        options = {name.removeprefix("--"): p for p in context.command.params for name in p.opts if name.startswith("--")}
        self.command: tuple[str, ...] = ()
        self.words: dict[str, Any] = {}
        self._keys: dict[str, str] = {}
        for key, value in document.items():
            if key == _COMMAND:
                if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
                    raise self._wrong(key, "command is not a list of words", 'such as command = ["make", "-j8"]')
                self.command = tuple(value)
            elif key in options and key not in _NOT_IN_A_FILE:
                self._take(key, value, options[key], context)
            else:
                raise self._wrong(key, f"there is no key {key!r}", _closest(key, [*options.keys() - _NOT_IN_A_FILE, _COMMAND]))

    def _take(self, key: str, value: Any, option: click.Parameter, context: click.Context) -> None:
        name = str(option.name)
        flag = isinstance(option, click.Option) and option.is_flag
        if flag and not isinstance(value, bool):
            raise self._wrong(key, f"{key} is neither true nor false", f"such as {key} = true")
        if not flag:
            several = value if isinstance(value, list) and option.multiple else [value]
            if not all(isinstance(word, str | int | float) and not isinstance(word, bool) for word in several):
                what = "a text, a number or a list of them" if option.multiple else "a text or a number"
                raise self._wrong(key, f"{key} is not {what}", f"what --{key} takes; see 'nsagent run --help'")
            value = [str(word) for word in several] if option.multiple else str(value)
            try:
                option.type_cast_value(context, value)
            except click.BadParameter as exc:
                raise self._wrong(key, f"{key}: {exc.message}") from exc
        self.words[name] = value
        self._keys[name] = key

    def check(self, make: Callable[[dict[str, Any]], object], words: Mapping[str, Any]) -> None:
        """Have `make` take `words`, which have those of this file among them.

        Raises its UsageError with the line of the key without which there would be none, or another one.
        """
        try:
            make(dict(words))
            return
        except UsageError as exc:
            error = exc
        for name, key in self._keys.items():
            if self._is_cause(make, words, name, str(error)):
                raise self._wrong(key, error.message, error.hint) from error
        raise UsageError(f"{self.path}: {error.message}", hint=error.hint) from error

    @staticmethod
    def _is_cause(make: Callable[[dict[str, Any]], object], words: Mapping[str, Any], name: str, message: str) -> bool:
        without: Any = () if isinstance(words[name], tuple) else False if isinstance(words[name], bool) else None
        try:
            make({**words, name: without})
        except NsagentError as exc:
            return str(exc) != message
        return True

    def _wrong(self, key: str, message: str, hint: str = "") -> UsageError:
        return UsageError(f"{self.path}:{self._line(key)}: {message}", hint=hint)

    def _line(self, key: str) -> int:
        """Return the line, counted from 1, where a key of the first level stands; 1 where it is spelled in another way."""
        form = re.compile(rf"""\s*(\[\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
        return next((number for number, line in enumerate(self._lines, 1) if form.match(line)), 1)


def option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --file to a command; what it read is `context.obj`."""

    def read(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
        if path is not None:
            context.obj = JobFile(path, context)
            context.default_map = context.obj.words

    text = "A job in TOML: its keys are these flags, and command; flags given here come first."
    return click.option("-f", "--file", metavar="FILE", is_eager=True, expose_value=False, callback=read, help=text)(command)


def _read(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split("\n")
    except OSError as exc:
        raise AccessError(f"--file {path}: {exc.strerror}", hint="name a file that can be read") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8: {exc.reason}") from exc


def _parse(path: str, lines: list[str]) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as exc:
        message, _, place = str(exc).partition(" (at line ")
        line = place.partition(",")[0]
        raise UsageError(f"{path}{f':{line}' if line.isdecimal() else ''}: {message}", hint="TOML: https://toml.io") from exc


def _closest(word: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word.replace("_", "-"), known, 1)
    return f"did you mean {close[0]}?" if close else "the keys are the flags of 'nsagent run --help', and command"
