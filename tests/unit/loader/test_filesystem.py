"""What the FUSE operations answer, and what they never let out."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pyfuse3
import pytest
import trio
from tests.unit.loader.fakes import PAGE, MemoryImage, MemoryImages, image_of

from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    FormatError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
)
from apparate.format.toc import Entry, EntryType
from apparate.layer.model import LayerId
from apparate.loader import nodes
from apparate.loader.filesystem import FOREVER_S, Filesystem, errno_of
from apparate.loader.nudge import Nudger
from apparate.loader.settings import LoaderSettings

PROBE = b"probe"
CTX = pyfuse3.RequestContext()
DATA = bytes(range(256)) * 64
FLAT = pyfuse3.FileHandleT(nodes.flat_node(5))

T = TypeVar("T")


def within(
    images: MemoryImages, call: Callable[[Filesystem], Awaitable[T]], settings: LoaderSettings | None = None
) -> T:
    """Run *call* on a file system inside a loop."""

    async def main() -> T:
        nudger = Nudger()
        try:
            return await call(Filesystem(images, PROBE, nudger, Path("/"), settings or LoaderSettings()))
        finally:
            nudger.close()

    return trio.run(main)


def failing(images: MemoryImages, call: Callable[[Filesystem], Awaitable[object]]) -> int:
    """Return the errno that *call* ends with."""
    with pytest.raises(pyfuse3.FUSEError) as raised:
        within(images, call)
    return raised.value.errno


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (InvalidArgument("x"), errno.EINVAL),
        (NotFound("x"), errno.ENOENT),
        (AlreadyExists("x"), errno.EEXIST),
        (FailedPrecondition("x"), errno.EBUSY),
        (Unsupported("x"), errno.ENOTSUP),
        (FormatError("toc", "size", "x"), errno.EIO),
        (IntegrityError("member", "a", "b"), errno.EIO),
        (Unavailable("x"), errno.EIO),
        (ApparateError("x"), errno.EIO),
    ],
)
def test_each_error_has_its_errno(error: ApparateError, number: int) -> None:
    assert errno_of(error) == number


def test_the_root_lists_the_layers_by_digest() -> None:
    image = MemoryImage(DATA)
    entry = within(MemoryImages(image), lambda fs: fs.lookup(nodes.ROOT, image.digest.hex.encode(), CTX))
    assert entry.st_ino == nodes.flat_node(image.layer_id)
    assert (entry.st_size, stat.S_IFMT(entry.st_mode)) == (len(DATA), stat.S_IFREG)
    assert entry.entry_timeout == 0  # after a removal the name may stand for another number
    assert entry.attr_timeout == FOREVER_S


def test_a_layer_that_is_not_known_is_absent_but_not_for_ever() -> None:
    assert failing(MemoryImages(), lambda fs: fs.lookup(nodes.ROOT, b"0" * 64, CTX)) == errno.ENOENT


def test_a_hit_is_answered_without_a_thread() -> None:
    image = MemoryImage(DATA)
    image.present = {0, 1, 2, 3}
    image.fetch = lambda *_: pytest.fail("a hit went to the slow path")
    assert within(MemoryImages(image), lambda fs: fs.read(FLAT, 5, 4100)) == DATA[5:4105]


def test_a_miss_is_read_in_another_thread() -> None:
    image, threads = MemoryImage(DATA), []

    def fetch(address: int, length: int) -> bytes:
        threads.append(threading.current_thread())
        return DATA[address : address + length]

    image.fetch = fetch
    assert within(MemoryImages(image), lambda fs: fs.read(FLAT, 0, PAGE)) == DATA[:PAGE]
    assert threads != [threading.main_thread()]


def test_a_read_over_the_end_is_short_and_one_behind_it_empty() -> None:
    image = MemoryImage(DATA)
    assert within(MemoryImages(image), lambda fs: fs.read(FLAT, len(DATA) - 10, PAGE)) == DATA[-10:]
    assert within(MemoryImages(image), lambda fs: fs.read(FLAT, len(DATA) + PAGE, PAGE)) == b""


@pytest.mark.parametrize(
    "error", [Unavailable("gone"), RuntimeError("a bug"), OSError(errno.ENOSPC, "full"), MemoryError()]
)
def test_whatever_fails_in_a_read_is_an_io_error_for_that_read(error: Exception) -> None:
    image = MemoryImage(DATA)

    def fail(_address: int, _length: int) -> bytes:
        raise error

    image.fetch = fail
    assert failing(MemoryImages(image), lambda fs: fs.read(FLAT, 0, PAGE)) == errno.EIO


def test_a_bug_in_looking_up_a_layer_is_an_io_error_too() -> None:
    images = MemoryImages()
    images.attach = lambda _digest: 1 // 0  # type: ignore[method-assign,assignment,return-value]  # the bug
    assert failing(images, lambda fs: fs.lookup(nodes.ROOT, b"0" * 64, CTX)) == errno.EIO


def test_one_layer_that_hangs_leaves_threads_for_another() -> None:
    hanging, other, free = MemoryImage(DATA, 5), MemoryImage(DATA[::-1], 6), threading.Event()

    def hang(_address: int, length: int) -> bytes:
        free.wait(60)
        return bytes(length)

    hanging.fetch = hang
    settings = LoaderSettings(read_threads=3, layer_read_threads=2)

    async def call(fs: Filesystem) -> bytes:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(fs.read, FLAT, number * PAGE, PAGE)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(30):
                data = await fs.read(pyfuse3.FileHandleT(nodes.flat_node(6)), 0, 10)
            free.set()
            return data

    assert within(MemoryImages(hanging, other), call, settings) == DATA[::-1][:10]


def test_the_probe_is_a_file_of_the_root() -> None:
    entry = within(MemoryImages(), lambda fs: fs.lookup(nodes.ROOT, nodes.PROBE_NAME, CTX))
    assert within(MemoryImages(), lambda fs: fs.read(pyfuse3.FileHandleT(entry.st_ino), 0, PAGE)) == PROBE


def test_opening_for_writing_is_refused() -> None:
    assert failing(MemoryImages(), lambda fs: fs.open(nodes.PROBE, os.O_RDWR, CTX)) == errno.EROFS


def test_the_handle_of_a_file_is_its_node_so_that_a_successor_understands_it() -> None:
    assert within(MemoryImages(), lambda fs: fs.open(FLAT, os.O_RDONLY, CTX)).fh == FLAT
    assert within(MemoryImages(), lambda fs: fs.opendir(nodes.TREES, CTX)) == nodes.TREES


def test_a_removed_layer_is_forgotten() -> None:
    async def call(fs: Filesystem) -> None:
        await fs.read(FLAT, 0, PAGE)
        assert list(fs._layer_limits) == [5]
        fs.forget_layer(LayerId(5))
        assert not fs._layer_limits

    within(MemoryImages(MemoryImage(DATA)), call)


def test_what_is_on_the_disk_waits_for_no_registry() -> None:
    """A registry that hangs holds every thread for registries; what is here is read all the same."""
    hanging, other, free = MemoryImage(DATA, 5), MemoryImage(DATA[::-1], 6), threading.Event()
    hanging.fetch = lambda _, length: (free.wait(60) and bytes(length)) or b""
    hanging.stored = {3}
    other.stored = {0}
    other.fetch = lambda *_: pytest.fail("what is on the disk went to the registry")
    settings = LoaderSettings(read_threads=2, layer_read_threads=2, disk_threads=1)

    async def call(fs: Filesystem) -> tuple[bytes, bytes]:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(fs.read, FLAT, number * PAGE, PAGE)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(30):
                data = await fs.read(pyfuse3.FileHandleT(nodes.flat_node(6)), 0, 10)
                same_layer = await fs.read(FLAT, 3 * PAGE, 10)
            free.set()
            return data, same_layer

    assert within(MemoryImages(hanging, other), call, settings) == (DATA[::-1][:10], DATA[3 * PAGE :][:10])


def test_a_layer_that_is_being_opened_does_not_hold_up_the_loop() -> None:
    slow, open_one, free = MemoryImage(DATA, 5), MemoryImage(DATA[::-1], 6), threading.Event()
    open_one.present = {0}
    images = MemoryImages(slow, open_one)
    by_id, attach, known = images.by_id, images.attach, images.known

    def held(call: Callable[..., T]) -> Callable[..., T]:
        def wait(*args: object) -> T:
            assert threading.current_thread() is not threading.main_thread()
            assert free.wait(60)
            return call(*args)

        return wait

    images.by_id, images.attach, images.known = held(by_id), held(attach), held(known)  # type: ignore[method-assign]
    images.opened = lambda layer_id: open_one if layer_id == 6 else None  # type: ignore[method-assign]

    async def call(fs: Filesystem) -> list[object]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.getattr, FLAT, CTX)
            nursery.start_soon(fs.read, FLAT, 0, PAGE)
            nursery.start_soon(fs.lookup, nodes.ROOT, slow.digest.hex.encode(), CTX)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(30):
                data = await fs.read(pyfuse3.FileHandleT(nodes.flat_node(6)), 0, 10)
            free.set()
            return [data]

    assert within(images, call) == [DATA[::-1][:10]]


TREE = image_of(
    [
        Entry(b"etc", EntryType.DIR, 0o755, mtime_ns=1_500_000_001),
        Entry(b"etc/link", EntryType.SYMLINK, 0o777, link=b"motd"),
        Entry(b"etc/motd", EntryType.REG, 0o4755, uid=4_000_000_000, gid=7, xattrs={b"user.x": b"y"}),
        Entry(b"etc/null", EntryType.CHAR, 0o666, devmajor=1, devminor=300),
    ]
)


async def walk(fs: Filesystem, *names: bytes) -> pyfuse3.EntryAttributes:
    entry = await fs.lookup(nodes.TREES, TREE.digest.hex.encode(), CTX)
    for name in names:
        entry = await fs.lookup(entry.st_ino, name, CTX)
    return entry


def test_attributes_of_a_tree_are_those_of_the_layer() -> None:
    entry = within(MemoryImages(TREE), lambda fs: walk(fs, b"etc", b"motd"))
    assert (entry.st_mode, entry.st_uid, entry.st_gid) == (stat.S_IFREG | 0o4755, 4_000_000_000, 7)
    device = within(MemoryImages(TREE), lambda fs: walk(fs, b"etc", b"null"))
    assert (stat.S_IFMT(device.st_mode), device.st_rdev) == (stat.S_IFCHR, os.makedev(1, 300))
    directory = within(MemoryImages(TREE), lambda fs: walk(fs, b"etc"))
    assert (directory.st_mtime_ns, directory.entry_timeout) == (1_500_000_001, FOREVER_S)


def test_the_name_of_a_tree_is_asked_for_each_time() -> None:
    """A layer that was removed and comes back has other nodes."""
    assert within(MemoryImages(TREE), walk).entry_timeout == 0


def test_absence_in_a_tree_is_for_ever() -> None:
    entry = within(MemoryImages(TREE), lambda fs: walk(fs, b"etc", b"shadow"))
    assert (entry.st_ino, entry.entry_timeout) == (0, FOREVER_S)


def test_links_and_attributes_of_a_tree_are_read() -> None:
    async def call(fs: Filesystem) -> tuple[bytes, list[bytes], bytes]:
        link, file = (await walk(fs, b"etc", b"link")).st_ino, (await walk(fs, b"etc", b"motd")).st_ino
        return (
            await fs.readlink(link, CTX),
            list(await fs.listxattr(file, CTX)),
            await fs.getxattr(file, b"user.x", CTX),
        )

    assert within(MemoryImages(TREE), call) == (b"motd", [b"user.x"], b"y")


def test_an_attribute_that_is_not_there_is_absent_on_every_node() -> None:
    async def ask(fs: Filesystem) -> None:
        for node in (nodes.ROOT, nodes.TREES, nodes.PROBE, nodes.flat_node(5)):
            with pytest.raises(pyfuse3.FUSEError) as raised:
                await fs.getxattr(node, b"security.capability", CTX)
            assert raised.value.errno == pyfuse3.ENOATTR

    within(MemoryImages(TREE), ask)


def test_a_node_that_no_layer_has_is_an_error_not_the_end() -> None:
    assert failing(MemoryImages(TREE), lambda fs: fs.getattr(nodes.tree_node(5, 1 << 30), CTX)) == errno.EIO
    assert failing(MemoryImages(TREE), lambda fs: fs.getattr(nodes.flat_node(9), CTX)) == errno.ENOENT
    assert failing(MemoryImages(TREE), lambda fs: fs.getattr(77, CTX)) == errno.ENOENT


def test_statfs_tells_the_disk() -> None:
    answer = within(MemoryImages(), lambda fs: fs.statfs(CTX))
    assert answer.f_blocks == os.statvfs("/").f_blocks
