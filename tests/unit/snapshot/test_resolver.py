from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.fake_loader import FakeLayer, FakeLoader
from tests.support.processes import wait_until

from apparate.errors import IntegrityError, InvalidArgument, Unavailable
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.content import ContentStore
from apparate.snapshot.remote import ManifestLayer, ResolveRequest
from apparate.snapshot.resolver import Decision, LayerResolver, Verdict
from apparate.snapshot.settings import SnapshotterSettings

REF = "registry/app:1"
MANIFEST = Digest.of(b"manifest")
LAZY = {names.TOC_DIGEST: "sha256:toc"}


@pytest.fixture
def fake(tmp_path: Path) -> FakeLoader:
    return FakeLoader(tmp_path)


@pytest.fixture
def resolver(fake: FakeLoader) -> Iterator[LayerResolver]:
    made = LayerResolver(fake, threads=8)
    yield made
    made.close()


def image(fake: FakeLoader, kinds: str) -> list[Digest]:
    layers = [FakeLayer(f"layer {n}".encode(), lazy=kind == "lazy") for n, kind in enumerate(kinds.split())]
    for layer in layers:
        fake.add(layer)
    fake.manifests[MANIFEST] = [
        ManifestLayer(layer.digest, names.OCI_LAYER_GZIP, 10, LAZY if layer.lazy else {}) for layer in layers
    ]
    return [layer.digest for layer in layers]


def decide(resolver: LayerResolver, labels: dict[str, str], *, parent_is_lazy: bool) -> Decision:
    with resolver.deciding(labels, parent_is_lazy=parent_is_lazy) as decision:
        return decision


def labels(layers: list[Digest], number: int, *, lazy: bool = True, manifest: bool = True) -> dict[str, str]:
    found = {
        names.CRI_IMAGE_REF: REF,
        names.CRI_LAYER_DIGEST: str(layers[number]),
        names.CRI_IMAGE_LAYERS: ",".join(map(str, layers[number:])),
        names.TARGET_SNAPSHOT: f"sha256:chain{number}",
    }
    if manifest:
        found[names.CRI_MANIFEST_DIGEST] = str(MANIFEST)
    return {**found, **LAZY} if lazy else found


def test_a_layer_with_a_table_of_contents_is_lazy(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy")
    assert decide(resolver, labels(layers, 0), parent_is_lazy=False).verdict is Verdict.LAZY
    (call,) = [argument for name, argument in fake.calls if name == "resolve"]
    assert isinstance(call, ResolveRequest)
    assert call.annotations[names.TOC_DIGEST] == "sha256:toc"
    assert names.TARGET_SNAPSHOT not in call.annotations


def test_all_layers_are_resolved_on_the_first_call(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy " * 6)
    together = threading.Barrier(6)
    fake.before["resolve"] = lambda _: together.wait(10)
    for number in range(6):
        assert decide(resolver, labels(layers, number), parent_is_lazy=number > 0).verdict is Verdict.LAZY
    assert fake.count("resolve") == 6
    assert fake.count("layers") == 1


def test_what_was_resolved_ahead_is_wanted_until_it_is_used(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy lazy")
    ahead = fake.watch_resolve(layers[1])
    decide(resolver, labels(layers, 0), parent_is_lazy=False)
    assert ahead.wait(10)
    assert resolver.wanted() == {layers[1]}
    decide(resolver, labels(layers, 1), parent_is_lazy=True)
    assert resolver.wanted() == set()


def test_a_layer_is_wanted_until_its_snapshot_is_there(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy")
    with resolver.deciding(labels(layers, 0), parent_is_lazy=False):
        with resolver.deciding(labels(layers, 0), parent_is_lazy=False):
            pass
        assert resolver.wanted() == {layers[0]}
        with resolver.dropping(layers[0]) as is_free:
            assert not is_free
    with resolver.dropping(layers[0]) as is_free:
        assert is_free


def test_a_layer_that_is_being_dropped_is_resolved_anew(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy")
    decisions: list[Decision] = []
    with resolver.dropping(layers[0]) as is_free:
        assert is_free
        asker = threading.Thread(
            target=lambda: decisions.append(decide(resolver, labels(layers, 0), parent_is_lazy=False))
        )
        asker.start()
        wait_until(lambda: resolver.wanted() == {layers[0]}, "the layer is wanted")
        assert fake.count("resolve") == 0
    asker.join()
    assert decisions[0].verdict is Verdict.LAZY


@pytest.mark.parametrize(
    ("registries", "reference", "verdict"),
    [
        ((), "registry:5000/app:1", Verdict.LAZY),
        (("registry:5000",), "registry:5000/app:1", Verdict.LAZY),
        (("registry",), "registry:5000/app:1", Verdict.ORDINARY),
        (("registry:5000/team",), "registry:5000/team/app:1", Verdict.LAZY),
        (("registry:5000/team/app",), "registry:5000/team/app:1", Verdict.LAZY),
        (("registry:5000/team",), "registry:5000/teams/app:1", Verdict.ORDINARY),
        (("other.example", "docker.io"), "busybox", Verdict.LAZY),
        (("docker.io",), "not a reference", Verdict.ORDINARY),
    ],
)
def test_only_images_of_the_registries_that_are_set_are_lazy(
    fake: FakeLoader, registries: tuple[str, ...], reference: str, verdict: Verdict
) -> None:
    layers = image(fake, "lazy")
    resolver = LayerResolver(fake, threads=2, registries=registries)
    decision = decide(resolver, {**labels(layers, 0), names.CRI_IMAGE_REF: reference}, parent_is_lazy=True)
    resolver.close()
    assert decision.verdict is verdict
    if verdict is Verdict.ORDINARY:
        assert "lazy_registries" in decision.reason
        assert fake.calls == []


@pytest.mark.parametrize("entry", ["", "https://registry.example", "registry.example/", " registry.example"])
def test_a_registry_that_would_match_nothing_is_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument, match="lazy_registries"):
        SnapshotterSettings(lazy_registries=(entry,))


@pytest.mark.parametrize(
    ("checksum", "position"),
    [
        (names.ZSTD_CHUNKED_CHECKSUM, names.ZSTD_CHUNKED_POSITION),
        (names.OLD_ZSTD_CHUNKED_CHECKSUM, names.OLD_ZSTD_CHUNKED_POSITION),
    ],
)
def test_annotations_without_containerds_prefix_come_from_the_manifest(
    resolver: LayerResolver, fake: FakeLoader, checksum: str, position: str
) -> None:
    layers = image(fake, "lazy")
    annotations = {checksum: "sha256:x", position: "1:2:3:1"}
    fake.manifests[MANIFEST] = [ManifestLayer(layers[0], names.OCI_LAYER_ZSTD, 10, annotations)]
    assert decide(resolver, labels(layers, 0, lazy=False), parent_is_lazy=False).verdict is Verdict.LAZY
    (call,) = [argument for name, argument in fake.calls if name == "resolve"]
    assert isinstance(call, ResolveRequest)
    assert call.annotations[position] == "1:2:3:1"


def test_an_ordinary_image_costs_one_manifest_and_no_layer(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "odd odd odd")
    for number in range(3):
        decision = decide(resolver, labels(layers, number, lazy=False), parent_is_lazy=False)
        assert decision.verdict is Verdict.ORDINARY
        assert not decision.promised
        assert "no table of contents" in decision.reason
    assert fake.count("layers") == 1
    assert fake.count("resolve") == 0


def test_an_odd_layer_below_lazy_ones_is_unpacked(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy odd lazy")
    verdicts = [
        decide(resolver, labels(layers, number, lazy=number != 1), parent_is_lazy=False).verdict for number in range(3)
    ]
    assert verdicts == [Verdict.LAZY, Verdict.UNPACK, Verdict.LAZY]


def test_an_odd_layer_on_top_is_left_to_containerd(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy odd")
    decision = decide(resolver, labels(layers, 1, lazy=False), parent_is_lazy=True)
    assert decision.verdict is Verdict.ORDINARY


def test_without_a_manifest_a_lazy_parent_decides(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy odd lazy")
    fake.manifests.clear()
    odd = labels(layers, 1, lazy=False)
    assert decide(resolver, odd, parent_is_lazy=True).verdict is Verdict.UNPACK
    assert decide(resolver, odd, parent_is_lazy=False).verdict is Verdict.ORDINARY
    no_manifest = labels(layers, 2, lazy=False, manifest=False)
    assert decide(resolver, no_manifest, parent_is_lazy=True).verdict is Verdict.ORDINARY


def test_a_promise_that_is_not_kept_says_why(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy lazy")
    fake.blobs[layers[0]].refusal = IntegrityError("TOC", "sha256:a", "sha256:b")
    decision = decide(resolver, labels(layers, 0), parent_is_lazy=False)
    assert decision.verdict is Verdict.UNPACK
    assert decision.promised
    assert "expected sha256:a" in decision.reason


def test_an_unreachable_registry_is_left_to_containerd(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy lazy")
    fake.fail["resolve"] = fake.fail["layers"] = Unavailable("no route")
    decision = decide(resolver, labels(layers, 0), parent_is_lazy=False)
    assert (decision.verdict, decision.reason) == (Verdict.ORDINARY, "no route")
    del fake.fail["resolve"]
    assert decide(resolver, labels(layers, 0), parent_is_lazy=False).verdict is Verdict.LAZY


def test_missing_or_unreadable_labels_are_ordinary(resolver: LayerResolver) -> None:
    assert "disable_snapshot_annotations" in decide(resolver, {}, parent_is_lazy=False).reason
    broken = {names.CRI_IMAGE_REF: REF, names.CRI_LAYER_DIGEST: "nonsense"}
    assert decide(resolver, broken, parent_is_lazy=False).verdict is Verdict.ORDINARY


def test_other_contents_promised_for_a_blob_are_another_request(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy")
    gate = threading.Event()
    fake.before["resolve"] = lambda _: gate.wait(10)
    askers = [
        threading.Thread(target=decide, args=(resolver, promise), kwargs={"parent_is_lazy": False})
        for promise in (labels(layers, 0), {**labels(layers, 0), names.TOC_DIGEST: "sha256:other"})
    ]
    for asker in askers:
        asker.start()
    gate.set()
    for asker in askers:
        asker.join()
    assert fake.count("resolve") == 2


def test_old_flights_and_manifests_are_forgotten(fake: FakeLoader) -> None:
    now = [0.0]
    resolver = LayerResolver(fake, threads=2, clock=lambda: now[0])
    layers = image(fake, "lazy lazy")
    ahead = fake.watch_resolve(layers[1])
    decide(resolver, labels(layers, 0), parent_is_lazy=False)
    assert ahead.wait(10)
    now[0] = 10_000.0
    assert resolver.wanted() == set()
    decide(resolver, labels(layers, 1, lazy=False), parent_is_lazy=True)
    assert fake.count("layers") == 2
    resolver.close()


def test_a_registry_that_does_not_answer_is_asked_once_for_each_layer_of_a_pull(
    resolver: LayerResolver, fake: FakeLoader
) -> None:
    layers = image(fake, "lazy lazy lazy")
    fake.fail["resolve"] = Unavailable("no route")
    assert decide(resolver, labels(layers, 0), parent_is_lazy=False).verdict is Verdict.ORDINARY
    wait_until(lambda: fake.count("resolve") == len(layers), "the layers above are asked for ahead")
    for number in (1, 2):
        assert decide(resolver, labels(layers, number), parent_is_lazy=False).verdict is Verdict.ORDINARY
    assert fake.count("resolve") == len(layers)


def test_a_pull_that_begins_anew_asks_anew_for_what_had_failed(resolver: LayerResolver, fake: FakeLoader) -> None:
    layers = image(fake, "lazy lazy")
    fake.fail["resolve"] = Unavailable("no route")
    assert decide(resolver, labels(layers, 0), parent_is_lazy=False).verdict is Verdict.ORDINARY
    wait_until(
        lambda: (flights := [*resolver._flights.values()]) and all(flight.has_failed for flight in flights),
        "the layer above was asked for ahead, too",
    )
    del fake.fail["resolve"]
    for number in (0, 1):
        assert decide(resolver, labels(layers, number), parent_is_lazy=False).verdict is Verdict.LAZY


def test_an_odd_layer_below_layers_that_nobody_gives_is_left_to_containerd(
    resolver: LayerResolver, fake: FakeLoader
) -> None:
    layers = image(fake, "odd lazy")
    fake.fail["resolve"] = Unavailable("no route")
    assert decide(resolver, labels(layers, 0, lazy=False), parent_is_lazy=False).verdict is Verdict.ORDINARY


def test_a_manifest_that_containerd_has_is_not_asked_for(fake: FakeLoader, tmp_path: Path) -> None:
    layer = fake.add(FakeLayer(b"layer"))
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": names.OCI_MANIFEST,
            "config": {"mediaType": names.OCI_CONFIG, "digest": str(MANIFEST), "size": 2},
            "layers": [{"mediaType": names.OCI_LAYER_GZIP, "digest": str(layer), "size": 5}],
        }
    ).encode()
    digest = Digest.of(body)
    blobs = tmp_path / "io.containerd.content.v1.content" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / digest.hex).write_bytes(body)
    fake.fail["layers"] = Unavailable("no route")
    with closing(LayerResolver(fake, threads=2, content=ContentStore(tmp_path / "root"))) as resolver:
        wanted = {**labels([layer], 0, lazy=False), names.CRI_MANIFEST_DIGEST: str(digest)}
        assert "no table of contents" in decide(resolver, wanted, parent_is_lazy=False).reason
    assert fake.count("layers") == 0
