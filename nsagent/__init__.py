"""nsagent: what every namespace and cgroup of a Linux node consumes, exactly; who changes them; and jobs launched into them.

Importing this package imports nothing else (`nsagent run` must start fast); public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without an import
if TYPE_CHECKING:
    from nsagent.launch.api import run as run
    from nsagent.launch.report import RunResult as RunResult
    from nsagent.launch.spec import RunSpec as RunSpec

_PUBLIC = {"run": "nsagent.launch.api", "RunSpec": "nsagent.launch.spec", "RunResult": "nsagent.launch.report"}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
