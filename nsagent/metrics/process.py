"""The exposition of the agent's own process: prometheus_client's, as every exporter has it."""

from __future__ import annotations

from typing import Any


class Process:
    """The exposition of process_* and python_info. prometheus_client is imported when first asked for: it costs 8 MB."""

    def __init__(self) -> None:
        self._registry: Any = None

    def __call__(self, openmetrics: bool) -> bytes:
        """Return it in one of the two formats, without the EOF line."""
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, exposition
        from prometheus_client.openmetrics import exposition as open_exposition

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
        generate = open_exposition.generate_latest if openmetrics else exposition.generate_latest
        return bytes(generate(self._registry)).removesuffix(b"# EOF\n")
