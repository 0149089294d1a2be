"""Results of threads, in the order in which the work was given out."""

from __future__ import annotations

from collections import deque
from concurrent.futures import wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

T = TypeVar("T")


def in_order(jobs: Iterator[Future[T]], ahead: int) -> Iterator[T]:
    """Yield the results of *jobs* in their order, with at most *ahead* of them begun; none is left running on an error."""
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(job)
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for job in pending:
            job.cancel()
        wait(pending)
