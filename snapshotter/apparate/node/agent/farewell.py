"""What stays when a node leaves the chart, because its label or the release has gone: nothing but what containers need.

New images are ordinary from then on. A container on a layer that is not complete still reads from a registry, so credentials
stay while one may be, with a note beside them; the loader completes such layers in quiet times, and takes the note for the
order to remove the credentials as soon as no layer in use needs them (`loader/farewell.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from apparate.errors import ApparateError
from apparate.node import files
from apparate.node.agent import credentials
from apparate.node.agent.services import Services
from apparate.registry.keychain import LEAVING_NAME, cluster_files
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.farewell")

CREDENTIALS_STAY: Final = "credentials stay until no container needs them"


def give_up_credentials(directory: Path, services: Services) -> bool:
    """Remove the credentials of the cluster, now or as soon as no container needs them; return whether it was now.

    Raises:
        Unavailable: the disk does not take it.
    """
    if not cluster_files(directory):
        return True
    if _may_be_needed(services):
        files.replace(directory / LEAVING_NAME, b"", mode=0o600)
        _log.info(CREDENTIALS_STAY, path=str(directory))
        return False
    credentials.remove_all(directory)
    stay(directory)
    return True


def stay(directory: Path) -> None:
    """The node is of the chart again: credentials are not to be removed. Raises Unavailable: the disk does not take it."""
    if directory.exists():
        files.replace(directory / LEAVING_NAME, None)


def _may_be_needed(services: Services) -> bool:
    """Whether a container stands on a layer that may be incomplete; so it is if nobody can tell.

    Whether it is complete the loader knows alone: its metrics are half a minute old, so a container that has just started would
    lose what it reads with.
    """
    try:
        found = services.images()
    except ApparateError:
        return True
    return any(image.containers and image.lazy_layers for image in found)
