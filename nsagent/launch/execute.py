"""The last stage of the child: signals as a new program expects them, and execve of CMD."""

from __future__ import annotations

import errno
import os
import signal
from typing import Final, NamedTuple, NoReturn

from nsagent import libc
from nsagent.launch.descriptors import close_on_exec_from
from nsagent.launch.handshake import Step

INTERPRETER: Final = "execve of its interpreter"  # the call that failed, where CMD itself is there
_MOST_LINKS: Final = 40  # as the kernel's own MAXSYMLINKS
_MOST_SCRIPTS: Final = 5  # one the interpreter of the other, exec_binprm()


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
        _execute_real(path, command.argv, command.environment)
    else:
        os.execve(path, command.argv, command.environment)


def _execute_real(path: bytes, argv: tuple[bytes, ...], environment: dict[bytes, bytes], scripts: int = _MOST_SCRIPTS) -> None:
    """Execute a CMD that is not /proc/self/exe by whatever way, even if the job changes it meanwhile. ELOOP where it is.

    That would be this interpreter, a file of the host's, as a program that the job controls: CVE-2019-5736. So a script is
    looked up by us, and the kernel is asked for what is neither a symlink nor a script: see libc.execveat.
    """
    fd = libc.openat2(libc.AT_FDCWD, os.fsdecode(path), os.O_RDONLY | os.O_NONBLOCK, libc.RESOLVE_NO_MAGICLINKS)
    try:
        head = os.read(fd, 256)  # BINPRM_BUF_SIZE
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        _execute_binary(path, argv, environment)
    line = head[2:].partition(b"\n")[0].strip(b" \t")
    interpreter = line.replace(b"\t", b" ").partition(b" ")[0]
    argument = line[len(interpreter) :].strip(b" \t")  # one, however many words: execve(2)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if not interpreter or not scripts:
        raise OSError(errno.ELOOP if interpreter else errno.ENOEXEC, "its interpreter")
    _execute_real(interpreter, (interpreter, *filter(None, (argument,)), path, *argv[1:]), environment, scripts - 1)


def _execute_binary(path: bytes, argv: tuple[bytes, ...], environment: dict[bytes, bytes]) -> NoReturn:
    """Execute what is at `path`; a symlink there is followed by name, which those of /proc/PID then do not lead out by."""
    at = libc.AT_FDCWD
    for _ in range(_MOST_LINKS):
        directory, name = os.path.split(path)
        at = libc.openat2(at, os.fsdecode(directory or b"."), os.O_PATH | os.O_DIRECTORY, libc.RESOLVE_NO_MAGICLINKS)
        try:
            libc.execveat(at, name, argv, environment)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
        path = os.readlink(name, dir_fd=at)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _reset_signals(ignored: frozenset[int]) -> None:
    """Give CMD what execve(2) would otherwise pass on of ours: blocked signals, and those the interpreter ignores."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):  # 32 and 33 belong to libc
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
