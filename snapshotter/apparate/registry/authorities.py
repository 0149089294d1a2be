"""Which certificate authorities are trusted on this machine.

Distributions keep them in different places, and an OpenSSL that came with the program knows none of these. What OpenSSL
itself finds goes first; it obeys SSL_CERT_FILE and SSL_CERT_DIR.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import certifi

from apparate.errors import FailedPrecondition

BUNDLES: Final = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),  # CentOS, TencentOS, Fedora
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # the same, before version 7
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE
    Path("/etc/ssl/cert.pem"),  # Alpine
)


def add_authorities(context: ssl.SSLContext, bundles: Sequence[Path] = BUNDLES) -> None:
    """Have *context*, a default one, trust this machine's authorities, or those of Mozilla where the machine has none.

    Raises:
        FailedPrecondition: a bundle is there and cannot be used; another one would be another decision about whom to trust.
    """
    found = ssl.get_default_verify_paths()
    if found.cafile or found.capath or found.openssl_cafile_env in os.environ or found.openssl_capath_env in os.environ:
        return
    bundle = next((path for path in bundles if path.exists()), Path(certifi.where()))
    try:
        context.load_verify_locations(bundle)
    except OSError as error:  # ssl.SSLError is one
        raise FailedPrecondition(f"authorities in {bundle} cannot be used: {error.strerror or error}") from error
