"""The tour in Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TEXTS: Final[Mapping[str, str]] = {
    "title.uts": "uts：自己的主机名",
    "title.pid": "pid：当一回 1 号进程",
    "title.mnt": "mnt：别人看不见的挂载",
    "title.user": "user：里面是 root，外面谁也不是",
    "title.net": "net：同一个端口绑定两次",
    "title.ipc": "ipc：外面找不到的消息队列",
    "title.time": "time：快一个星期的时钟",
    "title.cgroup": "cgroup：真正生效的限制",
    "ask": "[按回车执行，按 Ctrl-C 结束导览]",
    "holds": "成立",
    "false": "不成立",
    "not_shown": "此处无法演示：{reason}",
    "untraced": "不显示系统调用：{reason}",
    "untraced.asked": "--no-trace",
    "untraced.late": "一分钟内没有看到这次调用",
    "missing": "没有安装 {what}",
    "interrupted": "导览已中止，它创建的东西都已清除。",
    "nothing": "这台主机上什么也演示不了",
    "end.true": "共 {claims} 个论断，全部成立。导览没有在这台主机上留下任何东西。",
    "end.false": "{claims} 个论断中有 {false} 个不成立。导览没有在这台主机上留下任何东西。",
    "evidence.links": "命名空间",
    "evidence.trace": "跟踪",
    "evidence.usage": "记账",
    "links": "外面 {outside}，里面 {inside}",
    "differs": "里外是两个不同的 {kind} 命名空间",
    "uts.about": "进程看到的主机名属于它所在的 uts 命名空间。新建的命名空间先复制旧的主机名，此后两边各改各的。\n这台主机叫：",
    "uts.change": (
        "nsagent run 让命令在新的 cgroup、ipc、mnt、pid 和 uts 命名空间里启动。我们在里面改主机名。\n"
        "改名属于管理员操作，内核要求 CAP_SYS_ADMIN；原因下面会说。"
    ),
    "uts.copied": "在里面，主机名起初与外面相同",
    "uts.changed": "在里面，主机名现在是 nsagent-tour",
    "uts.outside": "外面呢？",
    "uts.kept": "在外面，主机名没有变",
    "uts.capability": (
        "去掉 --cap-add SYS_ADMIN 就不行了，尽管这是 root，又在自己的命名空间里。nsagent 给作业的权能与 docker\n"
        "给容器的一样，其中没有 SYS_ADMIN：它还允许挂载，以及上百种命名空间管不住的操作。如果只想换个名字，\n"
        "用 --hostname 即可：nsagent 会在命令开始之前设好。"
    ),
    "uts.refused": "没有这项权能就改不了主机名",
    "pid.about": "在这台主机上，ps 会列出多少行进程？",
    "pid.first": (
        "新的 pid 命名空间重新从 1 开始编号。第一个进程就是 1 号进程，地位相当于主机上的 init：\n"
        "它一结束，内核就杀死其中所有其他进程。"
    ),
    "pid.one": "里面的 shell 是 1 号进程",
    "pid.few": "在里面，ps 只看到 {count} 个进程：shell 和它自己；在外面它列出了 {all} 行",
    "pid.two": (
        "其实还是同样的进程：每个进程在自己的命名空间里有一个编号，在外面每一层命名空间里也各有一个编号。\n"
        "我们让一个作业在后台运行，再从外面看它。"
    ),
    "pid.both": "在外面它的编号是 {outside}，在里面是 1",
    "pid.proc": (
        "ps 是怎么知道的？它读 /proc。而一个 /proc 显示的是挂载者所在的 pid 命名空间：进了新的 pid 命名空间，\n"
        "旧的 /proc 照样显示所有进程。nsagent run 会挂上一个新的；--no-proc 则保留旧的，我们再亲手挂载，\n"
        "这同样需要 SYS_ADMIN。"
    ),
    "pid.user": "在用户命名空间里，只有旧的 proc 没有任何部分被遮盖时，内核才允许挂载新的，而 nsagent 遮盖了一部分",
    "pid.fresh": "透过旧的 /proc，ps 看到整台主机；透过新的，只看到自己的命名空间",
    "mnt.about": (
        "mnt 命名空间就是一张挂载表。我们在新的命名空间里挂载一个文件系统，再放进一个文件。\n"
        "mount(2) 需要 SYS_ADMIN；没有它也可以用 --tmpfs 和 --volume，由 nsagent 代为挂载。"
    ),
    "mnt.mounted": "在里面，有这个挂载，里面有这个文件",
    "mnt.outside": "在外面，同一个目录呢？",
    "mnt.empty": "在外面，目录是空的",
    "mnt.unseen": "在外面，挂载表里没有它",
    "user.about": (
        "用户命名空间有自己的用户编号，还有一张映射表，说明它们对应外面的哪些编号。uid_map 的三列依次是：\n"
        "里面的起始编号、外面的起始编号、个数。里面的 root 在里面可以做 root 能做的事，例如创建其他命名空间：\n"
        "普通用户正是这样得到它们的。而它对外面所做的一切，都以外面的编号进行。我们让它创建一个文件。"
    ),
    "user.root": "在里面，它是 0 号用户，即 root",
    "user.outside": "从外面看，这个文件属于谁？",
    "user.mapped": "文件属于用户 {owner}，与映射表一致",
    "user.nobody": "用户 {owner} 不是 root：即使从里面逃出来，也没有任何特权",
    "user.yours": "用户 {owner} 就是你：在外面，它能做的不会比你多",
    "net.about": (
        "网络命名空间有自己的网络接口、地址、路由和端口。导览正在监听 127.0.0.1 的 {port} 端口。\n"
        "如果不另外要求，作业使用主机的网络："
    ),
    "net.taken": "在主机的网络里，{port} 端口已被占用",
    "net.own": "给它一个自己的网络：",
    "net.bound": "在自己的网络里，作业同时绑定了同一个 {port} 端口",
    "net.devices": "这个网络为什么妨碍不了别人，自己也没有多大用处？里面的东西全在这里了：",
    "net.loopback": "在里面，只有一个环回接口",
    "ipc.about": (
        "System V 的消息队列、信号量和共享内存，以及 POSIX 消息队列，在文件系统里没有位置：有哪些，由 ipc\n"
        "命名空间决定。我们让一个作业在后台运行，用 nsagent exec 在里面创建一个队列，再列出来。"
    ),
    "ipc.inside": "在里面，有一个队列",
    "ipc.outside": "外面呢？",
    "ipc.unseen": "在外面，没有这个键值的队列",
    "ipc.end": "最后一个进程结束时，命名空间随之消失，队列也一起消失。",
    "time.about": (
        "时间命名空间可以拨动两个时钟：开机以来的时钟和单调时钟；日历时间到处都一样。把运行中的容器迁移到\n"
        "另一台主机时，就要用到它。我们分别在之前、在里面、在之后读取主机已经运行了多少秒。"
    ),
    "time.ahead": "在里面，主机的运行时间正好多出一个星期",
    "cgroup.about": (
        "命名空间决定进程看得见什么；可以用多少、已经用了多少，则由 cgroup 负责。nsagent 给每个作业一个自己的\n"
        "cgroup，限制在命令开始之前写入，并读回核对；用量则由内核自己记账。"
    ),
    "cgroup.user": "普通用户需要一个委派给他的 cgroup，例如用 systemd-run --user --scope -p Delegate=yes 得到的那种",
    "cgroup.cpu": "先看 CPU：{cpus} 个 CPU 就是每 100 毫秒里的 5 毫秒。而 shell 的死循环想占满一个 CPU。",
    "cgroup.wait": "等到内核在 {count} 个这样的周期里让它停下来，我们就结束它。它的报告：",
    "cgroup.throttled": "它在 {count} 个周期里被限流",
    "cgroup.bounded": "它用了 {used} 个 CPU，上限是 {cpus}（开始了的周期按整个算）",
    "cgroup.memory": "再看内存：tail 想留住最后一行，可这个文件既没有结尾，也没有换行。",
    "cgroup.oom": "内存用尽时内核杀死了它，主机上的其他进程毫无察觉",
    "cgroup.peak": "它的用量从未超过 {limit}",
    "cgroup.group": (
        "cgroup 是一棵树，一处限制管住下面的一切。我们建一个只有 {cpus} 个 CPU 的组，在组里运行一个自己没有任何\n"
        "限制的作业。如果亲手来做，就是："
    ),
    "cgroup.below": "作业在组下面的 cgroup 里：{cgroup}",
    "cgroup.inherited": "组被限流，它的成员用了 {used} 个 CPU，而组的上限是 {cpus}",
    "cgroup.disk": "没有哪个可写的目录在可以限制 IO 的磁盘上",
    "cgroup.io": (
        "组里再加一个成员，它还有自己的限制：每秒最多向磁盘写 1 MiB。（dd 绕过页缓存写入，因为 cgroup v1\n"
        "不限制其他方式的写入。）"
    ),
    "cgroup.both": "它在同一个组里，组的 CPU 限制对它同样有效：{cgroup}",
    "cgroup.slow": "以每秒 1 MiB 的速度写 {size}，用了 {seconds} 秒",
}
