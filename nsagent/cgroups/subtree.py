"""Whether a cgroup lies below another, by their ids in the accounting hierarchy: for filters on events."""

from __future__ import annotations

import os

from nsagent.cgroups.layout import Layout
from nsagent.errors import AccessError, UsageError


class Subtree:
    """The cgroup at `path` (from the root of the accounting hierarchy) and those below it, also those made later.

    One that was made and removed before its first event was looked at is not recognised. Not thread-safe.

    Raises:
        UsageError: there is no such cgroup in the hierarchy whose cgroups are charged.
        AccessError: it may not be read.
    """

    def __init__(self, layout: Layout, path: str) -> None:
        hierarchy = layout.accounting[1]
        self._directory = hierarchy.directory("/" + path.strip("/")) or ""
        try:
            self.id = os.stat(self._directory).st_ino
        except FileNotFoundError:
            hint = f"it is looked for below {hierarchy.mountpoint}"
            raise UsageError(f"there is no cgroup {path} where usage is charged", hint=hint) from None
        except OSError as error:
            raise AccessError(f"{self._directory}: {error.strerror}") from error
        self._known = {self.id: True}

    def __call__(self, cgroup: int) -> bool:
        """Tell whether the cgroup with that id is in the subtree. An id that is new costs a walk of the subtree."""
        known = self._known.get(cgroup)
        if known is None:
            for place, _, _ in os.walk(self._directory):
                try:
                    self._known[os.stat(place).st_ino] = True
                except OSError:
                    continue  # removed meanwhile
            known = self._known.setdefault(cgroup, False)
        return known
