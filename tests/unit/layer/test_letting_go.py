"""An error that was raised keeps no layer open: the mapped index of a removed layer would occupy the disk."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from tests.support.layers import FakeBody, FakeRegistry, Refused
from tests.support.processes import wait_until
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import resolve, sample_layer

from apparate.errors import ApparateError, IntegrityError, RegistryError, Unavailable
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.settings import LayerSettings
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported


@pytest.fixture
def impatient(open_manager: ManagerFactory, settings: LayerSettings) -> LayerManager:
    return open_manager(replaced(settings, read_deadline_s=0.3))


@contextmanager
def let_go(manager: LayerManager, image: LayerImage) -> Iterator[None]:
    """Do something with *image*, remove it, and see that it is gone without the collector of cycles."""
    gone, digest = weakref.ref(image), image.digest
    gc.collect()
    gc.disable()
    try:
        yield
        del image
        manager.remove(digest)
        wait_until(lambda: gone() is None, "the image to be freed", 10.0)
    finally:
        gc.enable()


def fails_with(call: Callable[[], object], error: type[ApparateError]) -> None:
    try:  # pytest.raises would keep the traceback
        call()
    except error:
        return
    pytest.fail("it did not fail")


def away(_offset: int, _length: int, _right: bytes) -> None:
    raise Unavailable("connection refused")


def refused(_offset: int, _length: int, _right: bytes) -> None:
    raise RegistryError("GET", "http://registry.test/", 403)


def test_a_read_that_failed(impatient: LayerManager, registry: FakeRegistry) -> None:
    images = [resolve(impatient, registry, sample_layer())]
    registry.fault = away
    with let_go(impatient, images[0]):
        fails_with(lambda: images[0].read(images[0].metadata_size, 4096), Unavailable)
        images.clear()


def test_a_read_of_wrong_bytes(impatient: LayerManager, registry: FakeRegistry) -> None:
    images = [resolve(impatient, registry, sample_layer())]
    registry.fault = lambda offset, _, right: FakeBody(right[:50] + b"?" + right[51:], offset, None)
    with let_go(impatient, images[0]):
        fails_with(lambda: images[0].read(images[0].metadata_size, 4096), ApparateError)
        images.clear()


def test_readers_that_shared_a_request_that_failed(impatient: LayerManager, registry: FakeRegistry) -> None:
    images = [resolve(impatient, registry, sample_layer())]
    registry.fault = away
    with let_go(impatient, images[0]), ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(images[0].read, images[0].metadata_size, 4096) for _ in range(4)]
        for call in calls:
            assert isinstance(call.exception(), Unavailable)
        images.clear()
        del call, calls


def test_a_completion_that_was_given_up(manager: LayerManager, registry: FakeRegistry) -> None:
    images = [resolve(manager, registry, sample_layer())]
    registry.fault = refused
    with let_go(manager, images[0]):
        for _ in range(3):
            fails_with(lambda: images[0].complete(Deadline.after(10)), RegistryError)
        images.clear()


def test_a_whole_download_that_failed(impatient: LayerManager, registry: FakeRegistry) -> None:
    images = [resolve(impatient, registry, sample_layer())]
    size = sum(len(blob) for blob in registry.blobs.values())

    def fault(offset: int, length: int, _right: bytes) -> None:
        if (offset, length) != (0, size):
            raise RangesUnsupported("the server sends the whole blob")
        raise Refused("go away")

    registry.fault = fault
    with let_go(impatient, images[0]):
        fails_with(lambda: images[0].read(images[0].metadata_size, 4096), Refused)
        wait_until(lambda: not images[0].whole.is_running, "the download to end")
        images.clear()


def test_an_error_that_is_raised_again_is_another_one_that_says_the_same() -> None:
    first = IntegrityError("member", "a", "b")
    fails_with(lambda: raising(first), IntegrityError)
    again = first.anew()
    assert type(again) is IntegrityError
    assert (str(again), again.args, again.expected, again.temporary) == (str(first), first.args, "a", False)
    assert again.__traceback__ is None


def raising(error: ApparateError) -> None:
    raise error
