"""The `nsagent` command. Importing this imports nothing else: what it is made of is in nsagent.cli.frame, on first use (PEP 562).

A plain `nsagent run` does without that, and without click, which would take a fifth of its time: see nsagent.cli.quick.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without an import
if TYPE_CHECKING:
    from typing import NoReturn

    from nsagent.cli.failing import fail as fail
    from nsagent.cli.frame import COMMANDS as COMMANDS
    from nsagent.cli.frame import LazyGroup as LazyGroup
    from nsagent.cli.frame import cli as cli
    from nsagent.cli.frame import invoke as invoke

_OF_FRAME = ("COMMANDS", "LazyGroup", "cli", "fail", "invoke")


def __getattr__(name: str) -> object:
    if name not in _OF_FRAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nsagent.cli import frame

    return getattr(frame, name)


def main() -> NoReturn:
    """Entry point of the `nsagent` script.

    It ends without the interpreter's own tidying up, which takes a fifth of the time of a short command and frees what the
    kernel frees anyway. All that nsagent has to undo, it has undone.
    """
    import contextlib
    import os
    import sys

    from nsagent.cli import quick

    try:
        code = quick.run(sys.argv[1:], os.environ)
        if code is None:
            from nsagent.cli import frame

            code = frame.invoke()
    except KeyboardInterrupt:  # while modules are imported
        code = 130
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(code)
