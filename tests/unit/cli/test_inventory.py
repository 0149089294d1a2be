from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from apparate.cli.inventory import gather
from apparate.cli.settings import Settings
from apparate.errors import NotFound
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.metastore import METADATA_NAME, Metastore
from apparate.snapshot.model import Info, Kind, Record
from apparate.snapshot.rows import RECORDS_PAGE, to_json
from apparate.telemetry.metrics import Page, TelemetryServer


def test_a_running_snapshotter_is_asked_and_else_its_store_is_read(tmp_path: Path) -> None:
    own = replace(
        Settings().snapshotter,
        root=tmp_path,
        telemetry_socket=tmp_path / "telemetry.sock",
        loader_socket=tmp_path / "loader.sock",
    )
    settings = replace(Settings(), snapshotter=own)
    with pytest.raises(NotFound, match=METADATA_NAME):
        gather(settings)
    labels = {names.CRI_IMAGE_REF: "registry/app:1", names.CRI_LAYER_DIGEST: str(Digest.of(b"layer"))}
    with closing(Metastore(tmp_path / METADATA_NAME)) as store:
        store.create(Record(store.reserve_id(), Info("top", "", Kind.ACTIVE, 1, 1, labels)))
        store.commit("top", "image", labels, "", 1)
        pages = {RECORDS_PAGE: lambda: Page(200, "application/json", to_json(store.records()))}
        with closing(TelemetryServer({}, own.telemetry_socket, private_pages=pages)):
            running = gather(settings)
    assert [image.reference for image in running.images] == ["registry/app:1"]
    assert gather(settings).images == running.images
