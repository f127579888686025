"""The child's stages of ids: root of a new user namespace first, to make the job; then the user that CMD runs as."""

from __future__ import annotations

import os
from typing import NamedTuple

from nsagent.launch.handshake import Step


class Identity(NamedTuple):
    """`maker`: (uid, gid) in a user namespace that make the job: 0 where it is mapped. `set_groups`: is setgroups(2) allowed,
    as far as is known: of a namespace that was `joined` it is not.

    `user`: (uid, gid, supplementary groups) that CMD has in the end; None for those that are there.
    """

    maker: tuple[int, int] | None = None
    set_groups: bool = True
    user: tuple[int, int, tuple[int, ...]] | None = None
    joined: bool = False


def become_maker(plan: Identity, step: Step) -> None:
    """Have ids that exist inside: what is made in the job's mounts belongs to them. Capabilities are complete already."""
    if plan.maker is not None:
        uid, gid = plan.maker
        step("ids", "setresuid", f"{uid}:{gid}")
        if plan.set_groups:
            _drop_groups(plan.joined)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def _drop_groups(may_fail: bool) -> None:
    try:
        os.setgroups([])
    except PermissionError:  # its /proc/PID/setgroups says "deny"
        if not may_fail:
            raise


def become_user(plan: Identity, step: Step) -> None:
    """Be the user of CMD; capabilities go with uid 0 (capabilities(7)), but for those of the bounding set on execve."""
    if plan.user is None:
        return
    uid, gid, groups = plan.user
    if plan.set_groups:
        step("user", "setgroups", " ".join(map(str, groups)))
        os.setgroups(groups)
    step("user", "setresgid", str(gid))
    os.setresgid(gid, gid, gid)
    step("user", "setresuid", str(uid))
    os.setresuid(uid, uid, uid)
