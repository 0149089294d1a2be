"""The FUSE operations: a directory with one read-only file per layer, and below `trees` one tree per layer.

    /<hex>         the EROFS image of a layer, what the kernel mounts
    /trees/<hex>/  the files of the layer themselves, for kernels without EROFS
    /.probe        a tiny EROFS image with which drivers are tried

Hits are answered in the FUSE task. What has to come from the disk, a layer that is opened among it, waits in a thread, and what has
to come from a registry in one of others, so that neither a disk nor a registry holds up what is here. Whatever goes wrong in one request is an errno for that request
and a line in the log, and never ends the session.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from apparate.layer.model import LayerId
from apparate.loader import nodes
from apparate.loader.images import Image, Images
from apparate.loader.nudge import Nudger
from apparate.loader.session import SessionOperations
from apparate.loader.settings import LoaderSettings
from apparate.loader.treefs import Attributes, Tree
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

_log = get_logger("loader.filesystem")

REQUEST_FAILED = "fuse request failed"
REQUEST_BROKEN = "fuse request met an unexpected error"

FOREVER_S: Final = 1_000_000_000
"""Validity of what never changes: the nodes of a layer."""

_FILE_MODE: Final = stat.S_IFREG | 0o400
_ERRNOS: Final[tuple[tuple[type[ApparateError], int], ...]] = (
    (InvalidArgument, errno.EINVAL),
    (NotFound, errno.ENOENT),
    (AlreadyExists, errno.EEXIST),
    (FailedPrecondition, errno.EBUSY),
    (Unsupported, errno.ENOTSUP),
    (ApparateError, errno.EIO),
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def errno_of(error: ApparateError) -> int:
    """Return the errno that stands for *error*: the FUSE column of the table of errors."""
    return next(number for kind, number in _ERRNOS if isinstance(error, kind))


def _guarded(operation: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Let nothing but FUSEError leave an operation: any other exception would end the whole session."""

    @functools.wraps(operation)
    async def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await operation(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except ApparateError as error:
            _log.warning(REQUEST_FAILED, operation=operation.__name__, arguments=args[1:4], error=str(error))
            raise pyfuse3.FUSEError(errno_of(error)) from error
        except Exception as error:
            _log.exception(REQUEST_BROKEN, operation=operation.__name__, arguments=args[1:4])
            raise pyfuse3.FUSEError(errno.EIO) from error

    return wrapper


class Filesystem(SessionOperations):
    """The operations of the session. Used from the trio thread alone, but for `forget_layer`."""

    def __init__(self, images: Images, probe: bytes, nudger: Nudger, data_dir: Path, settings: LoaderSettings) -> None:
        super().__init__()
        self._images = images
        self._probe = probe
        self._nudger = nudger
        self._data_dir = data_dir
        self._layer_threads = settings.layer_read_threads
        self._threads = trio.CapacityLimiter(settings.read_threads)
        self._disk_threads = trio.CapacityLimiter(settings.disk_threads)
        self._layer_limits: dict[LayerId, trio.CapacityLimiter] = {}

    def forget_layer(self, layer_id: LayerId) -> None:
        """Drop what is kept for a layer that is removed."""
        self._layer_limits.pop(layer_id, None)

    async def _in_thread(self, work: Callable[..., _T], *args: object) -> _T:
        """Return what *work*, which may wait for the disk but for no registry, returns."""
        with self._nudger:
            return await trio.to_thread.run_sync(work, *args, limiter=self._disk_threads, abandon_on_cancel=True)

    async def _image(self, layer_id: LayerId) -> Image:
        image = self._images.opened(layer_id)
        return image if image is not None else await self._in_thread(self._images.by_id, layer_id)

    # --- names and attributes ---

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Find a name; absence in a tree is remembered by the kernel, in the directories of layers it is not."""
        if parent_inode in {nodes.ROOT, nodes.TREES}:
            node = await self._lookup_own(parent_inode, name)
            if node is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            entry = await self._attributes(node)
            entry.entry_timeout = 0  # a layer that is removed and comes back has another number
            return entry
        image, nid = await self._tree_node(parent_inode)
        found = Tree(image).lookup(nid, name)
        if found is None:
            absent = pyfuse3.EntryAttributes()
            absent.st_ino = pyfuse3.InodeT(0)
            absent.entry_timeout = FOREVER_S
            return absent
        return _entry(nodes.tree_node(image.layer_id, found), Tree(image).attributes(found))

    async def _lookup_own(self, parent: int, name: bytes) -> int | None:
        if parent == nodes.ROOT and name == nodes.TREES_NAME:
            return nodes.TREES
        if parent == nodes.ROOT and name == nodes.PROBE_NAME:
            return nodes.PROBE
        digest = nodes.digest_of(name)
        if digest is None:
            return None
        try:
            image = await self._in_thread(self._images.attach, digest)
        except NotFound:
            return None
        if parent == nodes.ROOT:
            return nodes.flat_node(image.layer_id)
        return nodes.tree_node(image.layer_id, Tree(image).root_nid)

    @_guarded
    async def getattr(self, inode: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node."""
        return await self._attributes(inode)

    async def _attributes(self, node: int) -> pyfuse3.EntryAttributes:
        layer_id = nodes.layer_of(node)
        if layer_id and nodes.nid_of(node):
            return _entry(node, Tree(await self._image(layer_id)).attributes(nodes.nid_of(node)))
        if layer_id:
            return _own_entry(node, _FILE_MODE, (await self._image(layer_id)).image_size)
        if node == nodes.PROBE:
            return _own_entry(node, _FILE_MODE, len(self._probe))
        if node in {nodes.ROOT, nodes.TREES}:
            return _own_entry(node, stat.S_IFDIR | 0o755, 0)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def _tree_node(self, node: int) -> tuple[Image, int]:
        nid = nodes.nid_of(node)
        if not nodes.layer_of(node) or not nid:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return await self._image(nodes.layer_of(node)), nid

    @_guarded
    async def readlink(self, inode: int, _ctx: pyfuse3.RequestContext) -> bytes:
        """Return the target of a symbolic link of a tree."""
        image, nid = await self._tree_node(inode)
        return Tree(image).symlink(nid)

    @_guarded
    async def getxattr(self, inode: int, name: bytes, _ctx: pyfuse3.RequestContext) -> bytes:
        """Return one extended attribute of a node of a tree."""
        value = (await self._xattrs(inode)).get(bytes(name))
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @_guarded
    async def listxattr(self, inode: int, _ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names of the extended attributes of a node of a tree."""
        return list(await self._xattrs(inode))

    async def _xattrs(self, node: int) -> dict[bytes, bytes]:
        if not nodes.layer_of(node) or not nodes.nid_of(node):
            return {}
        image, nid = await self._tree_node(node)
        return Tree(image).xattrs(nid)

    @_guarded
    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the state of the disk that layers are kept on."""
        disk, answer = os.statvfs(self._data_dir), pyfuse3.StatvfsData()
        answer.f_bsize, answer.f_frsize, answer.f_namemax = disk.f_bsize, disk.f_frsize, disk.f_namemax
        answer.f_blocks, answer.f_bfree, answer.f_bavail = disk.f_blocks, disk.f_bfree, disk.f_bavail
        answer.f_files, answer.f_ffree, answer.f_favail = disk.f_files, disk.f_ffree, disk.f_favail
        return answer

    # --- directories ---

    @_guarded
    async def opendir(self, inode: int, _ctx: pyfuse3.RequestContext) -> int:
        """Return the handle of a directory: its node."""
        return inode

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Give the kernel names and attributes together, as many as fit."""
        if fh in {nodes.ROOT, nodes.TREES}:
            await self._read_own_directory(fh, start_id, token)
            return
        image, nid = await self._tree_node(fh)
        tree = Tree(image)
        for entry in tree.entries(nid, start_id):
            found = _entry(nodes.tree_node(image.layer_id, entry.nid), tree.attributes(entry.nid))
            if not pyfuse3.readdir_reply(token, entry.name, found, entry.cursor):
                return

    async def _read_own_directory(self, node: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """List the layers without opening one; below `trees` list nothing: who walks over the host need not walk those."""
        if node == nodes.TREES:
            return
        own = ((nodes.TREES_NAME, nodes.TREES), (nodes.PROBE_NAME, nodes.PROBE))
        found = [(name, await self._attributes(number)) for name, number in own]
        for layer in await self._in_thread(self._images.known):
            entry = _own_entry(nodes.flat_node(layer.layer_id), _FILE_MODE, layer.image_size)
            found.append((nodes.name_of(layer.digest).encode(), entry))
        for cursor, (name, entry) in enumerate(found[start:], start + 1):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, cursor):
                return

    @_guarded
    async def releasedir(self, fh: int) -> None:
        """Nothing is kept for an open directory."""

    # --- files ---

    @_guarded
    async def open(self, inode: int, flags: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Return the handle of a file: its node. Its pages stay cached between opens."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return bytes of a file, fewer only at its end."""
        metrics.READS.inc()
        layer_id, nid = nodes.layer_of(fh), nodes.nid_of(fh)
        if not layer_id:
            if fh != nodes.PROBE:
                raise pyfuse3.FUSEError(errno.EISDIR)
            return self._probe[off : off + size]
        image = await self._image(layer_id)
        if nid:
            extent = Tree(image).extent(nid)
            address, length = extent.address + off, min(size, extent.size - off)
        else:
            address, length = off, min(size, image.image_size - off)
        if length <= 0:
            return b""
        data = image.read_cached(address, length)
        if data is None and image.is_here(address, length):
            data = await self._in_thread(image.read_stored, address, length)
        return data if data is not None else await self._read_missing(image, address, length)

    async def _read_missing(self, image: Image, address: int, length: int) -> bytes:
        metrics.MISSES.inc()
        limit = self._layer_limits.get(image.layer_id)
        if limit is None:
            limit = self._layer_limits[image.layer_id] = trio.CapacityLimiter(self._layer_threads)
        try:
            with self._nudger:
                async with limit:
                    return await trio.to_thread.run_sync(
                        image.read, address, length, limiter=self._threads, abandon_on_cancel=True
                    )
        except Exception:
            metrics.READ_ERRORS.inc()
            raise

    @_guarded
    async def flush(self, fh: int) -> None:
        """Nothing is written, so nothing is flushed."""

    @_guarded
    async def release(self, fh: int) -> None:
        """Nothing is kept for an open file."""


def _own_entry(node: int, mode: int, size: int) -> pyfuse3.EntryAttributes:
    """Attributes of a node of the session itself: its name is asked for again each time, what it says never changes."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node)
    entry.st_mode = pyfuse3.ModeT(mode)
    entry.st_nlink = 1
    entry.st_size = size
    entry.st_blocks = -(-size // 512)
    entry.entry_timeout = 0
    entry.attr_timeout = FOREVER_S
    return entry


def _entry(node: int, attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node)
    entry.st_mode = pyfuse3.ModeT(attributes.mode)
    entry.st_nlink = attributes.nlink
    entry.st_uid, entry.st_gid = attributes.uid, attributes.gid
    entry.st_rdev = os.makedev(*attributes.rdev)
    entry.st_size, entry.st_blocks = attributes.size, attributes.blocks
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    entry.entry_timeout = entry.attr_timeout = FOREVER_S
    return entry
