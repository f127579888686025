"""The last stage of the child: signals as a new program expects them, and execve of CMD."""

from __future__ import annotations

import os
import signal
from typing import Final, NamedTuple, NoReturn

from nsagent import libc
from nsagent.launch.descriptors import close_on_exec_from
from nsagent.launch.handshake import Step

INTERPRETER: Final = "execve of its interpreter"  # the call that failed, where CMD itself is there


class Command(NamedTuple):
    """What is executed, and with what."""

    argv: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    search_path: tuple[bytes, ...]  # directories tried for a command without a slash
    real_path: bool = False  # neither CMD nor its interpreter may be reached by a link of /proc
    ignored: frozenset[int] = frozenset()  # signals the caller had ignored (nohup, `&`), and so has CMD


def execute(command: Command, step: Step) -> NoReturn:
    """Become CMD. Raises OSError as execve(2) does; of a search, as execvp(3) does."""
    program = command.argv[0]
    step("exec", "execve", os.fsdecode(program))
    close_on_exec_from(3)
    _reset_signals(command.ignored)
    if b"/" in program:
        try:
            _execve(program, command)
        except FileNotFoundError:
            if os.path.exists(program):  # asked here, where the job's root is
                step("exec", INTERPRETER, os.fsdecode(program))
            raise
    denied: OSError | None = None
    for directory in command.search_path:
        try:
            _execve(os.path.join(directory, program), command)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as exc:  # execvp(3): a later directory may have one that may be run
            denied = exc
    raise denied or FileNotFoundError(2, "not found in PATH")


def _execve(path: bytes, command: Command) -> None:
    if command.real_path:
        _refuse_links_of_proc(path)
    os.execve(path, command.argv, command.environment)


def _refuse_links_of_proc(path: bytes, depth: int = 4) -> None:
    """Raise OSError(ELOOP) for a CMD, or an interpreter in its `#!` line, that is /proc/self/exe by whatever way.

    That would be this interpreter, a file of the host's, as a program that the job controls: CVE-2019-5736.
    """
    fd = libc.openat2(libc.AT_FDCWD, os.fsdecode(path), os.O_RDONLY, libc.RESOLVE_NO_MAGICLINKS)
    first = os.read(fd, 256).split(b"\n", 1)[0]
    os.close(fd)
    if first.startswith(b"#!") and depth:
        words = first[2:].split()
        if words:
            _refuse_links_of_proc(words[0], depth - 1)


def _reset_signals(ignored: frozenset[int]) -> None:
    """Give CMD what execve(2) would otherwise pass on of ours: blocked signals, and those the interpreter ignores."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):  # 32 and 33 belong to libc
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
