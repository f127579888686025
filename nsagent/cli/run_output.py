"""Where a job's report goes: standard error or a file, a directory of node_exporter's, a Pushgateway."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, TextIO

from nsagent.errors import AccessError, NsagentError, UsageError

if TYPE_CHECKING:
    from nsagent.launch.report import RunResult

_TEXTFILE: Final = "textfile:"
_FORMS: Final = ("text", "json", "none")


class Output:
    """All that a command line asks for, checked and opened. `tell` it a result; leave it to close the file."""

    def __init__(self, forms: tuple[str, ...], path: str | None, push: str | None) -> None:
        """Raises UsageError for words that mean nothing, AccessError for what cannot be written."""
        self._form = "none"
        self._directories = []
        for form in forms:
            if form.startswith(_TEXTFILE):
                self._directories.append(form.removeprefix(_TEXTFILE))
            elif form in _FORMS:
                self._form = form
            else:
                raise UsageError(f"--report {form!r} is no form of a report", hint=f"{', '.join(_FORMS)} or {_TEXTFILE}DIR")
        self._push = push
        if self._directories or push:
            from nsagent.launch import gauges

            for directory in self._directories:
                gauges.check_textfile(directory)
            if push:
                gauges.check_push(push)
        self._file = _open(path) if path else None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # `tell` has told
                self._file.close()

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that `tell` writes to, besides standard error."""
        return () if self._file is None else (self._file.fileno(),)

    def tell(self, result: RunResult) -> None:
        """Write and push the report. What fails is a warning: the job has run, and its exit code is what counts."""
        if self._form != "none":
            from nsagent.launch import text

            words = text.to_json(result) if self._form == "json" else text.to_text(result)
            with _warned():
                _write(words, self._file)
        if not (self._directories or self._push):
            return
        from nsagent.launch import gauges

        for directory in self._directories:
            with _warned():
                gauges.write_textfile(result, directory)
        if self._push:
            with _warned():
                gauges.push(result, self._push)


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except NsagentError as exc:
        with contextlib.suppress(OSError):
            print(f"warning: {exc.message}", file=sys.stderr)


def _write(words: str, file: TextIO | None) -> None:
    try:
        print(words, end="", file=file or sys.stderr, flush=True)
    except OSError as exc:
        where = "standard error" if file is None else f"--report-file {file.name}"
        raise NsagentError(f"{where}: {exc.strerror}") from exc


def _open(path: str) -> TextIO:
    try:
        return open(path, "w", encoding="utf-8", errors="surrogateescape")
    except OSError as exc:
        raise AccessError(f"--report-file {path}: {exc.strerror}", hint="name a file that can be written") from exc
