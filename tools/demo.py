"""`make demo`: nsagent at work in some seconds, each command shown; at the end nothing of it is left on the host.

It starts an agent of its own (own state directory, pin directory and port), runs one job through `nsagent run`, and
shows the job from three sides: the system calls that made it, the agent's metrics, and the report. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
NSAGENT = str(Path(sys.executable).with_name("nsagent"))

# The job: some of everything that is accounted, then it waits for a line so that we can look at it while it lives.
JOB = """\
echo "inside: I am PID $$ on host $(hostname), and see $(ls -d /proc/[0-9]* | wc -l) processes"
i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done           # CPU
head -c 64M /dev/zero | tail -c 64M | wc -c >/dev/null        # memory: tail keeps 64 MiB
dd if=/dev/zero of=file bs=1M count=32 conv=fsync 2>/dev/null # 32 MiB to the disk
i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done     # 300 processes of about a millisecond
echo "inside: done"
read -r line
"""

SHOWN = (
    "nsagent_cgroup_cpu_usage_seconds_total",
    "nsagent_cgroup_cpu_throttled_seconds_total",
    "nsagent_cgroup_cpu_limit_cores",
    "nsagent_cgroup_memory_peak_bytes",
    "nsagent_cgroup_memory_limit_bytes",
    "nsagent_cgroup_storage_bytes_total",
    "nsagent_cgroup_pids",
    "nsagent_cgroup_pids_limit",
    "nsagent_namespace_cpu_seconds_total",
    "nsagent_namespace_storage_bytes_total",
    "nsagent_namespace_processes",
    "nsagent_namespace_processes_created_total",
)


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


def step(title: str, explanation: str) -> None:
    """Begin a numbered step."""
    step.number = getattr(step, "number", 0) + 1  # type: ignore[attr-defined]
    print(f"\n== {step.number}. {title}\n   {explanation}", flush=True)  # type: ignore[attr-defined]


def show(argv: list[str]) -> list[str]:
    """Print a command as one would type it, and return it."""
    typed = [Path(argv[0]).name, *(word if "\n" not in word else "<the script above>" for word in argv[1:])]
    print("   $ " + shlex.join(typed).replace("'<the script above>'", "<the script above>"), flush=True)
    return argv


def indent(text: str) -> None:
    """Print the output of a command."""
    for line in text.splitlines():
        print(f"   | {line}", flush=True)


def wait_until(done: Callable[[], T], seconds: float, what: str) -> T:
    """Call `done` until it returns something true, and return that; raise DemoError after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := done()):
        if time.monotonic() > end:
            raise DemoError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)
    return result


@contextlib.contextmanager
def running(argv: list[str], log: Path, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background, its output in `log`; on leaving SIGTERM, if need be SIGKILL, and reap it.

    It gets a process group of its own: a Ctrl-C is for the demo, which then ends everything in order.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as output, undisturbed():
            process = subprocess.Popen(argv, stdin=stdin, stdout=output, stderr=output, process_group=0)
        yield process
    finally:
        if process is not None:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, if need be SIGKILL, and reap."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def first_heard(trace: subprocess.Popen[bytes], log: Path) -> int:
    """Have a call that a trace notes if it has begun; return how much is then in its log, 0 if nothing."""
    if trace.poll() is not None:
        raise DemoError(f"nsagent trace ended:\n{log.read_text(errors='replace')}")
    subprocess.run(["unshare", "--ipc", "true"], check=True)
    end = time.monotonic() + 1
    while not (heard := log.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    return heard


def fetch(url: str) -> str | None:
    """GET `url`; None while nobody answers there or the answer is not 200."""
    try:
        with urllib.request.urlopen(url, timeout=120) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return None


def agent_url(agent: subprocess.Popen[bytes], log: Path, state: Path) -> str | None:
    """Return the URL of the agent once it is ready; raise DemoError with its last words if it ended instead."""
    if agent.poll() is not None:
        raise DemoError(f"the agent ended with exit code {agent.returncode}:\n{log.read_text(errors='replace')}")
    try:
        address = json.loads((state / "agent.json").read_text())["listen"]
    except FileNotFoundError:
        return None
    return f"http://{address}" if fetch(f"http://{address}/-/ready") is not None else None


def job_process(launcher: int) -> int | None:
    """Return the PID of the job: the launcher's only child, since nothing of nsagent's stands between them."""
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def identity(pid: int) -> tuple[str, dict[str, str]]:
    """Return the job's cgroup, and the inode number of each namespace that it does not share with us, by kind."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = [line.split(":", 2)[2] for line in lines if "/nsagent/" in line]
    links = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")}
    own = {kind: link[len(kind) + 2 : -1] for kind, link in links.items() if link != os.readlink(f"/proc/self/ns/{kind}")}
    return (paths or ["?"])[0], own


def pid_namespace(metrics: str, inum: str | None) -> str:
    """Return the labels of the PID namespace `inum` that has processes: the kernel reuses numbers, `id` tells them apart."""
    found = re.search(rf'nsagent_namespace_processes{{(kind="pid",inum="{inum}",id="\d+")}} [1-9]', metrics)
    if found is None:
        raise DemoError(f"the scrape has no PID namespace {inum}")
    return found[1]


def rows_of(metrics: str, *labels: str) -> list[str]:
    """Pick the samples with one of `labels`, of the families SHOWN, in that order."""
    lines = [line for line in metrics.splitlines() if not line.startswith("#") and any(label in line for label in labels)]
    return [line for name in SHOWN for line in lines if re.match(rf"{name}[ {{]", line)]


def demo(scratch: Path, pin_dir: Path) -> None:
    """Go through the steps; what was started is ended on every way out."""
    state = ["--state-dir", str(scratch / "state")]
    kept = ["--cache-dir", str(scratch / "cache"), "--pin-dir", str(pin_dir), "--ephemeral"]
    logs = {name: scratch / f"{name}.log" for name in ("agent", "trace", "job")}

    with contextlib.ExitStack() as started:
        step("The agent", "Compiles its BPF programs (only the first time), loads them, and serves metrics on some port.")
        argv = show([NSAGENT, "agent", "--listen", "127.0.0.1:0", *state, *kept])
        agent = started.enter_context(running(argv, logs["agent"]))
        url = wait_until(lambda: agent_url(agent, logs["agent"], scratch / "state"), 240, "the agent to be ready")
        print(f"   It is ready on {url}, and says how it counts:")
        indent("\n".join(line for line in (fetch(f"{url}/metrics") or "").splitlines() if "nsagent_mode_info{" in line))

        step("Tracing", "From now on each clone, unshare and setns that concerns namespaces is noted; shown in step 5.")
        trace = started.enter_context(running(show([NSAGENT, "trace", *state]), logs["trace"]))
        heard = wait_until(lambda: first_heard(trace, logs["trace"]), 120, "the trace to begin")

        step("A job", "In namespaces and a cgroup of its own: half a CPU, 128 MiB, 64 processes. This is its script:")
        indent(JOB)
        limits = ["--cpus", "0.5", "--memory", "128M", "--pids", "64"]
        isolation = ["--isolate", "cgroup,ipc,mnt,net,pid,uts", "--hostname", "bird"]
        argv = show([NSAGENT, "run", *state, "--name", "demo", *limits, *isolation, "--", "sh", "-c", JOB])
        os.chdir(scratch)  # where the job writes its file
        job = started.enter_context(running(argv, logs["job"], stdin=subprocess.PIPE))
        wait_until(lambda: b"inside: done" in logs["job"].read_bytes() or job.poll() is not None, 120, "the job's work")
        pid = job_process(job.pid)
        if pid is None:
            raise DemoError(f"the job ended early:\n{logs['job'].read_text(errors='replace')}")
        cgroup, inums = identity(pid)
        indent(logs["job"].read_text())
        print(f"   Outside, that process is PID {pid} in cgroup {cgroup}; its namespaces are:")
        indent("  ".join(f"{kind} {inum}" for kind, inum in inums.items()))

        step("Someone looks in", "nsenter joins two of the job's namespaces (setns); unshare makes one of its own.")
        for argv in (["nsenter", "--target", str(pid), "--uts", "--net", "hostname"], ["unshare", "--uts", "true"]):
            indent(subprocess.run(show(argv), capture_output=True, text=True, check=True).stdout)

        step("What the trace saw", "How the job was made, nsenter's two setns, and unshare: each namespace before→after.")
        wait_until(lambda: b"unshare(CLONE_NEWUTS)" in logs["trace"].read_bytes(), 120, "the traced unshare")
        indent(logs["trace"].read_bytes()[heard:].decode(errors="replace"))

        step("What the agent exports", "The job waits. One scrape has its use as a cgroup and, the same, as a PID namespace.")
        metrics = fetch(f"{url}/metrics") or ""
        namespace = pid_namespace(metrics, inums.get("pid"))
        print(f"   $ curl -s {url}/metrics | grep -e {cgroup} -e '{namespace}'      # some of its lines:")
        rows = rows_of(metrics, f'cgroup="{cgroup}"', namespace)
        if not rows:
            raise DemoError("the scrape has no row of the job")
        indent("\n".join(rows))

        step("The report", "The job gets its line and ends. nsagent run read these totals before it removed the cgroup.")
        seen = len(logs["job"].read_bytes())
        assert job.stdin is not None
        job.stdin.write(b"\n")
        job.stdin.close()
        code = job.wait(120)
        indent(logs["job"].read_bytes()[seen:].decode(errors="replace").strip("\n"))
        if code != 0:
            raise DemoError(f"the job ended with exit code {code}")
        step("Tidying up", "The agent was started with --ephemeral: it takes its BPF programs with it.")


def job_parents() -> set[Path]:
    """Return the cgroups below which jobs live, in each hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    tops = [Path(words[4]) / "nsagent" for words in mounts if words[words.index("-") + 1] in {"cgroup", "cgroup2"}]
    return {top for top in tops if top.is_dir()}


def remove_all(scratch: Path, pin_dir: Path, parents: set[Path]) -> list[str]:
    """Remove what the demo made, the pins too if the agent was not able to; return what is left.

    `parents` were there before the demo. Others stay where somebody else's job has come to live in them meanwhile.
    """
    if pin_dir.exists():
        subprocess.run([NSAGENT, "bpf", "unload", "--pin-dir", str(pin_dir)], capture_output=True, check=False)
        shutil.rmtree(pin_dir, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)
    left = [path for path in (pin_dir, scratch) if path.exists()]
    for parent in job_parents():
        left += parent.glob("demo-*")
        if parent not in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
    return [str(path) for path in left]


class Interrupts:
    """The signals that end the demo: each is a KeyboardInterrupt, at once or at the end of `undisturbed`."""

    held = False
    pending = False


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Handle SIGINT, SIGTERM and SIGHUP."""
    if Interrupts.held:
        Interrupts.pending = True
    else:
        raise KeyboardInterrupt


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold a signal back: inside of Popen it would lose the process that has just been started."""
    Interrupts.held = True
    try:
        yield
    finally:
        Interrupts.held = False
        if Interrupts.pending:
            Interrupts.pending = False
            raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 0 if all went well and nothing is left."""
    if os.geteuid() != 0:
        print("error: the demo loads BPF programs, which needs root\nhint: sudo make demo", file=sys.stderr)
        return 1
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    scratch = Path(tempfile.mkdtemp(prefix="nsagent-demo-", dir="/var/tmp"))
    pin_dir = Path(f"/sys/fs/bpf/nsagent-demo-{os.getpid()}")
    parents = job_parents()
    code = 0
    try:
        demo(scratch, pin_dir)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except (DemoError, OSError, subprocess.SubprocessError) as exc:
        print(f"\nerror: {exc}\nhint: 'nsagent doctor' says what this host lacks", file=sys.stderr)
        code = 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        left = remove_all(scratch, pin_dir, parents)
    for path in left:
        print(f"error: still there: {path}", file=sys.stderr)
    if not left:
        print(f"   nothing is left: no process, no cgroup, no {pin_dir}, no {scratch}")
    return code or bool(left)


if __name__ == "__main__":
    sys.exit(main())
