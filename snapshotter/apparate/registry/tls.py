"""TLS contexts from a TlsConfig."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from apparate.errors import FailedPrecondition
from apparate.registry.authorities import add_authorities

if TYPE_CHECKING:
    from apparate.registry.endpoint import TlsConfig


def context_for(config: TlsConfig) -> ssl.SSLContext:
    """Return a client context: the system's authorities and those of *config*, and its client certificates.

    Raises:
        FailedPrecondition: a certificate or key cannot be read or does not fit; the message names the file.
    """
    if config.skip_verify:
        # The operator has said so for this host, in hosts.toml. Bytes are proven by their digests all the same; credentials
        # are what is at risk. Without the system's authorities, which take 20 ms and a megabyte to load.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
        add_authorities(context)
    for path in config.ca_files:
        try:
            context.load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is one
            raise FailedPrecondition(f"CA certificate {path} cannot be used: {_reason(error)}") from error
    for certificate, key in config.client_pairs:
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (OSError, ValueError) as error:
            raise FailedPrecondition(
                f"client certificate {certificate} with key {key or certificate} cannot be used: {_reason(error)}"
            ) from error
    return context


def speaks_plain_http(error: ssl.SSLError) -> bool:
    """Whether a failed handshake says that the server answered it in plain HTTP."""
    return error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ValueError("the key is encrypted; store it without a passphrase, readable by root alone")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
