"""The threads that fetch ahead."""

from __future__ import annotations

import gc
import threading
import weakref

from tests.support.processes import wait_until

from apparate.errors import ApparateError, Unavailable
from apparate.layer.crew import Crew
from apparate.layer.model import Priority


class FailingCampaign:
    """Fails at its only attempt."""

    priority = Priority.PREFETCH
    attempts = 1

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended

    def step(self) -> bool:
        raise Unavailable("not now")

    def end(self, error: ApparateError | None) -> None:
        assert isinstance(error, Unavailable)
        self._ended.set()


def test_a_campaign_that_failed_is_not_kept_until_the_collector_comes_by() -> None:
    """It keeps its layer open: the mapped index of a removed layer would occupy the disk."""
    crew, ended = Crew("test", 1), threading.Event()
    gc.disable()
    try:
        campaign = FailingCampaign(ended)
        kept = weakref.ref(campaign)
        crew.add(campaign)
        del campaign
        assert ended.wait(10)
        wait_until(lambda: kept() is None, "the campaign is gone", 10)
    finally:
        gc.enable()
        crew.close()
