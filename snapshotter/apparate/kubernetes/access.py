"""Where the API server is and who we are to it, as a pod is told (Kubernetes documentation, "Accessing the API from a Pod")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apparate.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Access:
    """One API server and one account.

    Attributes:
        server: URL, without a path.
        ca: file with the authorities that its certificate is held against; None only for a server without TLS.
        token: file with the account's token; None: no token is sent.
    """

    server: str
    ca: Path | None = None
    token: Path | None = None

    @classmethod
    def in_cluster(cls, environ: Mapping[str, str], account_dir: Path = ACCOUNT_DIR) -> Access:
        """Return what kubelet gave this pod.

        Raises:
            FailedPrecondition: this is no pod, or one without a service account's token.
        """
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            raise FailedPrecondition(
                "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: run this in a pod of the cluster"
            )
        ca, token = account_dir / "ca.crt", account_dir / "token"
        for path in (ca, token):
            if not path.exists():
                raise FailedPrecondition(f"{path} is not there: set automountServiceAccountToken: true for this pod")
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", ca, token)

    def read_token(self) -> str:
        """Return the token as it is now: kubelet replaces it before it expires. Empty if none is sent.

        Raises:
            Unavailable: it cannot be read.
        """
        if self.token is None:
            return ""
        try:
            return self.token.read_text()[:TOKEN_BYTES_MAX].strip()
        except OSError as error:
            raise Unavailable(f"service account token {self.token}: {error.strerror}") from error
