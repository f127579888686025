"""`nsagent exec`: another command in a running job: its namespaces and cgroup, and with nothing more than its CMD may.

The launcher keeps what is needed in the job's file (`given`): user, capabilities, seccomp filter, rlimits, directory, ...
The child is that of a launch (nsagent.launch.child), and joins instead of making.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping

from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import Layout
from nsagent.errors import LaunchError, NsagentError, VanishedError
from nsagent.jobs.record import JobRecord
from nsagent.launch import child, joining, measure, tuning
from nsagent.launch.child import ChildPlan
from nsagent.launch.clone import clone3
from nsagent.launch.confine import Confinement
from nsagent.launch.entry import Entry, adopt
from nsagent.launch.execute import Command
from nsagent.launch.handshake import RELEASE
from nsagent.launch.identity import Identity
from nsagent.launch.joining import Join
from nsagent.launch.relay import Stdio
from nsagent.launch.signals import Inbox, Terminal
from nsagent.launch.spec import DEFAULT_PATH, STOP_TIMEOUT_NS
from nsagent.launch.supervise import Ending, Supervisor, failure_error
from nsagent.launch.tuning import Tuning, Ulimit
from nsagent.launch.verdict import judge
from nsagent.namespaces import KINDS, NamespaceKind


def run(
    job: JobRecord, argv: tuple[str, ...], layout: Layout, *, env: Mapping[str, str], workdir: str, stdio: Stdio | None
) -> int:
    """Run `argv` in a job, and return its exit code, 128+N where signal N ended it. Call it in a process without threads.

    `env` is set over the job's own variables; `workdir`: "" for where its CMD began. `stdio`: None for our descriptors.

    Raises: NsagentError where the job does not run, or is paused; LaunchError (127, 126); AccessError.
    """
    if job.end is not None or job.pid is None or not job.given:
        raise NsagentError(f"job {job.id} does not run", hint="'nsagent ps' lists those that do")
    group = Group.open(layout, job.cgroup) if job.cgroup else None
    if group is not None and group.frozen:
        raise NsagentError(f"job {job.id} is paused", hint=f"nsagent resume {job.id}")
    inbox, terminal = Inbox(), Terminal()
    try:
        plan = _plan(job, argv, env, workdir)
        ending, status = _run_child(job, group, plan, inbox=inbox, terminal=terminal, stdio=stdio)
    finally:
        if stdio is not None:
            stdio.finish()
        if group is not None:
            group.close()
        terminal.take_back()
        terminal.close()
        inbox.close()
    if ending.failure is not None:
        raise failure_error(ending.failure)
    return judge(status, stopped="", carried_out=ending.carried_out, oom_kills=0).exit_code


def _plan(job: JobRecord, argv: tuple[str, ...], env: Mapping[str, str], workdir: str) -> ChildPlan:
    given = job.given
    variables = ({} if given["clean_env"] else dict(os.environ)) | given["env"] | dict(env)
    who = Identity(**given["identity"])
    return ChildPlan(
        command=Command(
            argv=tuple(map(os.fsencode, argv)),
            environment={os.fsencode(key): os.fsencode(value) for key, value in variables.items()},
            search_path=tuple(map(os.fsencode, variables.get("PATH", DEFAULT_PATH).split(":"))),
            real_path=True,
        ),
        channel=-1,
        release=-1,
        parents=(),
        tasks=(),
        workdir=workdir or given["workdir"],
        ulimits=_tuning(job).ulimits,
        identity=who._replace(user=None if who.user is None else (who.user[0], who.user[1], tuple(who.user[2]))),
        confinement=Confinement(
            given["capabilities"], given["no_new_privileges"], bytes.fromhex(given["filter"]) if given["filter"] else None
        ),
        hidden=os.geteuid() == 0,
        foreign_root=True,
    )


def _tuning(job: JobRecord) -> Tuning:
    given = Tuning(**job.given["tuning"])
    return given._replace(ulimits=tuple(Ulimit(*each) for each in given.ulimits))


def _run_child(
    job: JobRecord, group: Group | None, plan: ChildPlan, *, inbox: Inbox, terminal: Terminal, stdio: Stdio | None
) -> tuple[Ending, int]:
    joins = _open_namespaces(job)
    channel, channel_child = os.pipe()
    release_child, release = os.pipe()
    born, born_child = os.pipe()
    plan = plan._replace(
        command=plan.command._replace(ignored=inbox.ignored),
        channel=channel_child,
        release=release_child,
        parents=(channel, release, born, inbox.fd),
        tasks=tuple(group.attach_fds()) if group else (),
        entry=Entry(joins, 0, born_child),
        stdio=stdio.plan if stdio else None,
    )
    try:
        pid, pidfd = clone3(0, group.v2_fd if group else None)
    except OSError as exc:  # ENODEV: the cgroup is gone
        raise LaunchError(f"job {job.id} cannot be entered: {exc.strerror}", stage="clone", errno=exc.errno or 0) from exc
    if pid == 0:
        child.run(plan)
    for fd in (channel_child, release_child, born_child, *(fd for _, fd in joins)):
        os.close(fd)
    try:
        pid, pidfd = adopt(pid, pidfd, born)
        supervisor = Supervisor(
            pid,
            pidfd,
            channel,
            inbox=inbox,
            terminal=terminal,
            kill=lambda: _kill(pidfd),
            pid_one=False,
            stop_timeout_ns=STOP_TIMEOUT_NS,
            stdio=stdio,
        )
        supervisor.wait_ready()
        tuning.prepare(pid, _tuning(job), best_effort=False)
        os.write(release, RELEASE)
        ending = supervisor.wait()
    except BaseException:
        _kill(pidfd)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
        for fd in (channel, release, born, pidfd):
            os.close(fd)
    return ending, status


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _open_namespaces(job: JobRecord) -> tuple[tuple[Join, int], ...]:
    """Open those of CMD that are not ours; who it is is looked at afterwards, so that they are not a successor's."""
    kinds: list[NamespaceKind] = [kind for kind in KINDS if os.path.exists(f"/proc/{job.pid}/ns/{kind}")]
    found = joining.open_all(tuple(Join(kind, f"/proc/{job.pid}/ns/{kind}", f"{kind}:{job.pid}") for kind in kinds))
    if measure.read_start_ticks(job.pid or 0) != job.start_ticks:
        for _, fd in found:
            os.close(fd)
        raise VanishedError(f"job {job.id}")
    return found
