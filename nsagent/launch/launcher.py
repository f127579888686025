"""The parent's side of a launch: register, make the cgroup, clone, supervise, count, tidy up. `run` does all of it.

What happens between the clone and CMD's first instruction is drawn in `nsagent.launch.handshake`. The order here makes
each thing findable before it exists: the job's file is locked before its cgroup is made, the cgroup has its limits
before a process enters it, and what is removed is removed in `finally`. If this process is killed, `sweep` does it
later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nsagent import jobs
from nsagent.cgroups import aside
from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cgroups.limits import Limits
from nsagent.errors import AccessError, LaunchError, NsagentError, UnsupportedError, UsageError, VanishedError
from nsagent.launch import child, idmaps, joining, measure, prepare, tuning
from nsagent.launch.clone import clone3
from nsagent.launch.entry import adopt
from nsagent.launch.handshake import RELEASE
from nsagent.launch.orphans import Orphans
from nsagent.launch.prepare import child_plan, id_maps
from nsagent.launch.report import JobUsage, NamespaceRef, RunResult, to_dict
from nsagent.launch.signals import Inbox, Terminal
from nsagent.launch.spec import RunSpec
from nsagent.launch.supervise import Alarm, CpuTimeout, Ending, Supervisor, UnreadyError, failure_error
from nsagent.launch.timeline import Recorder
from nsagent.launch.verdict import judge
from nsagent.namespaces import NamespaceKind

if TYPE_CHECKING:
    from nsagent.launch.relay import Stdio, Watch

_OPEN = "a job that may mount is kept from the host's devices by its cgroup; --device-policy open does without"


def run(
    spec: RunSpec,
    state_dir: str,
    *,
    stdio: Callable[[jobs.JobRecord], Stdio] | None = None,
    started: Callable[[jobs.JobRecord], None] = lambda job: None,
    watch: Watch | None = None,
) -> RunResult:
    """Run the job `spec` asks for to its end, and return what it was and used. Call it in a process without threads.

    `stdio` makes CMD's descriptors 0, 1 and 2, by default the caller's; `started` is called when CMD runs;
    `watch` looks on.

    Raises: LaunchError (with the exit code: 127 not found, 126 not executable), AccessError, UnsupportedError: CMD did
    not run, and nothing is left. Jobs whose launcher was killed are swept first.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise LaunchError("this process has threads", stage="clone", hint="launch from a process of its own")
    sweep(state_dir)
    layout = read_layout()
    job = jobs.create(
        state_dir,
        jobs.JobRecord(
            id=(job_id := jobs.new_id(spec.name)),
            name=spec.name,
            command=spec.argv,
            launcher_pid=os.getpid(),
            start=time.time(),
            cgroup=f"{parent_cgroup(layout, spec.parent)}nsagent/{job_id}",
            isolate=tuple(sorted(spec.isolate)),
        ),
    )
    inbox, terminal, made = Inbox(), Terminal(), None
    last: dict[str, object] = {"outcome": "launch_error", "exit_code": 125}
    try:
        made = stdio(job.record) if stdio else None
        launch = _Launch(spec, job, state_dir=state_dir, inbox=inbox, terminal=terminal, stdio=made, started=started, watch=watch)
        result = launch.run(layout)
        last = {"outcome": result.outcome, "exit_code": result.exit_code, "reason": result.reason}
        last["report"] = to_dict(result)
        return result
    except NsagentError as exc:
        last |= {"exit_code": exc.exit_code, "reason": exc.message}
        raise
    except OSError as exc:  # of pipe(2) and the like: what the host has run out of
        hint = "raise the limit of open files: ulimit -n" if exc.errno == errno.EMFILE else ""
        error = LaunchError(f"the job was not started: {exc.strerror}", stage="launch", errno=exc.errno or 0, hint=hint)
        last["reason"] = error.message
        raise error from exc
    finally:
        if watch is not None:
            watch.finish()
        if made is not None:
            made.finish()
        terminal.take_back()
        terminal.close()
        job.finish(end=time.time(), **last)
        inbox.close()


def parent_cgroup(layout: Layout, named: str = "") -> str:
    """Return where jobs go: "NAMED/" of --parent; "" for the root of each hierarchy; for a user the delegated cgroup it is in.

    Raises UsageError where no hierarchy has the cgroup that was named. One that lacks it gets it, and it stays there.
    """
    if named:
        if not any(os.path.isdir(f"{hierarchy.mountpoint}/{named}") for hierarchy in layout.hierarchies):
            raise UsageError(
                f"--parent {named}: no hierarchy has this cgroup", hint="'nsagent cgroup tree' shows those there are"
            )
        return f"{named}/"
    if os.geteuid() != 0:
        own = layout.own_cgroup()
        for hierarchy in layout.hierarchies:
            directory = hierarchy.directory(aside.above(own.get(hierarchy.key, "/")))
            if directory is not None and directory != hierarchy.mountpoint and os.access(directory, os.W_OK):
                return directory[len(hierarchy.mountpoint) + 1 :] + "/"
    return ""


def sweep(state_dir: str) -> list[str]:
    """End and remove what launchers that were killed have left; return the ids of these jobs.

    A job that cannot be removed now (a process in uninterruptible sleep, or another user's without CAP_KILL) is left for the
    next sweep.
    """
    swept = []
    jobs.remove_stale(state_dir)
    for job in jobs.abandoned(state_dir):
        try:
            _kill_if_same(job.record.pid, job.record.start_ticks)
            if job.record.cgroup:
                group = Group.open(read_layout(), job.record.cgroup)
                group.kill()
                group.remove()
        except NsagentError:
            job.release()
            continue
        job.finish(end=time.time(), outcome="abandoned", reason="its launcher was killed")
        swept.append(job.record.id)
    return swept


def _kill_if_same(pid: int | None, start_ticks: int | None) -> None:
    """Kill CMD of a swept job; the pidfd is opened before the check, so that no successor of the pid is hit.

    Raises AccessError: it is another user's, and we have no CAP_KILL.
    """
    if pid is None or start_ticks is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if measure.read_start_ticks(pid) == start_ticks:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError as exc:
        raise AccessError(f"process {pid} may not be killed", capability="CAP_KILL") from exc
    finally:
        os.close(pidfd)


class _Launch:
    """One launch; what it makes is undone in the opposite order."""

    def __init__(
        self,
        spec: RunSpec,
        job: jobs.JobFile,
        *,
        state_dir: str,
        inbox: Inbox,
        terminal: Terminal,
        stdio: Stdio | None,
        started: Callable[[jobs.JobRecord], None],
        watch: Watch | None,
    ) -> None:
        self._spec = spec
        self._job = job
        self._state_dir = state_dir
        self._inbox = inbox
        self._terminal = terminal
        self._stdio = stdio
        self._started = started
        self._watch = watch
        self._notes = list(spec.notes)
        self._group: Group | None = None
        self._namespaces: dict[str, NamespaceRef] = {}
        self._recorder: Recorder | None = None

    def run(self, layout: Layout) -> RunResult:
        self._spec = prepare.feasible(self._spec, layout)
        self._notes = list(self._spec.notes)
        with self._in_group(layout):
            orphans = Orphans() if self._group is None else None
            try:
                ending, status, wall_ns, usage = self._run_child(layout)
            except UnreadyError as exc:
                raise self._too_small() or exc from None
            finally:
                if orphans is not None:
                    orphans.kill()
                elif self._group is not None:
                    self._group.kill()
            if ending.failure is not None:
                raise failure_error(ending.failure)
            usage = self._with_group_usage(usage)
        verdict = judge(
            status if ending.command_status is None else ending.command_status,
            stopped=ending.stopped,
            carried_out=ending.carried_out,
            oom_kills=usage.oom_kills or 0,
        )
        record = self._job.record
        return RunResult(
            id=record.id,
            name=record.name,
            command=record.command,
            start=record.start,
            end=time.time(),
            wall_ns=wall_ns,
            outcome=verdict.outcome,
            exit_code=verdict.exit_code,
            reason=verdict.reason,
            cgroup=record.cgroup,
            namespaces=self._namespaces,
            usage=usage,
            cpus=measure.usable_cpus(self._spec.limits),
            timeline=self._recorder.timeline() if self._recorder else None,
            notes=tuple(self._notes),
        )

    @contextlib.contextmanager
    def _in_group(self, layout: Layout) -> Iterator[None]:
        """Make the job's cgroup and write its limits; remove it in the end. A user who may make none runs without."""
        record = self._job.record
        if os.geteuid() and not self._spec.parent:
            aside.step_aside(layout, record.cgroup.removesuffix(f"/nsagent/{record.id}"))
        try:
            self._group = Group.create(layout, record.cgroup)
        except (AccessError, UnsupportedError) as exc:
            needed = self._spec.limits or self._spec.cpu_timeout_ns or self._spec.must_guard_devices
            if needed and not self._spec.best_effort:
                exc.hint = _OPEN if needed is True else exc.hint
                raise
            self._notes.append(f"no cgroup, so CPU and memory are of what was waited for: {exc.message}")
            self._job.update(cgroup="")
            yield
            return
        try:
            refused: list[str] | None = [] if self._spec.best_effort else None
            self._group.apply(self._spec.limits, refused)
            self._notes += [f"not limited: {reason}" for reason in refused or ()]
            self._guard_devices(self._group)
            yield
        finally:
            self._group.remove()

    def _guard_devices(self, group: Group) -> None:
        """Let the job open its own devices alone; where this host cannot, it may do without if nodev guards them too."""
        rules = prepare.device_rules(self._spec)
        if rules is None:
            return
        try:
            group.apply(Limits(devices=rules))
        except (AccessError, UnsupportedError) as exc:
            if not self._spec.must_guard_devices:
                return
            if not self._spec.best_effort:
                exc.hint = _OPEN
                raise
            self._notes.append(f"not limited: {exc.message}")

    def _run_child(self, layout: Layout) -> tuple[Ending, int, int, JobUsage]:
        joins = joining.open_all(self._spec.join)
        spec = self._spec = self._spec._replace(join=tuple(join for join, _ in joins))
        channel, channel_child = os.pipe()
        release_child, release = os.pipe()
        maps = id_maps(spec)
        born, born_child = os.pipe()
        entry = prepare.entry(spec, joins, born_child)
        plan = child_plan(
            spec,
            layout,
            maps,
            channel=channel_child,
            release=release_child,
            parents=(channel, release, born, self._inbox.fd, self._job.fd),
            tasks=tuple(self._group.attach_fds()) if self._group else (),
            ignored=self._inbox.ignored,
            state_dir=self._state_dir,
            notes=self._notes,
            entry=entry,
            stdio=self._stdio.plan if self._stdio else None,
        )
        started = time.monotonic_ns()
        try:
            pid, pidfd = _clone(spec, self._group.v2_fd if self._group else None, entry is not None)
            if pid == 0:
                child.run(plan)
        except BaseException:
            _close([channel, release, born])
            raise
        finally:
            _close([channel_child, release_child, born_child, *(fd for _, fd in joins)])
            if self._group is not None:
                self._group.close()
        try:
            if entry is not None:
                pid, pidfd = adopt(pid, pidfd, born)
            supervisor = Supervisor(
                pid,
                pidfd,
                channel,
                inbox=self._inbox,
                terminal=self._terminal,
                kill=lambda: self._kill(pidfd),
                pid_one=NamespaceKind.PID in spec.isolate and not spec.init,
                stop_timeout_ns=spec.stop_timeout_ns,
                started=lambda: self._started(self._job.record),
                stdio=self._stdio,
                watch=self._watch,
            )
            supervisor.wait_ready()
            if maps is not None:
                idmaps.write(pid, maps)
            self._notes += tuning.prepare(pid, spec.tuning, best_effort=spec.best_effort)
            self._register(pid, prepare.given(plan, spec))
            with self._alarms(supervisor) as alarms:
                os.write(release, RELEASE)
                if self._group is not None:  # while CMD begins: what its end will need
                    import nsagent.cgroups.reader  # noqa: F401
                ending = supervisor.wait(alarms)
            wall_ns = time.monotonic_ns() - started
            io, run_queue_ns = measure.read_task_io(pid), measure.read_run_queue(pid)  # of the zombie, before it is waited for
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise
        finally:
            _, status, rusage = os.wait4(pid, 0)
            _close([channel, release, born, pidfd])
        return ending, status, wall_ns, measure.waited_usage(rusage, io, run_queue_ns)

    @contextlib.contextmanager
    def _alarms(self, supervisor: Supervisor) -> Iterator[list[Alarm]]:
        """Return what is to be done while CMD runs: end it in time, and watch what it uses. CMD waits for its release now."""
        spec, now_ns, alarms = self._spec, time.monotonic_ns(), []
        if spec.timeout_ns is not None:
            reason = f"stopped after its timeout of {spec.timeout_ns / 1e9:g} s"
            alarms.append(Alarm(now_ns + spec.timeout_ns, lambda _: supervisor.stop(reason)))
        if self._group is None or not (spec.sample_ns or spec.cpu_timeout_ns or self._watch):
            if self._watch is not None:
                alarms.append(self._watch.begin(None, now_ns))
            yield alarms
            return
        meter = self._group.meter()
        try:
            if self._watch is not None:
                alarms.append(self._watch.begin(meter, now_ns))
            if spec.sample_ns:
                self._recorder = Recorder(meter, spec.sample_ns, now_ns)
                alarms.append(Alarm(now_ns + spec.sample_ns, self._recorder.take))
            if spec.cpu_timeout_ns:
                alarms.append(Alarm(now_ns, CpuTimeout(meter, spec.cpu_timeout_ns, supervisor.stop).ring))
            yield alarms
            if self._recorder:
                self._recorder.take(time.monotonic_ns())
        finally:
            meter.close()

    def _register(self, pid: int, given: dict[str, Any]) -> None:
        try:
            self._namespaces = measure.read_namespaces(pid, self._spec.joined)
        except VanishedError as exc:
            raise LaunchError("the child was killed before it ran CMD", stage="handshake") from exc
        inums = {kind: ref.inum for kind, ref in self._namespaces.items()}
        self._job.update(pid=pid, start_ticks=measure.read_start_ticks(pid), namespaces=inums, given=given)

    def _kill(self, pidfd: int) -> None:
        if self._group is not None:
            self._group.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _too_small(self) -> LaunchError | None:
        """Return why the child died on its way to CMD, if its cgroup's events tell: it is an interpreter until then."""
        memory = self._group.stats().memory if self._group else None
        if memory is None or not memory.events.get("oom_kill"):
            return None
        message = "the child was killed for lack of memory before it was ready"
        hint = "the memory limit is too small for the launcher's child: raise --memory to some MiB"
        return LaunchError(message, stage="handshake", call="read", hint=hint)

    def _with_group_usage(self, usage: JobUsage) -> JobUsage:
        if self._group is None:
            return usage
        counted = measure.with_cgroup(usage, self._group.stats())
        if counted.cpu_source == "cgroup" and measure.left_its_cgroup(usage, counted):
            self._notes.append(
                f"it left its cgroup: {(usage.cpu_ns or 0) / 1e9:.3f} s of CPU were waited for, its cgroup counted "
                f"{(counted.cpu_ns or 0) / 1e9:.3f} s; memory, IO and limits are of the cgroup alone"
            )
            counted = counted._replace(
                cpu_ns=usage.cpu_ns, user_ns=usage.user_ns, system_ns=usage.system_ns, cpu_source=usage.cpu_source
            )
        return counted


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _clone(spec: RunSpec, cgroup_fd: int | None, in_between: bool) -> tuple[int, int]:
    """clone3 as `spec` says, or of a process in between, which makes no namespace; its refusals in words."""
    try:
        return clone3(0 if in_between else spec.clone_flags, cgroup_fd)
    except OSError as exc:
        kinds = ",".join(sorted(spec.isolate)) or "no new namespace"
        what = f"clone3 ({kinds})"
        if exc.errno == errno.ENOSYS:
            raise UnsupportedError(
                "clone3",
                "not on this kernel (Linux 5.7 has all that is needed), or hidden by a seccomp filter",
                hint="in a container: run it with another seccomp profile",
            ) from exc
        if exc.errno == errno.EINVAL:
            raise UnsupportedError(what, "this kernel lacks a kind of namespace", hint="'nsagent doctor' lists them") from exc
        if exc.errno in (errno.EPERM, errno.EACCES):
            raise AccessError(
                f"{what}: {os.strerror(exc.errno)}",
                capability="CAP_SYS_ADMIN",
                hint="run as root; 'nsagent doctor' says whether this host lets users make user namespaces",
            ) from exc
        hint = "a limit in /proc/sys/user is reached" if exc.errno in (errno.ENOSPC, errno.EUSERS) else ""
        raise LaunchError(
            f"{what}: {os.strerror(exc.errno or 0)}", stage="clone", call="clone3", errno=exc.errno or 0, hint=hint
        ) from exc
