"""The live line of `nsagent run` on a terminal: the last row, kept out of what scrolls, while a job takes long.

Nothing is drawn while a program has the terminal for itself (an editor, a pager, a question for a password): those switch off the
echo or the lines of its input. Sources: man 4 console_codes (DECSTBM, DECSC, DECRC), man 3 termios.
"""

from __future__ import annotations

import os
import termios
import time
from collections.abc import Callable
from typing import Final

from nsagent.cgroups.meter import Meter
from nsagent.launch.supervise import Alarm

_FIRST_NS: Final = 5 * 10**9
_EVERY_NS: Final = 10**9


class StatusLine:
    """Draws on standard error. Implements Watch."""

    def __init__(self, name: str) -> None:
        self._name = "".join(char if char.isprintable() else "?" for char in name)[:40]
        self._meter: Meter | None = None
        self._begin_ns = self._before_ns = 0
        self._before_cpu_ns: int | None = None
        self._rows = 0  # of the terminal as it was drawn on; 0: it was not

    def begin(self, meter: Meter | None, now_ns: int) -> Alarm:
        """See Watch."""
        self._meter, self._begin_ns, self._before_ns = meter, now_ns, now_ns
        return Alarm(now_ns + _FIRST_NS, self._draw)

    def suspended(self, stop: Callable[[], None]) -> None:
        """See Watch."""
        self.finish()
        stop()

    def finish(self) -> None:
        """See Watch: the row is as any other again."""
        if self._rows:
            _write(f"\x1b7\x1b[r\x1b[{self._rows};1H\x1b[2K\x1b8")
            self._rows = 0

    def _draw(self, now_ns: int) -> int:
        text = self._text(now_ns)
        if _is_ours():
            try:
                columns, rows = os.get_terminal_size(2)
            except OSError:  # it has hung up
                return now_ns + _EVERY_NS
            if rows >= 5 and rows != self._rows:
                if not self._rows:
                    _write("\n\x1b[1A")  # the cursor may be in the last row
                _write(f"\x1b7\x1b[1;{rows - 1}r\x1b8")
                self._rows = rows
            if self._rows:
                _write(f"\x1b7\x1b[{self._rows};1H\x1b[2K{text[: columns - 1]}\x1b8")
        return now_ns + _EVERY_NS

    def _text(self, now_ns: int) -> str:
        seconds = (now_ns - self._begin_ns) // 10**9
        words = [
            f"job {self._name}",
            time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds // 3600} h",
        ]
        cpu_ns = self._meter.cpu_ns() if self._meter else None
        memory = self._meter.memory_bytes() if self._meter else None
        if cpu_ns is not None:
            if self._before_cpu_ns is not None and now_ns > self._before_ns:
                words.append(f"{(cpu_ns - self._before_cpu_ns) / (now_ns - self._before_ns):.2f} CPUs")
            words.append(f"{cpu_ns / 1e9:.1f} s of CPU")
        if memory is not None:
            words.append(f"{memory / 2**20:.1f} MiB")
        self._before_cpu_ns, self._before_ns = cpu_ns, now_ns
        return "  ".join(words)


def _is_ours() -> bool:
    """Tell whether the terminal echoes and gives lines, and we may write: it is a plain one now, with us in its foreground."""
    try:
        modes = termios.tcgetattr(2)
        return modes[3] & (termios.ICANON | termios.ECHO) == termios.ICANON | termios.ECHO and os.tcgetpgrp(2) == os.getpgrp()
    except (OSError, termios.error):
        return False


def _write(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:
        pass
