"""The contract of `apparate.snapshot.remote.Loader`, for every implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.provider.conftest import LAZY_FILES, Provider

from apparate.errors import ApparateError, FailedPrecondition, NotFound, Unsupported
from apparate.oci.digest import Digest
from apparate.snapshot.remote import LayerPhase, LayerState, ResolveRequest

pytestmark = [pytest.mark.root, pytest.mark.fuse]

UNKNOWN = Digest.of(b"nobody has seen this layer")


def request_for(provider: Provider) -> ResolveRequest:
    return ResolveRequest(provider.reference, provider.lazy.digest, provider.lazy.annotations)


def resolve(provider: Provider) -> Digest:
    return provider.loader.resolve(request_for(provider)).layer_digest


def state(provider: Provider) -> LayerState:
    (found,) = [state for state in provider.loader.status() if state.layer_digest == provider.lazy.digest]
    return found


def test_layers_of_the_manifest_come_base_first(provider: Provider) -> None:
    layers = provider.loader.layers(provider.reference, provider.manifest)
    assert list(layers) == [provider.lazy, provider.ordinary]


def test_a_manifest_that_is_nowhere_is_an_error_of_ours(provider: Provider) -> None:
    with pytest.raises(ApparateError):
        provider.loader.layers(provider.reference, UNKNOWN)


def test_a_resolved_layer_is_known_and_not_mounted(provider: Provider) -> None:
    assert provider.loader.status() == []
    resolved = provider.loader.resolve(request_for(provider))
    assert resolved.layer_digest == provider.lazy.digest
    assert resolved.blob_size in (0, provider.lazy.size)
    assert resolved.image_size >= sum(map(len, LAZY_FILES.values()))
    known = state(provider)
    assert (known.reference, known.phase, known.mounted) == (provider.reference, LayerPhase.LAZY, False)
    assert known.image_size == resolved.image_size
    assert provider.loader.resolve(request_for(provider)) == resolved


def test_a_layer_without_a_table_of_contents_is_unsupported(provider: Provider) -> None:
    request = ResolveRequest(provider.reference, provider.ordinary.digest, provider.ordinary.annotations)
    with pytest.raises(Unsupported) as caught:
        provider.loader.resolve(request)
    assert str(caught.value)
    assert not caught.value.temporary
    assert provider.loader.status() == []


def test_a_layer_that_the_registry_has_not_is_an_error_of_ours(provider: Provider) -> None:
    with pytest.raises(ApparateError):
        provider.loader.resolve(ResolveRequest(provider.reference, UNKNOWN, provider.lazy.annotations))
    assert provider.loader.status() == []


def test_a_mounted_layer_shows_its_files(provider: Provider) -> None:
    layer = resolve(provider)
    mounted = provider.loader.mount(layer)
    assert mounted.layer_digest == layer
    assert mounted.driver
    for name, data in LAZY_FILES.items():
        assert Path(mounted.path, name).read_bytes() == data
    assert state(provider).mounted
    provider.loader.unmount(layer)


def test_mounting_twice_gives_the_same_mount(provider: Provider) -> None:
    layer = resolve(provider)
    assert provider.loader.mount(layer) == provider.loader.mount(layer)
    provider.loader.unmount(layer)
    assert not state(provider).mounted


def test_unmounting_again_or_the_unknown_is_success(provider: Provider) -> None:
    layer = resolve(provider)
    provider.loader.unmount(layer)
    provider.loader.mount(layer)
    provider.loader.unmount(layer)
    provider.loader.unmount(layer)
    provider.loader.unmount(UNKNOWN)


def test_a_layer_can_be_mounted_again(provider: Provider) -> None:
    layer = resolve(provider)
    for _ in range(3):
        mounted = provider.loader.mount(layer)
        assert Path(mounted.path, "dir/file").read_bytes() == LAZY_FILES["dir/file"]
        provider.loader.unmount(layer)


def test_a_mounted_layer_is_not_forgotten(provider: Provider) -> None:
    layer = resolve(provider)
    mounted = provider.loader.mount(layer)
    with pytest.raises(FailedPrecondition):
        provider.loader.forget(layer)
    assert Path(mounted.path, "dir/file").read_bytes() == LAZY_FILES["dir/file"]
    provider.loader.unmount(layer)
    provider.loader.forget(layer)
    assert provider.loader.status() == []


def test_forgetting_again_or_the_unknown_is_success(provider: Provider) -> None:
    layer = resolve(provider)
    provider.loader.forget(layer)
    provider.loader.forget(layer)
    provider.loader.forget(UNKNOWN)
    assert resolve(provider) == layer


def test_the_unknown_cannot_be_mounted_used_or_completed(provider: Provider) -> None:
    with pytest.raises(NotFound):
        provider.loader.mount(UNKNOWN)
    with pytest.raises(NotFound):
        provider.loader.usage(UNKNOWN)
    with pytest.raises(NotFound):
        list(provider.loader.complete(UNKNOWN))
    with pytest.raises(NotFound):
        provider.loader.profile(UNKNOWN)


def test_completing_reports_progress_and_ends_complete(provider: Provider) -> None:
    layer = resolve(provider)
    progress = list(provider.loader.complete(layer))
    assert progress[-1].present_bytes == progress[-1].total_bytes > 0
    assert [item.present_bytes for item in progress] == sorted(item.present_bytes for item in progress)
    known = state(provider)
    assert (known.phase, known.percent) == (LayerPhase.COMPLETE, 100.0)
    again = list(provider.loader.complete(layer))
    assert again[-1].present_bytes == again[-1].total_bytes


def test_a_complete_layer_is_mounted_like_any_other(provider: Provider) -> None:
    layer = resolve(provider)
    list(provider.loader.complete(layer))
    mounted = provider.loader.mount(layer)
    for name, data in LAZY_FILES.items():
        assert Path(mounted.path, name).read_bytes() == data
    provider.loader.unmount(layer)


def test_usage_is_what_is_on_disk(provider: Provider) -> None:
    layer = resolve(provider)
    before = provider.loader.usage(layer)
    assert before.inodes > 0
    list(provider.loader.complete(layer))
    assert provider.loader.usage(layer).size >= max(before.size, sum(map(len, LAZY_FILES.values())))


def test_the_profile_names_what_was_read(provider: Provider) -> None:
    layer = resolve(provider)
    mounted = provider.loader.mount(layer)
    Path(mounted.path, "dir/file").read_bytes()
    touched = provider.loader.profile(layer)
    assert b"dir/file" in [touch.path for touch in touched]
    assert all(touch.length > 0 and touch.offset >= 0 for touch in touched)
    provider.loader.unmount(layer)


def test_fetch_streams_the_blob_of_any_layer(provider: Provider) -> None:
    for layer in (provider.lazy, provider.ordinary):
        data = b"".join(provider.loader.fetch(provider.reference, layer.digest))
        assert Digest.of(data) == layer.digest
    assert provider.loader.status() == []


def test_fetch_of_what_is_nowhere_is_an_error_of_ours(provider: Provider) -> None:
    with pytest.raises(ApparateError):
        list(provider.loader.fetch(provider.reference, UNKNOWN))
