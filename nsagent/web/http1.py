"""HTTP/1.1 as far as the agent's server speaks it: one request of a head alone, one answer, a connection each.

Sources: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import errno
import math
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

HEADER_BYTES: Final = 16 << 10
_PIECE: Final = 1 << 18
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Request(NamedTuple):
    """A request line and its headers, by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


class Answer(NamedTuple):
    """A status and a body of some type, in pieces; `more` are further lines of its head."""

    status: int
    body: tuple[bytes, ...]
    type: str = "text/plain; charset=utf-8"
    more: tuple[str, ...] = ()


class BadRequest(Exception):
    """What came is no request that is answered; `status` says why, `more` are lines for the head of the answer."""

    def __init__(self, status: int, *more: str) -> None:
        super().__init__(_REASONS[status])
        self.status = status
        self.more = more


def read_request(client: socket.socket, end: float) -> Request:
    """Read the head of a request, until `end` of the monotonic clock and of HEADER_BYTES at most. Raises BadRequest, OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        left = end - time.monotonic()
        if left <= 0:
            raise BadRequest(408)
        client.settimeout(left)
        try:
            chunk = client.recv(4096)
        except TimeoutError:
            raise BadRequest(408) from None
        if not chunk:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client went away")
        data += chunk
        if len(data) > HEADER_BYTES:
            raise BadRequest(431)
    return parse_request(data.partition(b"\r\n\r\n")[0])


def parse_request(head: bytes) -> Request:
    """Parse a request line and its headers. Raises BadRequest."""
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[0].isalpha() or not words[1].startswith("/"):
        raise BadRequest(400)
    if words[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise BadRequest(505 if words[2].startswith("HTTP/") else 400)
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(400)
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return Request(words[0], words[1], headers)


def accepts_gzip(accept: str) -> bool:
    """Tell whether an Accept-Encoding header allows gzip."""
    for item in accept.lower().split(","):
        coding, *parameters = (word.strip() for word in item.split(";"))
        if coding == "gzip":
            return not any(parameter.replace(" ", "").strip("0.") == "q=" for parameter in parameters)
    return False


def scrape_timeout_s(headers: dict[str, str]) -> float | None:
    """Return for how long a Prometheus waits, as it says with each scrape; None where it is not said, or nonsense."""
    try:
        seconds = float(headers.get("x-prometheus-scrape-timeout-seconds", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def head_of(answer: Answer) -> bytes:
    """Return the head of an answer, to its empty line."""
    length = sum(map(len, answer.body))
    lines = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"Content-Type: {answer.type}",
        f"Content-Length: {length}",
        *answer.more,
        "Vary: Accept, Accept-Encoding",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces: a call for each of ten thousand costs more than the copy, and a copy of all is 25 MB a client."""
    some: list[bytes] = []
    size = 0
    for piece in pieces:
        if some and size + len(piece) > _PIECE:
            yield b"".join(some)
            some, size = [], 0
        some.append(piece)
        size += len(piece)
    yield b"".join(some)
