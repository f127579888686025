"""`--init`: a small process of ours at PID 1, which reaps what CMD leaves and passes signals on."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import NoReturn

from nsagent import libc
from nsagent.launch.descriptors import close_from
from nsagent.launch.execute import Command, execute
from nsagent.launch.handshake import Began, Ended, Step, send
from nsagent.launch.signals import SI_KERNEL


def run_under_init(command: Command, channel: int, step: Step) -> NoReturn:
    """Stay as PID 1 (without a new PID namespace: as subreaper): start CMD, pass signals on, reap, end when CMD ends.

    All signals are blocked and taken one by one, so that the launcher sees in SigBlk that they will be handled.
    """
    step("init", "prctl(PR_SET_CHILD_SUBREAPER)")
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    taken = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children would vanish without a status
    libc.prctl(libc.PR_SET_NAME, ctypes.addressof(ctypes.create_string_buffer(b"nsagent-init")))
    step("init", "pipe")
    executed, executing = os.pipe()  # close-on-exec
    step("init", "fork")
    pid = os.fork()
    if pid == 0:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        execute(command, step)
    step("init", "open", os.devnull)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # or a reader of CMD's pipe would wait for us too
        os.dup2(null, fd)
    os.close(executing)
    os.read(executed, 1)  # its end: CMD runs, or its failure has been sent
    send(channel, Began())
    keep = os.dup2(channel, 3)
    close_from(4)
    while True:
        info = signal.sigwaitinfo(taken)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(pid)
            if status is not None:
                send(keep, Ended(status))
                os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
        elif info.si_code != SI_KERNEL or os.getpgid(pid) != os.getpgrp():  # else CMD has it from the terminal
            os.kill(pid, info.si_signo)


def _reap(command: int) -> int | None:
    """Wait for all that ended; return the wait status of `command` if it is among them."""
    status = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == command:
                status = ended[1]
    except ChildProcessError:
        pass
    return status
