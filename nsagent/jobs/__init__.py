"""The registry of launched jobs: files only, no launching. `record` is one of them, `live` and `ended` are where."""

from __future__ import annotations

from nsagent.jobs.ended import KEEP, read_ended
from nsagent.jobs.live import JobFile, abandoned, create, read_live, remove_stale
from nsagent.jobs.record import JobRecord, check_state_dir, default_state_dir, new_id

__all__ = [
    "KEEP",
    "JobFile",
    "JobRecord",
    "abandoned",
    "check_state_dir",
    "create",
    "default_state_dir",
    "new_id",
    "read_ended",
    "read_live",
    "remove_stale",
]
