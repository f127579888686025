"""Signals on the launcher's side: dispositions as the kernel shows them, and the inbox."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nsagent.launch.signals import Disposition, read_disposition


def test_dispositions_of_a_recorded_status(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    status = "Name:\tx\nSigQ:\t0/1\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n"
    bit = {number: 1 << (number - 1) for number in range(1, 65)}
    (tmp_path / "7" / "status").write_text(status.format(bit[10], bit[1], bit[2] | bit[64]))
    for number, expected in {
        10: Disposition(True, False),
        1: Disposition(False, True),
        2: Disposition(True, False),
        64: Disposition(True, False),
        15: Disposition(False, False),
    }.items():
        assert read_disposition(7, number, str(tmp_path)) == expected
    assert read_disposition(8, 1, str(tmp_path)) == Disposition(False, False)


def test_dispositions_of_this_process() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        assert read_disposition(os.getpid(), signal.SIGUSR2).ignored
        signal.signal(signal.SIGUSR2, lambda *_: None)
        assert read_disposition(os.getpid(), signal.SIGUSR2) == Disposition(True, False)
    finally:
        signal.signal(signal.SIGUSR2, before)


SCRIPT = """
import os, signal, sys
from nsagent.launch.signals import Inbox
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # nohup and a shell's & leave these ignored
    signal.signal(number, signal.SIG_DFL)
if len(sys.argv) > 1:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
inbox = Inbox()
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGRTMIN + 3):
    os.kill(os.getpid(), number)
print(sorted((r.number, r.from_kernel) for r in inbox.read()), inbox.read(), sorted(inbox.ignored))
os.kill(os.getpid(), signal.SIGTERM)
inbox.close()
print("alive", signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_the_inbox_takes_signals_and_leaves_nothing(ignored: bool) -> None:
    argv = [sys.executable, "-c", SCRIPT, *(["x"] if ignored else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    hup = [] if ignored else [(1, False)]
    assert done.stdout.splitlines() == [
        f"{[*hup, (15, False), (int(signal.SIGRTMIN) + 3, False)]} [] {[1] if ignored else []}",
        "alive set()",
    ]
