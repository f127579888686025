"""Write deploy/kubernetes/base: what the chart renders with its own values, a file a template.

python tools/kubernetes.py [DIRECTORY]         write them
python tools/kubernetes.py --template [JSON]   print what `helm template` would, with these values
python tools/kubernetes.py --lint              print what `helm lint --strict` finds, as JSON
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from helm_python.chart import Chart, lint

_ROOT = Path(__file__).resolve().parent.parent
CHART = _ROOT / "deploy/helm/nsagent"
BASE = _ROOT / "deploy/kubernetes/base"
_HEAD = "# Written by `make kubernetes`, of deploy/helm/nsagent/templates/{name}.\n"


def render(values: str = "{}") -> dict[str, str]:
    """Return what `helm template nsagent --namespace nsagent` makes of each template, by the template's file name."""
    with Chart.load(CHART) as chart:
        made = chart.render(json.loads(values), name="nsagent", namespace="nsagent")
    return {Path(path).name: text.strip() for path, text in sorted(made.items()) if path.endswith(".yaml") and text.strip()}


def write(directory: Path) -> None:
    """Write the files, and remove those of templates that are no more. The dashboards have a kustomization of their own."""
    wanted = render()
    del wanted["dashboards.yaml"]
    for old in directory.glob("*.yaml"):
        if old.name not in wanted and old.name != "kustomization.yaml":
            old.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(_HEAD.format(name=name) + re.sub(r"\s+\n", "\n", text) + "\n")


def main() -> None:
    """Do what the arguments say."""
    match sys.argv[1:]:
        case ["--template", *values]:
            print("\n---\n".join(render(*values).values()))
        case ["--lint"]:
            print(json.dumps(lint(CHART, strict=True)))
        case [] | [_] as where:
            write(Path(where[0]) if where else BASE)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
