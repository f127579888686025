"""The one place where errors become lines on standard error and exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

from nsagent.errors import NsagentError, addressed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def guarded(act: Callable[[], object]) -> int:
    """Do what a command does and return its exit code, which `act` returns (what is no number is 0); print errors, raise none."""
    try:
        result = act()
        if sys.stdout is not None:  # it was closed
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except NsagentError as exc:
        return fail(exc.message, exc.hint, exc.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains again
        return 141
    except Exception as exc:
        if isinstance(exc, OSError) and _is_of_output(exc):
            return fail(f"standard output: {exc.strerror}", "", 125)
        return report_bug(exc)
    return result if isinstance(result, int) else 0


def _is_of_output(exc: OSError) -> bool:
    """Tell whether `exc` is of a write to standard output: no other write leaves its module as an OSError, and it fails again.

    Not where all was handed to the kernel at once, so that nothing is left to flush: hence what says that a disk is full.
    """
    if sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
    except OSError as again:
        return again.errno == exc.errno
    return exc.filename is None and exc.errno in _FULL


def fail(message: str, hint: str, code: int) -> int:
    """Print one `error:` line and, if there is one, one `hint:` line; return `code`.

    Names in them are the kernel's or a user's: an ESC in one is not for the terminal.
    """
    hint = addressed(hint)
    if not (message + hint).isprintable():
        from nsagent.events import printable

        message, hint = printable(message), printable(hint)
    with contextlib.suppress(OSError):  # nobody can be told: the code says it
        print(f"error: {message}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return code


def report_bug(exc: Exception) -> int:
    """Print one line about an error that nsagent did not foresee; the traceback only where it was asked for."""
    if os.environ.get("NSAGENT_DEBUG", "0") not in {"", "0"}:
        import traceback

        traceback.print_exception(exc)
    place = ""
    step = exc.__traceback__
    while step is not None:
        filename = step.tb_frame.f_code.co_filename
        place = place if filename.startswith("<") else f" at {os.path.basename(filename)}:{step.tb_lineno}"
        step = step.tb_next
    text = " ".join(str(exc).split())
    hint = "a bug in nsagent: report it with what the same command prints under NSAGENT_DEBUG=1, and 'nsagent doctor'"
    return fail(f"internal error{place}: {type(exc).__name__}: {text}", hint, 125)
