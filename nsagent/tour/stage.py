"""Where an experiment acts: it runs commands as a reader would type them, looks at both sides, and claims what it saw.

Everything is in a directory and a registry of its own, and is ended and removed by `close`, however the tour ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Final, NamedTuple, Protocol, Self

from nsagent import jobs
from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.errors import AccessError, NsagentError, UnsupportedError
from nsagent.jobs import lookup
from nsagent.jobs.record import JobRecord
from nsagent.launch import control, launcher, text
from nsagent.launch.report import RunResult, from_dict
from nsagent.tour.tracer import Tracer

PROGRAM: Final = (sys.executable, "-P", "-c", "from nsagent.cli import main; main()")
_OURS: Final = ("run", "exec", "stop", "inspect")  # the commands that shall have our registry
_KEPT: Final = ("NSAGENT_BCC_PYTHON", "NSAGENT_TRACE_CACHE_DIR")  # no other setting of the reader's may change an experiment
_REFUSED: Final = (125, 126, 127)  # nsagent run: not possible; CMD cannot be executed, or is not there
_DEADLINE_S: Final = 120.0


class NotShownError(Exception):
    """This cannot be shown here; the text says why."""


class Show(Protocol):
    """What is done with what happens."""

    def say(self, text: str) -> None:
        """Explain what comes."""

    def command(self, typed: str) -> None:
        """A command, before it is run: the reader may be asked here."""

    def output(self, text: str) -> None:
        """What it printed."""

    def evidence(self, subject: str, text: str) -> None:
        """What else was seen."""

    def claim(self, text: str, holds: bool) -> None:
        """What the experiment shows, and whether it is so."""


class Done(NamedTuple):
    """A command that ended: its exit code and what it wrote, errors too."""

    code: int
    out: str

    @property
    def lines(self) -> list[str]:
        """Its lines, without blanks at their ends."""
        return [line.strip() for line in self.out.splitlines()]


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, but not while something is made that nobody else knows of yet."""

    def __init__(self) -> None:
        self._held = self._came = False
        self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if not self._held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put them off."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came:
            raise KeyboardInterrupt

    def end(self) -> None:
        """From now on, none; `close` gives back what was before."""
        self._held = True

    def close(self) -> None:
        """Handle them as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Stage:
    """One tour. `texts` are by key, with fields in braces; `agent_dir` is an agent's state directory."""

    def __init__(self, show: Show, texts: Mapping[str, str], *, trace: bool, agent_dir: str) -> None:
        self._show = show
        self._texts = texts
        self._trace_dir = agent_dir if trace else ""
        self._groups: list[Group] = []
        self._places: list[str] = []
        self._tracer: Tracer | None = None
        self.layout: Layout = read_layout()
        self.claims = self.false = 0
        self.state_dir = ""
        self.untraced = texts["untraced.asked"]

    def __enter__(self) -> Self:
        self._interrupts = Interrupts()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self.state_dir = self.directory()
        os.chmod(self.state_dir, 0o700)
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("NSAGENT_") or key in _KEPT}
        self._environment |= {f"NSAGENT_{name.upper()}_STATE_DIR": self.state_dir for name in _OURS}
        self._environment["NSAGENT_RUN_REPORT"] = "none"  # it is in the registry
        if self._trace_dir:
            with self._interrupts.held():
                tracer = self._tracer = Tracer((*PROGRAM, "trace", "--state-dir", self._trace_dir, "--pid", str(os.getpid())))
            self.untraced = tracer.wait_ready()

    def directory(self, below: str | None = None) -> str:
        """Make a directory of the tour's, which every user may write; it goes with the tour."""
        with self._interrupts.held():
            self._places.append(tempfile.mkdtemp(prefix=f"nsagent-tour-{os.getpid()}-", dir=below))
        os.chmod(self._places[-1], 0o1777)
        return self._places[-1]

    def say(self, key: str, **values: object) -> None:
        """Explain what comes."""
        self._show.say(self._texts[key].format(**values))

    def claim(self, key: str, holds: bool, **values: object) -> None:
        """Assert it: what does not hold makes the tour fail."""
        self.claims += 1
        self.false += not holds
        self._show.claim(self._texts[key].format(**values), holds)

    def attempt(self, part: Callable[[Stage], None]) -> None:
        """Do a part; where this host, or this user, cannot have it, say so."""
        try:
            part(self)
        except NotShownError as exc:
            self._show.say(self._texts["not_shown"].format(reason=exc))
        except (UnsupportedError, AccessError) as exc:
            self._show.say(self._texts["not_shown"].format(reason=exc.message))

    def not_shown(self, key: str, **values: object) -> NotShownError:
        """Return what to raise where this host, or this user, cannot have what comes."""
        return NotShownError(self._texts[key].format(**values))

    def typed(self, typed: str) -> None:
        """Show what a reader would type for what the tour does itself."""
        self._show.command(typed)

    def host(self, typed: str) -> Done:
        """Run a command line of the host's."""
        program = typed.split(maxsplit=1)[0]
        if shutil.which(program) is None:
            raise self.not_shown("missing", what=program)
        self._show.command(typed)
        return self._shown(self._call(("sh", "-c", typed)))

    def nsagent(self, typed: str, script: str = "") -> Done:
        """Run a line of nsagent, whose last word is `script` if there is one. One that nsagent refuses cannot be shown."""
        quoted = f" '{script}'" if script else ""
        self._show.command(f"nsagent {typed}{quoted}")
        done = self._call((*PROGRAM, *typed.split(), *([script] if script else [])))
        refused = re.search(r"^error: (.*)", done.out, re.MULTILINE)
        if done.code in _REFUSED and refused:
            raise NotShownError(refused[1])
        return self._shown(done)

    def _shown(self, done: Done) -> Done:
        self._show.output(done.out)
        return done

    def _call(self, argv: Sequence[str]) -> Done:
        """Run a command in a process group of its own, for a Ctrl-C is for the tour, which then ends all in order."""
        with self._interrupts.held():
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                text=True,
                errors="replace",
                process_group=0,
            )
        try:
            out, _ = process.communicate()
        except BaseException:
            process.terminate()
            self._end_jobs()
            process.communicate()
            raise
        return Done(process.returncode, out)

    def job(self, name: str) -> JobRecord:
        """Return a job by its name, as it is now."""
        return jobs.find(self.state_dir, name)

    def result(self, name: str) -> RunResult:
        """Return the report of a job that ended."""
        return from_dict(self.job(name).report)

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is so; False where it is not for two minutes."""
        end = time.monotonic() + _DEADLINE_S
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def throttled(self, name: str) -> int:
        """Return how many periods a running job has been throttled in."""
        return int(control.usage(self.job(name), self.layout).get("throttled_periods", 0))

    def group(self, path: str) -> Group:
        """Make a cgroup, which goes with the tour."""
        with self._interrupts.held():
            self._groups.append(Group.create(self.layout, path))
        return self._groups[-1]

    def evidence(self, key: str, shown: str) -> None:
        """Show what else was seen."""
        self._show.evidence(self._texts[f"evidence.{key}"], shown)

    def differs(self, name: str, kind: str) -> None:
        """Show the namespace on both sides, and the call that made it; claim that they are two."""
        outside = os.readlink(f"/proc/self/ns/{kind}")
        job = self.job(name)
        inum = job.namespaces[kind]
        self.evidence("links", self._texts["links"].format(outside=outside, inside=f"{kind}:[{inum}]"))
        if self._tracer is not None and not self.untraced:
            # a number is soon that of another namespace: it must be of this job, or of what was made for it
            line = self._tracer.find(rf"\b{kind} \d+→{inum}\b", rf"= {job.pid}\b|\b{job.pid} \w+\(|job {job.id}\b")
            self.evidence("trace", line or self._texts["untraced.late"])
        self.claim("differs", outside != f"{kind}:[{inum}]", kind=kind)

    def used(self, name: str, *, whole: bool = False) -> None:
        """Show what a job that ended has used: the most of it, or its whole report."""
        report = text.to_text(self.result(name))
        if whole:
            self._show.output(report)
        else:
            self.evidence("usage", "; ".join(" ".join(row.split()) for row in report.splitlines()[1:4]))

    def close(self) -> None:
        """End and remove all that the tour made."""
        self._interrupts.end()
        try:
            self._end_jobs()
            for group in reversed(self._groups):
                group.kill()
                group.remove()
            if self._tracer is not None:
                self._tracer.close()
            for place in reversed(self._places):
                shutil.rmtree(place, ignore_errors=True)
        finally:
            self._interrupts.close()

    def _end_jobs(self) -> None:
        if not self.state_dir:
            return
        for job in jobs.read_live(self.state_dir):
            if lookup.is_held(self.state_dir, job.id):
                control.end(self.state_dir, job, self.layout)
        with contextlib.suppress(NsagentError):
            launcher.sweep(self.state_dir)
