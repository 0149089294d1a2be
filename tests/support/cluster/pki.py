"""Certificates of a cluster, by openssl; nothing of them leaves the run's folder but into its own machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.processes import run

_DAYS: Final = "365"
_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority in *folder*; `ca` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.crt"
        self.ca_key = folder / "ca.key"
        extensions = (
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        command: list[str | Path] = [
            "openssl",
            "req",
            "-x509",
            *_NEW_KEY,
            "-keyout",
            self.ca_key,
            "-out",
            self.ca,
            "-days",
            _DAYS,
        ]
        run([*command, "-subj", f"/CN={name}", *extensions])

    def issue(self, name: str, subject: str, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Return certificate and key for *subject* (as openssl writes it), for client and server; *names* as `DNS:a`, `IP:b`."""
        cert, key, request, extensions = (self._folder / f"{name}.{end}" for end in ("crt", "key", "csr", "ext"))
        lines = ["extendedKeyUsage=serverAuth,clientAuth"]
        if names:
            lines.append(f"subjectAltName={','.join(names)}")
        extensions.write_text("\n".join(lines) + "\n")
        run(["openssl", "req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", subject])
        sign: list[str | Path] = [
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.ca,
            "-CAkey",
            self.ca_key,
            "-CAcreateserial",
        ]
        run([*sign, "-out", cert, "-days", _DAYS, "-extfile", extensions])
        return cert, key


def service_account_keys(folder: Path) -> tuple[Path, Path]:
    """Return the private and the public key with which tokens of service accounts are signed and checked."""
    private, public = folder / "sa.key", folder / "sa.pub"
    run(["openssl", "genrsa", "-out", private, "2048"])
    run(["openssl", "rsa", "-in", private, "-pubout", "-out", public])
    return private, public
