"""Basic authentication against bcrypt hashes. Source: RFC 7617.

bcrypt is slow on purpose (50 ms and more), and a scraper comes with the same password each time. So credentials that were right
are known again by a keyed digest of them, compared in constant time; wrong ones are checked anew, one at a time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Mapping
from typing import Final

from nsagent.errors import UnsupportedError, UsageError

INSTALL_HINT: Final = "pip install 'nsagent[web]', or your distribution's python3-yaml and python3-bcrypt"
_HASH: Final = re.compile(r"\$2[abxy]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}", re.ASCII)
_PASSWORD_BYTES: Final = 72  # bcrypt takes no more, and what made the hash has cut it there too


class Users:
    """Users and their hashes; at least one. `allow` may be called from any thread."""

    def __init__(self, hashes: Mapping[str, str], where: str) -> None:
        """`where` is what to name in an error. Raises UsageError for what is no bcrypt hash, UnsupportedError without bcrypt."""
        for user, text in hashes.items():
            if not _HASH.fullmatch(text):
                raise UsageError(f"{where}: {user!r} has no bcrypt hash", hint="htpasswd -nBC 10 USER makes one")
        try:
            import bcrypt
        except ImportError as error:
            raise UnsupportedError("basic_auth_users", "the Python package bcrypt is not installed", hint=INSTALL_HINT) from error
        self._check = bcrypt.checkpw
        self._hashes = {user: text.encode() for user, text in hashes.items()}
        self._decoy = next(iter(self._hashes.values()))
        self._key = os.urandom(32)
        self._known: dict[str, bytes] = {}
        self._checking = threading.Lock()

    def allow(self, authorization: str) -> bool:
        """Tell whether the Authorization header has a user and the password. Who is unknown takes as long as a wrong password."""
        credentials = parse_basic(authorization)
        if credentials is None:
            return False
        user, password = credentials
        digest = hmac.digest(self._key, password, hashlib.sha256)
        if hmac.compare_digest(self._known.get(user, b""), digest):
            return True
        with self._checking:
            right = self._matches(password, self._hashes.get(user, self._decoy)) and user in self._hashes
        if right:
            self._known[user] = digest
        return right

    def _matches(self, password: bytes, text: bytes) -> bool:
        try:
            return bool(self._check(password[:_PASSWORD_BYTES], text))
        except ValueError:  # some versions take no NUL
            return False


def parse_basic(authorization: str) -> tuple[str, bytes] | None:
    """Return user and password of an Authorization header; None where it has none, or is something else."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None
