"""nsagent: what every namespace and cgroup of a Linux node consumes, exactly; who changes them; and jobs launched into them.

Importing this package imports nothing else (`nsagent run` must start fast); public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

__version__ = "0.1.0"
