"""Certificates for a test, made by openssl(1): an authority, and what it has signed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support import require


class Authority:
    """A certificate authority in a directory of its own."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        require(shutil.which("openssl"), "the openssl command is not installed")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key, self.cert = directory / f"{name}.key", directory / f"{name}.crt"
        usage = ("-addext", "keyUsage=critical,keyCertSign")  # Python 3.13 verifies by X509_V_FLAG_X509_STRICT
        self._run("req", "-x509", *self._new(self.key), *usage, "-subj", f"/CN={name}", "-days", "2", "-out", str(self.cert))

    def _run(self, *args: str) -> None:
        subprocess.run(["openssl", *args], check=True, capture_output=True, timeout=120)

    @staticmethod
    def _new(key: Path) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key))

    def sign(self, name: str) -> tuple[Path, Path]:
        """Return the certificate of a new key for 127.0.0.1, and the key."""
        key, request, cert = (self.directory / f"{name}.{suffix}" for suffix in ("key", "csr", "crt"))
        extensions = self.directory / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        self._run("req", *self._new(key), "-subj", f"/CN={name}", "-out", str(request))
        signer = ("-CA", str(self.cert), "-CAkey", str(self.key), "-CAcreateserial", "-extfile", str(extensions))
        self._run("x509", "-req", "-in", str(request), *signer, "-days", "2", "-out", str(cert))
        return cert, key
