"""The registry of launched jobs: files only. `record` is one of them, `live` and `ended` are where, `lookup` finds it."""

from __future__ import annotations

from nsagent.jobs.ended import KEEP, read_ended
from nsagent.jobs.live import JobFile, abandoned, create, read_live, remove_stale
from nsagent.jobs.lookup import find
from nsagent.jobs.record import JobRecord, check_state_dir, default_state_dir, new_id

__all__ = [
    "KEEP",
    "JobFile",
    "JobRecord",
    "abandoned",
    "check_state_dir",
    "create",
    "default_state_dir",
    "find",
    "new_id",
    "read_ended",
    "read_live",
    "remove_stale",
]
