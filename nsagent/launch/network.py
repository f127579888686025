"""The network of a new net namespace: its loopback interface, up. Sources: man 7 netdevice."""

from __future__ import annotations

import _socket
import fcntl
import struct
from typing import Final

_SIOCGIFFLAGS: Final = 0x8913  # include/uapi/linux/sockios.h
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1  # include/uapi/linux/if.h
_WITH_FLAGS: Final = struct.Struct("16sH14x")  # struct ifreq


def loopback_up() -> None:
    """Bring `lo` of the caller's net namespace up; it has 127.0.0.1 and ::1 from then on. Raises OSError (EPERM)."""
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = bytearray(_WITH_FLAGS.pack(b"lo", 0))
    fcntl.ioctl(control.fileno(), _SIOCGIFFLAGS, request)
    name, flags = _WITH_FLAGS.unpack(request)
    fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, _WITH_FLAGS.pack(name, flags | _IFF_UP))
    control.close()
