"""What this kernel and host support. Each feature is tried, never inferred from a version; every "no" says why, what
follows, and what to do about it.

About 0.1 s, most of it for the walk over BTF. `nsagent doctor` prints the result, the agent exports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from nsagent.errors import NsagentError
from nsagent.kernel.probes import No, Paths, Probes, from_errno

BCC_REMEDY: Final = "apt install python3-bpfcc (PyPI's bcc is another library), or set NSAGENT_BCC_PYTHON"


class Feature(NamedTuple):
    """One answer. `needed`: without it nsagent's main job (exact accounting, tracing, launching) is not whole.

    `reason` is the fact found, of a yes too; `consequence` and `remedy` are empty for a yes.
    """

    name: str
    available: bool
    reason: str
    consequence: str
    remedy: str
    needed: bool


NOTHING_TO_DO: Final = "nothing to do"
_APPROX: Final = "namespace metrics approximate, from /proc; no tracing"

# name, needed, consequence of a no, remedy. In the order they are tried: bpf and btf first, others ask what they said.
TABLE: Final[tuple[tuple[str, bool, str, str], ...]] = (
    ("btf", True, _APPROX, "a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    ("bpf", True, _APPROX, "a kernel with CONFIG_BPF_SYSCALL=y"),
    ("bcc", True, "programs cannot be compiled: " + _APPROX + ", unless a compiled object is cached", BCC_REMEDY),
    ("bpffs", True, "programs and counters cannot outlive the agent: none are loaded", "mount -t bpf bpf /sys/fs/bpf"),
    ("tracefs", True, "no tracing of clone, unshare and setns", "mount -t tracefs tracefs /sys/kernel/tracing"),
    ("syscall_tracepoints", True, "no tracing of clone, unshare and setns", "a kernel with CONFIG_FTRACE_SYSCALLS=y"),
    ("perf_event_open", True, "no tracing of clone, unshare and setns", "a kernel with CONFIG_PERF_EVENTS=y"),
    ("ringbuf", True, "no event of a traced call reaches nsagent", "a newer kernel (v5.8 has it)"),
    ("tp_btf", True, _APPROX, "a newer kernel (v5.5 has it)"),
    ("task_storage", True, _APPROX, "a newer kernel (v5.12 has it)"),
    ("iter_task", True, _APPROX, "a newer kernel (v5.8 has it)"),
    ("kernel_reads", True, _APPROX, "boot without lockdown=confidentiality"),
    ("memlock", True, _APPROX, "ulimit -l unlimited (LimitMEMLOCK=infinity)"),
    ("bpf_jit", False, "programs run several times slower", "sysctl net.core.bpf_jit_enable=1"),
    ("iter_cgroup", False, "cgroup values are read from files only: slower scrapes", "a newer kernel (v6.1 has it)"),
    (
        "fentry",
        False,
        "calls are traced at tracepoints instead, which costs every system call of the node 9 to 50 ns while programs are loaded",
        "a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y, or nsagent agent --no-trace",
    ),
    ("kprobe", False, "nothing is lost: nsagent does not use it", NOTHING_TO_DO),
    ("psi", False, "pressure metrics unavailable", "boot with psi=1 (CONFIG_PSI=y)"),
    ("task_delayacct", False, "IO delay metrics unavailable", "sysctl kernel.task_delayacct=1"),
    (
        "ns_id",
        False,
        "without BPF, a namespace that reuses an inode number continues the old one",
        "a newer kernel (v6.18 has it)",
    ),
    ("clone3", True, "nsagent run cannot start jobs", "a kernel of v5.3, and a seccomp profile that lets clone3 through"),
    ("clone_into_cgroup", False, "on cgroup v2, jobs cannot be born in their cgroup", "mount the v2 tree; a kernel of v5.7"),
    ("cgroup_kill", False, "jobs are ended by freezing and killing, which takes longer", "mount the v2 tree; a kernel of v5.14"),
    ("user_namespaces", False, "no --isolate user: an ordinary user can launch nothing", "CONFIG_USER_NS=y"),
    ("time_namespaces", False, "no --isolate time", "CONFIG_TIME_NS=y (v5.6)"),
)


def probe(paths: Paths = Paths()) -> tuple[Feature, ...]:  # noqa: B008 - immutable
    """Try every feature, in the order of TABLE. Never raises for what a host lacks."""
    probes = Probes(paths)
    return tuple(_try(getattr(probes, row[0]), *row) for row in TABLE)


def _try(test: Callable[[], str], name: str, needed: bool, consequence: str, remedy: str) -> Feature:
    try:
        return Feature(name, True, test(), "", "", needed)
    except No as exc:
        refusal = exc
    except OSError as exc:
        refusal = from_errno(exc)
    except NsagentError as exc:
        refusal = No(exc.message, exc.hint)
    return Feature(name, False, refusal.reason, consequence, refusal.remedy or remedy, needed)
