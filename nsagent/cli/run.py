"""`nsagent run` as click has it: its help, its variables, job files. What it does is nsagent.cli.job."""

from __future__ import annotations

from typing import Any, Final

import click

from nsagent.cli import job, jobfile
from nsagent.cli.option import add

EPILOG: Final = """\
Exit codes: the command's own; 128+N when signal N ended it (out of memory: 137); 124 timeout; 125 nsagent could not
do it; 126 the command cannot be executed; 127 it was not found; 2 the command line is wrong.

Examples:
  nsagent run -- make -j8                                        its CPU, memory and IO, exactly
  nsagent run --cpus 0.5 --memory 256M --pids 100 -- ./server    limits
  nsagent run --isolate all -- sh -c 'id; echo $$'               root of a user namespace, and PID 1
  nsagent run --rootfs ./debian --read-only -v ./in:/in:ro -v ./out:/out --tmpfs /tmp -- /in/build
  nsagent run --join net:blue --join ipc:4242 -- ./client        in namespaces of others: of `ip netns`, of a process
  nsagent run --net none --clock-offset boottime:7d -- uptime    a network of its own; up for a week more
  nsagent run --timeout 10m --report json --report-file r.json -- ./nightly
  nsagent run --sample 100ms --cpu-timeout 1h -- ./train         CPU and memory over time; an end after an hour of CPU
  nsagent run --report textfile:/var/lib/node_exporter --push http://127.0.0.1:9091 -- ./backup
  nsagent run -t --rootfs ./debian -- bash                       a shell on a terminal of its own
  nsagent run -d --name web -- ./server                          leaves it running: nsagent ps, logs, exec, stop
  nsagent run --parent batch --cpus 1 --ulimit nofile=4096 --nice 10 -- ./sort
                                                                 within the limits of the cgroup `batch` too
  nsagent run -f nightly.toml --memory 2G                        a job of a file, with more memory
  nsagent run --dry-run --io-max /dev/vda:wbps=10M -- dd ...     what would be done
  nsagent run                                                    a shell in namespaces of its own
"""


@click.argument("argv", metavar="[--] [CMD [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def _run(file: jobfile.JobFile | None, /, argv: tuple[str, ...], **words: Any) -> int:
    """Run CMD (default: $SHELL) in namespaces and a cgroup of its own, and report what it used.

    CMD is PID 1 of a new PID namespace. When it ends, whatever it started ends too, and its cgroup goes.
    With --detach it reads nothing, 'nsagent logs' has what it writes and 'nsagent inspect' its report.
    """
    if file is not None:
        argv = argv or file.command
        file.check(lambda tried: job.make_spec(argv, tried), words)
    return job.launch(argv, words)


run: click.Command = click.command("run", epilog=EPILOG, context_settings={"allow_interspersed_args": False})(
    jobfile.option(add(_run, job.OPTIONS))
)
