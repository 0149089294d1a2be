"""Which lazy layers are mounted, and for whom.

A layer is mounted while someone holds it, or while any active snapshot or view lies above it. The latter
is read from the metastore, so it is right after a restart too. Order that makes it safe: a holder pins
before it mounts and lets go after its record is in the store; `release` looks at the pins first and at
the store second, with the layer's lock held around unmounting.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from apparate.errors import FormatError, NotFound
from apparate.oci.digest import Digest
from apparate.snapshot.flights import KeyedLocks
from apparate.snapshot.remote import Loader, MountedLayer

_MOUNT_THREADS = 8


class LayerMounts:
    """Mounts and unmounts layers through the loader. Thread-safe."""

    def __init__(
        self, loader: Loader, layers_in_use: Callable[[], set[Digest]], resolve_again: Callable[[Digest], None]
    ) -> None:
        self._loader = loader
        self._layers_in_use = layers_in_use
        self._resolve_again = resolve_again
        self._pins: Counter[Digest] = Counter()
        self._pins_lock = threading.Lock()
        self._flights = KeyedLocks()
        self._pool = ThreadPoolExecutor(_MOUNT_THREADS, thread_name_prefix="snapshot-mount")

    def close(self) -> None:
        """Stop the threads. Nothing is unmounted: containers go on."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def held(self, layers: Iterable[Digest]) -> Iterator[dict[Digest, str]]:
        """Mount *layers* and keep them mounted inside the block; yields the directory of each.

        Raises:
            ApparateError: one cannot be mounted, as `Loader.mount`.
        """
        wanted = sorted(set(layers))
        with self._pins_lock:
            self._pins.update(wanted)
        try:
            yield {mounted.layer_digest: mounted.path for mounted in self._mount_all(wanted)}
        finally:
            with self._pins_lock:
                self._pins.subtract(wanted)
                for layer in wanted:
                    if self._pins[layer] == 0:
                        del self._pins[layer]

    def _mount_all(self, layers: list[Digest]) -> list[MountedLayer]:
        if len(layers) < 2:
            return [self._mount(layer) for layer in layers]
        return list(self._pool.map(self._mount, layers))

    def _mount(self, layer: Digest) -> MountedLayer:
        try:
            with self._flights.hold(layer):
                return self._loader.mount(layer)
        except (NotFound, FormatError):
            # Its files are lost or damaged; the registry still has the layer. Not under the lock: whoever drops a layer
            # takes the locks in the other order. The pin keeps it from being unmounted.
            self._resolve_again(layer)
        with self._flights.hold(layer):
            return self._loader.mount(layer)

    def release(self, layer: Digest) -> bool:
        """Unmount *layer* unless someone needs it; return whether nobody does.

        Raises:
            ApparateError: as `Loader.unmount`.
        """
        with self._flights.hold(layer):
            with self._pins_lock:
                pinned = layer in self._pins
            if pinned or layer in self._layers_in_use():
                return False
            self._loader.unmount(layer)
            return True
