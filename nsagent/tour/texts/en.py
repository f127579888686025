"""The tour in English."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TEXTS: Final[Mapping[str, str]] = {
    "title.uts": "uts: a host name of one's own",
    "title.pid": "pid: being number 1",
    "title.mnt": "mnt: mounts that others do not see",
    "title.user": "user: root here, nobody there",
    "title.net": "net: one port, bound twice",
    "title.ipc": "ipc: a queue that is not there",
    "title.time": "time: a week ahead",
    "title.cgroup": "cgroup: limits that bite",
    "ask": "[Enter runs it, Ctrl-C ends the tour]",
    "holds": "holds",
    "false": "FALSE",
    "not_shown": "Not shown here: {reason}",
    "untraced": "System calls are not shown: {reason}",
    "untraced.asked": "--no-trace",
    "untraced.late": "the call was not seen within a minute",
    "missing": "{what} is not installed",
    "interrupted": "The tour was ended; what it made is removed.",
    "nothing": "nothing of the tour can be shown on this host",
    "end.true": "{claims} claims, and all hold. Nothing of the tour is left on this host.",
    "end.false": "{false} of {claims} claims are FALSE. Nothing of the tour is left on this host.",
    "evidence.links": "namespaces",
    "evidence.trace": "traced",
    "evidence.usage": "accounted",
    "links": "outside {outside}, inside {inside}",
    "differs": "outside and inside are two {kind} namespaces",
    "uts.about": (
        "A process sees the host name of its uts namespace. A new one begins as a copy of the old one, and\n"
        "from then on each goes its own way. This host is called:"
    ),
    "uts.change": (
        "nsagent run starts a command in new cgroup, ipc, mnt, pid and uts namespaces. In there we change the\n"
        "name. Changing it is an act of the administrator, for which the kernel wants CAP_SYS_ADMIN; what\n"
        "that is about comes below."
    ),
    "uts.copied": "inside, the name began as that of the host",
    "uts.changed": "inside, it is now nsagent-tour",
    "uts.outside": "And outside?",
    "uts.kept": "outside, the name is what it was",
    "uts.capability": (
        "Without --cap-add SYS_ADMIN it does not work, though this is root in a namespace of its own. nsagent\n"
        "gives a job the capabilities that docker gives a container, and SYS_ADMIN is not one of them: it also\n"
        "allows mounts, and a hundred other things that namespaces do not contain. Who wants just another name\n"
        "takes --hostname: then nsagent sets it, before the command begins."
    ),
    "uts.refused": "without the capability the name cannot be changed",
    "pid.about": "How many lines does ps print of the processes of this host?",
    "pid.first": (
        "In a new pid namespace numbers begin at 1 again, and the first process is PID 1, as init is of a\n"
        "host: when it ends, the kernel kills all others in there."
    ),
    "pid.one": "the shell inside is PID 1",
    "pid.few": "inside, ps sees {count} processes, the shell and itself; outside it printed {all} lines",
    "pid.two": (
        "They are the same processes, though: each has a number in its own namespace, and one in every\n"
        "namespace around it. We leave a job running, and look at it from outside."
    ),
    "pid.both": "outside, the process has the number {outside}; inside it is 1",
    "pid.proc": (
        "How does ps know? It reads /proc. And a /proc shows the pid namespace of whoever mounted it: in a new\n"
        "pid namespace the old /proc still shows everybody. nsagent run mounts a fresh one; --no-proc leaves\n"
        "the old one, and then we mount it by hand, for which again SYS_ADMIN is needed."
    ),
    "pid.user": "in a user namespace a new proc is allowed only where nothing of the old one is covered, and nsagent covers some",
    "pid.fresh": "through the old /proc ps sees the whole host, through the fresh one its namespace",
    "mnt.about": (
        "A mnt namespace is a list of mounts. In a new one we mount a file system and put a file there.\n"
        "mount(2) takes SYS_ADMIN; without it there are --tmpfs and --volume, which nsagent mounts itself."
    ),
    "mnt.mounted": "inside, there is a mount, and a file in it",
    "mnt.outside": "And outside, in the same directory?",
    "mnt.empty": "outside, the directory is empty",
    "mnt.unseen": "outside, the list of mounts does not have it",
    "user.about": (
        "A user namespace has user ids of its own, and a map of which ids outside they stand for. The columns of\n"
        "uid_map: first id inside, first id outside, how many. Root of it may do there what root may do, for\n"
        "instance make the other namespaces: that is how an ordinary user gets them. What it does outside it\n"
        "does as the id outside. We have it make a file."
    ),
    "user.root": "inside, it is user 0: root",
    "user.outside": "Whose file is it, seen from outside?",
    "user.mapped": "the file belongs to user {owner}, as the map says",
    "user.nobody": "user {owner} is not root: an escape from there would find itself with no rights",
    "user.yours": "user {owner} is you: it may do outside what you may do, and no more",
    "net.about": (
        "A network namespace has its own interfaces, addresses, routes, and ports. The tour listens on port\n"
        "{port} of 127.0.0.1. A job shares the network of the host unless it is asked for another:"
    ),
    "net.taken": "in the host's network port {port} is taken",
    "net.own": "With a network of its own:",
    "net.bound": "in its own network the job has the same port {port}, at the same time",
    "net.devices": "And the reason why this network harms nobody, and helps little: all that is in it.",
    "net.loopback": "inside, there is a loopback interface and no other",
    "ipc.about": (
        "System V message queues, semaphores and shared memory, and POSIX message queues, have no place in the\n"
        "file system: the ipc namespace says which there are. We leave a job running, and with nsagent exec\n"
        "make a queue in it, and list what there is."
    ),
    "ipc.inside": "inside, there is one queue",
    "ipc.outside": "And outside?",
    "ipc.unseen": "outside, there is no queue with this key",
    "ipc.end": "With the last process the namespace goes, and the queue with it.",
    "time.about": (
        "A time namespace moves two clocks: that since boot, and the monotonic one. The time of day is the same\n"
        "everywhere. It is there so that running containers can be moved to another host.\n"
        "We read for how many seconds the host has been up, before, inside, and after."
    ),
    "time.ahead": "inside, the host has been up for exactly a week longer",
    "cgroup.about": (
        "Namespaces say what a process sees. What it may use, and what it has used, is the business of its\n"
        "cgroup. nsagent gives each job one of its own, with its limits written, and read back, before the\n"
        "command begins; the accounting is the kernel's own."
    ),
    "cgroup.user": "an ordinary user needs a delegated cgroup, as systemd-run --user --scope -p Delegate=yes makes it",
    "cgroup.cpu": (
        "CPU first: {cpus} of a CPU is 5 of each 100 milliseconds. An endless loop of the shell wants\nall of one CPU."
    ),
    "cgroup.wait": "We wait until the kernel has stopped it in {count} such periods, and then end it. Its report:",
    "cgroup.throttled": "it was throttled in {count} periods",
    "cgroup.bounded": "it had {used} of a CPU, with a limit of {cpus} (a period that has begun counts whole)",
    "cgroup.memory": "Memory: tail wants to keep the last line of a file that has no end and no line.",
    "cgroup.oom": "the kernel killed it when it was out of memory, and nothing else on this host felt it",
    "cgroup.peak": "it never had more than {limit}",
    "cgroup.group": (
        "Cgroups are a tree, and a limit holds for all that is below. We make a group that has {cpus} of a CPU,\n"
        "and in it a job without any limit of its own. By hand that would be:"
    ),
    "cgroup.below": "the job is in a cgroup below the group: {cgroup}",
    "cgroup.inherited": "the group was throttled, and its member had {used} of a CPU, with the group's limit of {cpus}",
    "cgroup.disk": "no directory that can be written to is on a disk, whose IO could be limited",
    "cgroup.io": (
        "Another member, which adds a limit of its own: at most one MiB a second to the disk. (dd writes past\n"
        "the page cache, for cgroup v1 limits no other writes.)"
    ),
    "cgroup.both": "it is in the same group, whose CPU limit is its own too: {cgroup}",
    "cgroup.slow": "writing {size} at 1 MiB a second took it {seconds} s",
}
