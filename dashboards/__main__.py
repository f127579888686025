"""Write dashboards/json: `python -m dashboards [DIRECTORY]`."""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import agent, cgroups, containers, jobs, namespaces, node, tracing

_BUILDERS = (node.build, namespaces.build, cgroups.build, jobs.build, containers.build, tracing.build, agent.build)


def render() -> dict[str, str]:
    """Return the JSON of every dashboard by its file's name."""
    built = [build().build() for build in _BUILDERS]
    return {f"{board.uid}.json": JSONEncoder(indent=1, sort_keys=True).encode(board) + "\n" for board in built}


def main() -> None:
    """Write the files, and remove those of dashboards that are no more."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("json"))
    wanted = render()
    for old in directory.glob("*.json"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main()
