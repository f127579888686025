"""The TLS part of a web configuration: exporter-toolkit's words, which are Go's, as Python's ssl has them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nsagent.errors import AccessError, ParseError, UsageError

if TYPE_CHECKING:
    import ssl

_VERSIONS: Final = {"TLS10": "TLSv1", "TLS11": "TLSv1_1", "TLS12": "TLSv1_2", "TLS13": "TLSv1_3"}
_CLIENTS: Final = {  # Go's names, and which of Python's verify_mode each is
    "": "CERT_NONE",
    "NoClientCert": "CERT_NONE",
    "RequestClientCert": "CERT_NONE",  # asks for one and takes any, or none: the same for who connects
    "VerifyClientCertIfGiven": "CERT_OPTIONAL",
    "RequireAndVerifyClientCert": "CERT_REQUIRED",
}
_SUITE: Final = re.compile(
    r"TLS_(ECDHE_RSA|ECDHE_ECDSA)_WITH_(?:AES_(128|256)_(GCM_SHA256|GCM_SHA384|CBC_SHA|CBC_SHA256)|CHACHA20_POLY1305(?:_SHA256)?)"
)
_SUITES_13: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


def files_of(found: Mapping[str, Any], path: str) -> dict[str, str]:
    """Return the paths that are named, by their keys."""
    where = f"{path}: tls_server_config"
    for key in ("cert_file", "key_file", "client_ca_file", "client_auth_type", "min_version", "max_version"):
        if not isinstance(found.get(key, ""), str):
            raise UsageError(f"{where}: {key} is no text")
    directory = os.path.dirname(os.path.abspath(path))
    files = {key: os.path.join(directory, found[key]) for key in ("cert_file", "key_file", "client_ca_file") if found.get(key)}
    for key in ("cert_file", "key_file"):
        if key not in files:
            raise UsageError(f"{where}: {key} is missing")
    verified = _one_of(_CLIENTS, found, "client_auth_type", "", where) != "CERT_NONE"
    if verified and "client_ca_file" not in files:
        raise UsageError(f"{where}: client_ca_file is missing", hint="it has the CA whose client certificates are let in")
    if "client_ca_file" in files and not verified:
        hint = "client_auth_type: RequireAndVerifyClientCert lets nobody in without a certificate of that CA"
        raise UsageError(f"{where}: client_ca_file means nothing without client_auth_type", hint=hint)
    return files


def make_context(found: Mapping[str, Any], files: Mapping[str, str], path: str) -> ssl.SSLContext:
    import ssl

    where = f"{path}: tls_server_config"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    least = ssl.TLSVersion[_one_of(_VERSIONS, found, "min_version", "TLS12", where)]
    most = ssl.TLSVersion[_one_of(_VERSIONS, found, "max_version", "TLS13", where)]
    if least > most:
        raise UsageError(f"{where}: min_version is above max_version")
    context.minimum_version, context.maximum_version = least, most
    context.set_alpn_protocols(["http/1.1"])
    prefer = found.get("prefer_server_cipher_suites", True)
    if not isinstance(prefer, bool):
        raise UsageError(f"{where}: prefer_server_cipher_suites is true or false")
    if prefer:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if suites := _ciphers(found.get("cipher_suites") or [], where):
        context.set_ciphers(":".join(suites))
    _load_certificates(context, **files)
    context.verify_mode = ssl.VerifyMode[_one_of(_CLIENTS, found, "client_auth_type", "", where)]
    return context


def _load_certificates(context: ssl.SSLContext, cert_file: str, key_file: str, client_ca_file: str = "") -> None:
    import ssl

    for path in filter(None, (cert_file, key_file, client_ca_file)):
        try:
            with open(path, "rb"):  # ssl does not say which of them it could not read
                pass
        except OSError as error:
            raise AccessError(f"cannot read {path}: {error.strerror}", hint="see tls_server_config") from error
    doing = f"{cert_file} with {key_file}"
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
        if client_ca_file:
            doing = client_ca_file
            context.load_verify_locations(cafile=client_ca_file)
    except ssl.SSLError as error:
        raise ParseError(f"no certificate in PEM, or not with that key: {error.reason or error}", path=doing) from error
    except (OSError, ValueError) as error:
        raise ParseError(str(error), path=doing) from error


def _one_of(known: Mapping[str, str], found: Mapping[str, Any], key: str, default: str, where: str) -> str:
    value = found.get(key, default)
    if value not in known:
        raise UsageError(f"{where}: {key} cannot be {value!r}", hint=f"there are {', '.join(filter(None, known))}")
    return known[value]


def _ciphers(found: Any, where: str) -> list[str]:
    """Go's names to OpenSSL's: TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 is ECDHE-RSA-AES128-GCM-SHA256.

    Those of TLS 1.3 are always on, as in Go.
    """
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"{where}: cipher_suites is no list of names")
    names = []
    for name in found:
        match = _SUITE.fullmatch(name)
        if match:
            cipher = f"AES{match[2]}-{match[3].removeprefix('CBC_')}" if match[2] else "CHACHA20-POLY1305"
            names.append(f"{match[1]}-{cipher}".replace("_", "-"))
        elif name not in _SUITES_13:
            raise UsageError(f"{where}: cipher_suites: {name!r} is not known here", hint="those with ECDHE are, by Go's names")
    return names


def _no_password() -> str:
    raise ValueError("the key has a password: give it one without")  # or OpenSSL would ask for it at the terminal
