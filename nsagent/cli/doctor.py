"""`nsagent doctor`: what works on this host, what follows from what does not, and the remedy."""

from __future__ import annotations

import click

from nsagent.kernel import pins


@click.command(
    epilog="""\
Examples:
  nsagent doctor
  nsagent doctor -o json | jq -r '.findings[] | select(.ok | not) | .name + ": " + .remedy'

Exit status: 0 if exact accounting, tracing and launching all work here for this user; 1 if one of them lacks something
(marked LACKING). What only costs some metrics or some speed does not count."""
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output.")
@click.option("--path.procfs", "path_procfs", default="/proc", metavar="DIR", help="Where the host's /proc is.")
@click.option("--path.sysfs", "path_sysfs", default="/sys", metavar="DIR", help="Where the host's /sys is.")
@click.option("--path.cgroupfs", "path_cgroupfs", default="/sys/fs/cgroup", metavar="DIR", help="Where the cgroup trees are.")
@click.option("--pin-dir", default=pins.DEFAULT_PIN_DIR, metavar="DIR", help="Directory on a bpffs that holds the pins.")
def doctor(output: str, path_procfs: str, path_sysfs: str, path_cgroupfs: str, pin_dir: str) -> int:
    """Say what this host supports, what follows, and what to do about it. Changes nothing."""
    from nsagent import doctor as doctors
    from nsagent.kernel.probes import Paths

    report = doctors.examine(Paths(path_procfs, path_sysfs, path_cgroupfs), pin_dir)
    click.echo(doctors.to_json(report) if output == "json" else doctors.to_text(report))
    return 1 if report.lacking else 0


command = doctor
