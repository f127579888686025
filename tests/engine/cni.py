"""A CNI plugin for a test: gives a pod a device eth0 whose other end, peer0, is in the pod too; it reaches nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_VERSION: Final = "0.4.0"
_PLUGIN: Final = """\
#!/bin/sh
case "$CNI_COMMAND" in
ADD)
    if [ "$CNI_IFNAME" != lo ]; then
        nsenter --net="$CNI_NETNS" sh -ec '
            echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6  # which would send packets of its own
            ip link add "$CNI_IFNAME" type veth peer name peer0
            ip link set "$CNI_IFNAME" up
            ip link set peer0 up' >&2 || exit 1
    fi
    printf '{"cniVersion": "%s", "interfaces": [{"name": "%s", "sandbox": "%s"}], "ips": [%s]}' \\
        @version@ "$CNI_IFNAME" "$CNI_NETNS" '{"version": "4", "address": "192.0.2.2/24", "interface": 0}' ;;
VERSION) echo '{"cniVersion": "@version@", "supportedVersions": ["0.3.1", "@version@"]}' ;;
esac
"""


def install(directory: Path) -> None:
    """Write the plugin to `directory`/bin, as that for lo too, and its configuration to `directory`/conf."""
    for name in ("loopback", "pair"):
        plugin = directory / "bin" / name
        plugin.parent.mkdir(parents=True, exist_ok=True)
        plugin.write_text(_PLUGIN.replace("@version@", _VERSION))
        plugin.chmod(0o755)
    (directory / "conf").mkdir()
    network = {"cniVersion": _VERSION, "name": "nsagent-test", "plugins": [{"type": "pair"}]}
    (directory / "conf" / "1.conflist").write_text(json.dumps(network))
