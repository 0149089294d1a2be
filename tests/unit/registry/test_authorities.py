"""Trust on machines whose OpenSSL finds no authorities by itself."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import pytest

from apparate.errors import FailedPrecondition
from apparate.registry.authorities import add_authorities


@pytest.fixture
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL as it is in the host package: it looks where nothing is."""
    paths = ssl.DefaultVerifyPaths("", "", "SSL_CERT_FILE", "/dev/null/cert.pem", "SSL_CERT_DIR", "/dev/null/certs")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def _empty() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _one_authority(path: Path) -> Path:
    text = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----\n"
    path.write_text(text[text.index("-----BEGIN") : text.index(end) + len(end)])
    return path


def test_the_first_bundle_that_is_there_is_trusted(nothing_found: None, tmp_path: Path) -> None:
    context = _empty()

    add_authorities(context, [tmp_path / "missing", _one_authority(tmp_path / "first"), Path(certifi.where())])

    assert context.cert_store_stats()["x509_ca"] == 1


def test_a_machine_without_a_bundle_trusts_mozillas(nothing_found: None, tmp_path: Path) -> None:
    context = _empty()

    add_authorities(context, [tmp_path / "missing"])

    assert context.cert_store_stats()["x509_ca"] > 50


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_what_the_environment_names_is_not_added_to(
    nothing_found: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "missing"))
    context = _empty()

    add_authorities(context, [Path(certifi.where())])

    assert context.cert_store_stats()["x509_ca"] == 0


def test_a_bundle_that_cannot_be_used_is_refused_by_name(nothing_found: None, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no certificate")

    with pytest.raises(FailedPrecondition, match="broken"):
        add_authorities(_empty(), [broken, Path(certifi.where())])


def test_what_openssl_finds_itself_is_not_added_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cafile = str(_one_authority(tmp_path / "own"))
    paths = ssl.DefaultVerifyPaths(cafile, "", "SSL_CERT_FILE", cafile, "SSL_CERT_DIR", "/dev/null/certs")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    context = _empty()

    add_authorities(context, [Path(certifi.where())])

    assert context.cert_store_stats()["x509_ca"] == 0
