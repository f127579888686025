#!/bin/bash
# Build the Debian package of this tree, by dpkg-buildpackage. Usage: deploy/debian/build.sh DIRECTORY (where the .deb goes)
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/nsagent"
cd "$tree"
cp -a --parents nsagent bpf tools/commands.py dashboards/json deploy/completions deploy/systemd deploy/prometheus README.md CHANGELOG.md LICENSE "$work/nsagent"
cp -a deploy/debian "$work/nsagent/debian"
cd "$work/nsagent"
dpkg-buildpackage --build=binary --no-sign --no-pre-clean >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
cp "$work"/*.deb "$out"
ls "$out"/*.deb
