"""The web configuration: what is taken, what is refused and how, and when it is read again."""

from __future__ import annotations

import base64
import logging
import os
import ssl
import sys
from pathlib import Path

import bcrypt
import pytest

from nsagent.errors import AccessError, NsagentError, ParseError, UnsupportedError, UsageError
from nsagent.web import auth, tls
from nsagent.web import config as webconfig
from nsagent.web.auth import Users
from nsagent.web.config import WebConfig
from tests.certificates import Authority

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.sign("server")
    return authority


def write(authority: Authority, text: str) -> str:
    path = authority.directory / "web.yml"
    path.write_text(text)
    return str(path)


TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
MUTUAL = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"


def test_an_empty_file_asks_for_nothing(authority: Authority) -> None:
    web = webconfig.read(write(authority, ""))
    assert (web.tls, web.users, web.headers) == (None, None, ())


def test_all_that_is_taken(authority: Authority) -> None:
    text = MUTUAL + "  min_version: TLS13\n  max_version: TLS13\n  prefer_server_cipher_suites: false\n"
    text += "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256]\n"
    text += (
        "http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n    Strict-Transport-Security: max-age=9\n"
    )
    web = webconfig.read(write(authority, text + f"basic_auth_users:\n  alice: '{HASH}'\n"))
    assert web.tls is not None
    assert (web.tls.minimum_version, web.tls.verify_mode) == (ssl.TLSVersion.TLSv1_3, ssl.CERT_REQUIRED)
    below = {c["name"] for c in web.tls.get_ciphers() if c["protocol"] != "TLSv1.3"}
    assert below == {"ECDHE-ECDSA-AES256-GCM-SHA384"}
    assert web.headers == ("X-Frame-Options: deny", "Strict-Transport-Security: max-age=9")
    assert [os.path.basename(path) for path in web.files] == ["web.yml", "server.crt", "server.key", "ca.crt"]
    assert web.users is not None
    assert web.users.allow(basic("alice", "secret"))


def test_every_cipher_suite_of_go_that_is_taken_is_openssls() -> None:
    kinds = ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "AES_128_CBC_SHA", "AES_256_CBC_SHA", "CHACHA20_POLY1305_SHA256")
    suites = [f"TLS_ECDHE_{key}_WITH_{kind}" for key in ("RSA", "ECDSA") for kind in kinds]
    for name in tls._ciphers(suites, ""):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers(name)
        assert name in {cipher["name"] for cipher in context.get_ciphers()}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("tls_server_confg: {}\n", UsageError, "no setting is called 'tls_server_confg'"),
        (TLS + "  ciphers: []\n", UsageError, "tls_server_config: no setting is called 'ciphers'"),
        (TLS + "  client_allowed_sans: [a]\n", UsageError, "client_allowed_sans is not supported by nsagent"),
        ("rate_limit: {}\n", UsageError, "rate_limit is not supported by nsagent"),
        ("http_server_config: {headers: {X-Other: a}}\n", UsageError, "no setting is called 'X-Other'"),
        ("http_server_config: {headers: {X-Frame-Options: allow}}\n", UsageError, "X-Frame-Options cannot be 'allow'"),
        ('http_server_config: {headers: {X-XSS-Protection: "0\\r\\nA: b"}}\n', UsageError, "X-XSS-Protection cannot be"),
        ("http_server_config: {http2: maybe}\n", UsageError, "http2 is true or false"),
        ("- a\n", UsageError, "no keys with values"),
        ("basic_auth_users: [a]\n", UsageError, "basic_auth_users has no keys with values"),
        ("basic_auth_users: {a: plain}\n", UsageError, "'a' has no bcrypt hash"),
        ("basic_auth_users: {1: x}\n", UsageError, "1 is no user with a hash"),
        ("a: [\n", ParseError, r"web.yml:2: not YAML"),
        ("tls_server_config: {cert_file: server.crt}\n", UsageError, "key_file is missing"),
        ("tls_server_config: {key_file: server.key}\n", UsageError, "cert_file is missing"),
        ("tls_server_config: {cert_file: 1, key_file: a}\n", UsageError, "cert_file is no text"),
        ("tls_server_config: {cert_file: none.crt, key_file: server.key}\n", AccessError, "cannot read .*none.crt"),
        ("tls_server_config: {cert_file: server.crt, key_file: ca.key}\n", ParseError, "server.crt with .*ca.key"),
        ("tls_server_config: {cert_file: web.yml, key_file: server.key}\n", ParseError, "no certificate in PEM"),
        (TLS + "  min_version: TLS14\n", UsageError, "min_version cannot be 'TLS14'"),
        (TLS + "  min_version: TLS13\n  max_version: TLS12\n", UsageError, "min_version is above max_version"),
        (TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", UsageError, "'TLS_RSA_WITH_RC4_128_SHA' is not known"),
        (TLS + "  client_auth_type: RequireAnyClientCert\n", UsageError, "cannot be 'RequireAnyClientCert'"),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert\n", UsageError, "client_ca_file is missing"),
        (TLS + "  client_ca_file: ca.crt\n", UsageError, "means nothing without client_auth_type"),
    ],
)
def test_what_is_refused(authority: Authority, text: str, error: type[NsagentError], words: str) -> None:
    with pytest.raises(error, match=words):
        webconfig.read(write(authority, text))


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(authority: Authority) -> None:
    authority._run("ec", "-in", str(authority.directory / "server.key"), "-aes256", "-passout", "pass:x",
                   "-out", str(authority.directory / "locked.key"))  # fmt: skip
    with pytest.raises(ParseError, match="has a password"):
        webconfig.read(write(authority, TLS.replace("server.key", "locked.key")))


@pytest.mark.parametrize(("module", "text"), [("yaml", ""), ("bcrypt", f"basic_auth_users: {{a: '{HASH}'}}\n")])
def test_a_missing_package_is_named_with_its_remedy(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, module: str, text: str
) -> None:
    path = write(authority, text)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError, match="is not installed") as raised:
        webconfig.read(path)
    assert "nsagent[web]" in raised.value.hint


def test_it_is_read_again_when_a_file_changes_and_kept_when_that_is_no_good(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = Authority(tmp_path / "tls")
    here.sign("server")
    path = here.directory / "web.yml"
    path.write_text(TLS)
    config = WebConfig(str(path))
    first = config.current()
    assert config.current() is first
    here.sign("server")  # a new certificate, the same file
    second = config.current()
    assert second is not first
    assert config.current() is second
    path.write_text("nonsense: 1\n")
    with caplog.at_level(logging.WARNING, "nsagent"):
        assert config.current() is second
        assert config.current() is second
    assert [record.getMessage().split()[0] for record in caplog.records] == ["event=web_config_kept"]
    path.write_text(f"basic_auth_users: {{alice: '{HASH}'}}\n")
    third = config.current()
    assert third.users is not None
    assert third.tls is None
    path.unlink()
    assert config.current() is third


def test_users_are_checked_by_bcrypt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = HASH.replace("$2b$", "$2y$")  # what htpasswd writes
    users = Users({"alice": HASH, "bob": other}, "")
    asked: list[bytes] = []
    check = users._check

    def counted(password: bytes, text: bytes) -> bool:
        asked.append(password)
        return check(password, text)

    monkeypatch.setattr(users, "_check", counted)
    assert [users.allow(basic("alice", "secret")) for _ in range(3)] == [True] * 3
    assert users.allow(basic("bob", "secret"))
    assert asked == [b"secret"] * 2
    assert [users.allow(basic(*who)) for who in (("alice", "Secret"), ("alice", ""), ("carol", "secret"))] == [False] * 3
    assert asked[2:] == [b"Secret", b"", b"secret"], "who is unknown costs as much as who is not"
    assert not users.allow(basic("carol", "secret"))
    assert users.allow(basic("alice", "secret"))


def test_a_long_password_is_cut_as_bcrypt_does() -> None:
    users = Users({"alice": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()}, "")
    assert users.allow(basic("alice", "x" * 100))
    assert not users.allow(basic("alice", "x" * 71))
    assert not users.allow(basic("alice", "\0"))


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic !!!", "Bearer YTpi", "Basic YQ==", "Basic /zph", "Digest x", "Basic YTpi YTpi"]
)
def test_no_credentials(header: str) -> None:
    assert auth.parse_basic(header) is None


def test_credentials() -> None:
    assert auth.parse_basic(basic("alice", "a:b")) == ("alice", b"a:b")
    assert auth.parse_basic("bASIC YTo=") == ("a", b"")
