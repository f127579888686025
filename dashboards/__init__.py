"""Grafana dashboards of what nsagent exports, written in Python; `python -m dashboards` writes dashboards/json."""
