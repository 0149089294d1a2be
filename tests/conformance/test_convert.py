"""Conversion against a real registry, as a user runs it; judged by skopeo, gzip, zstd, GNU tar and Python's tarfile."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.content import blob, stored
from tests.support.distribution import Registry, free_port
from tests.support.images import (
    Layer,
    build_image,
    build_index,
    build_layer,
    pattern,
    plain_layer,
    push,
    sha256,
    write_layout,
)
from tests.support.processes import Process, run
from tests.support.services import apparate, command, environment
from tests.support.tarball import Node
from tests.support.torture import base_layer, torture_image, torture_layer
from tests.support.trees import Entry, differences, read_tree
from tests.unit.convert.helpers import members_of_tar

FORMATS = ("estargz", "zstd:chunked")
DIGEST_LENGTH = 71
MEMORY_MAX = 150_000_000


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()
    return f"convert/{digest[:16]}"


def converted(source: str, target: str, *options: str) -> dict[str, Any]:
    return dict(json.loads(apparate("convert", "--json", *options, source, target).stdout))


def unpacked(registry: Registry, reference: str) -> Iterator[tuple[bytes, str]]:
    """The tar of each layer, made by the stock program for its media type, and the DiffID the configuration has for it."""
    image = stored(reference)
    for layer, diff_id in zip(image.layers, image.config["rootfs"]["diff_ids"], strict=True):
        data = blob(registry.address, image.repository, layer["digest"])
        assert sha256(data) == layer["digest"]
        assert len(data) == layer["size"]
        program = ["zstd", "-dcq"] if layer["mediaType"].endswith("+zstd") else ["gzip", "-dc"]
        tar = subprocess.run(program, input=data, stdout=subprocess.PIPE, check=True).stdout
        assert sha256(tar) == diff_id
        yield tar, diff_id


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("layers", FORMATS)
def test_what_is_pulled_again_is_the_source(registry: Registry, name: str, layers: str) -> None:
    needs("zstd")
    source = push(registry, name, torture_image())
    converted(source, f"{source}-apparate", "--format", layers)
    trees = [members_of_tar(gzip.decompress(build_layer(one).blob)) for one in (base_layer(), torture_layer(), {})]
    trees[1][b"replaced"] = trees[0][b"replaced"]  # which the torture only implies
    for (tar, _), tree in zip(unpacked(registry, f"{source}-apparate"), trees, strict=True):
        assert members_of_tar(tar) == tree


@pytest.mark.root
@pytest.mark.parametrize("layers", FORMATS)
def test_gnu_tar_unpacks_the_same_tree(registry: Registry, name: str, layers: str, tmp_path: Path) -> None:
    needs("zstd")
    source = push(registry, name, torture_image())
    converted(source, f"{source}-apparate", "--format", layers)
    sources = [base_layer(), torture_layer(), {}]
    for number, ((tar, _), entries) in enumerate(zip(unpacked(registry, f"{source}-apparate"), sources, strict=True)):
        ours = gnu_tree(tar, tmp_path / f"ours-{number}")
        theirs = gnu_tree(gzip.decompress(build_layer(entries).blob), tmp_path / f"source-{number}")
        assert differences(ours, theirs, 0) == []


def gnu_tree(tar: bytes, directory: Path) -> dict[bytes, Entry]:
    """What GNU tar makes of *tar*, without the format's own files.

    Sparse files are left to tarfile: of an archive with several forms of them GNU tar 1.34 mistakes some. So are hard links
    with attributes of their own, which GNU tar ignores and containerd, whom we follow, applies.
    """
    directory.mkdir()
    (directory.parent / "tar").write_bytes(tar)
    own = ("sparse", "bin/odd", "bin/odd-link", ".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json")
    excluded = [f"--exclude={name}" for name in own]
    flags: list[str | Path] = [
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-xpf",
        directory.parent / "tar",
        "-C",
        directory,
    ]
    subprocess.run(["tar", "--anchored", *excluded, *flags], check=True, capture_output=True)
    return read_tree(directory)


@pytest.mark.parametrize("layers", FORMATS)
def test_skopeo_copies_the_result(registry: Registry, name: str, layers: str, tmp_path: Path) -> None:
    needs("skopeo")
    source = push(registry, name, torture_image())
    result = converted(source, f"{source}-apparate", "--format", layers)
    run(["skopeo", "copy", "--src-tls-verify=false", f"docker://{source}-apparate", f"oci:{tmp_path}/copy:x"])
    index = json.loads((tmp_path / "copy" / "index.json").read_bytes())
    assert index["manifests"][0]["digest"] == result["digest"]


def test_skopeo_copies_all_platforms(registry: Registry, name: str, tmp_path: Path) -> None:
    needs("skopeo")
    source = push(registry, name, two_platforms())
    converted(source, f"{source}-apparate")
    run(["skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{source}-apparate", f"oci:{tmp_path}/copy:x"])
    assert len(list((tmp_path / "copy" / "blobs" / "sha256").iterdir())) == 7  # index; 2 manifests, configs, layers


def two_platforms() -> Any:
    shared = build_layer(plain_layer(seed=3))
    return build_index(
        [
            build_image([shared, plain_layer(seed=4)], platform="linux/amd64"),
            build_image([shared], platform="linux/arm64"),
        ]
    )


def test_a_layer_of_two_platforms_is_fetched_and_uploaded_once(registry: Registry, name: str) -> None:
    source = push(registry, name, two_platforms())
    before = len(registry.requests("PUT", f"/{name}/blobs/uploads/"))
    result = converted(source, f"{source}-apparate")
    shared = result["images"][0]["layers"][0]["source_digest"]
    assert len(registry.requests("GET", f"/{name}/blobs/{shared}")) == 1
    uploads = len(registry.requests("PUT", f"/{name}/blobs/uploads/")) - before
    assert uploads == 4  # two layers, two configurations


def test_twice_gives_the_same_digest_and_uploads_nothing(registry: Registry, name: str) -> None:
    source = push(registry, name, torture_image())
    first = converted(source, f"{source}-one", "--threads", "1")
    before = len(registry.requests("PUT", f"/{name}/blobs/uploads/"))
    second = converted(source, f"{source}-two", "--threads", "4")
    assert second["digest"] == first["digest"]
    assert second["changed"]
    assert [layer["uploaded"] for layer in second["images"][0]["layers"]] == [False] * 3
    assert len(registry.requests("PUT", f"/{name}/blobs/uploads/")) == before
    again = converted(source, f"{source}-two")
    assert not again["changed"]
    assert again["digest"] == first["digest"]


def test_between_registry_and_layout(registry: Registry, name: str, tmp_path: Path) -> None:
    source = push(registry, name, torture_image())
    there = converted(source, f"{tmp_path}/layout:x", "--to-oci-layout")
    here = converted(source, f"{source}-apparate")
    assert here["digest"] == there["digest"]
    run(["skopeo", "copy", f"oci:{tmp_path}/layout:x", f"dir:{tmp_path}/copy"])
    run(["skopeo", "copy", "--src-tls-verify=false", f"docker://{source}", f"oci:{tmp_path}/plain:y"])
    copied = converted(f"{tmp_path}/plain:y", f"{source}-copied", "--from-oci-layout")
    assert layer_digests(copied) == layer_digests(here)


def layer_digests(result: dict[str, Any]) -> list[str]:
    return [layer["digest"] for layer in result["images"][0]["layers"]]


def test_neither_image_needs_the_other(registry: Registry, name: str) -> None:
    source = push(registry, name, build_image([plain_layer(seed=11)]))
    converted(source, f"{source}-apparate")
    image, plain = stored(f"{source}-apparate"), stored(source)
    assert "subject" not in image.manifest
    assert not {layer["digest"] for layer in image.layers} & {layer["digest"] for layer in plain.layers}
    assert image.manifest["annotations"]["com.tencent.cloud.apparate.source.reference"] == source


def test_memory_is_bounded(tmp_path: Path) -> None:
    """The bound of docs/convert.md, on a layer of 160 MB in 20,000 entries, of which two are large."""
    entries: dict[str, Node | bytes | None] = {
        f"small/{number:05}": pattern(2000, seed=number) for number in range(20_000)
    }
    entries |= {f"large-{number}": pattern(60_000_000, seed=number) for number in range(2)}
    write_layout(tmp_path / "source", build_image([entries], compression="none"))
    layouts = ["--from-oci-layout", "--to-oci-layout", "--level", "1"]
    arguments = command("convert", *layouts, tmp_path / "source", tmp_path / "target")
    # A small process in between: the peak of a child counts from the fork, with all that its parent had.
    measured = [sys.executable, "-c", _MEASURE, *arguments]
    done = subprocess.run(measured, env=environment(), capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) * 1024 < MEMORY_MAX


_MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


# --- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("uploads", [1, 3])
def test_interrupted_and_run_again(
    registry: Registry, name: str, tmp_path: Path, number: signal.Signals, uploads: int
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()

    def finished() -> list[str]:
        return registry.requests("PUT", f"/{repository}/blobs/uploads/")

    before = 0

    def is_under_way() -> bool:
        return len(finished()) >= before + uploads

    for layers in (6, 12, 24):  # until it takes longer than the signal does
        repository = f"{name}-{layers}"
        content = [{"data": pattern(3_000_000, seed=100 * layers + n)} for n in range(layers)]
        source = push(registry, repository, build_image(content))
        target, before = f"{source}-apparate", len(finished())
        arguments = ("convert", "--threads", "1", "--spool-dir", spool, source, target)
        process = Process("convert", command(*arguments), tmp_path / f"log-{layers}", env=environment())
        process.start(is_under_way)
        process.signal(number)
        status = process.wait()
        if status:
            break
    assert status == (130 if number in {signal.SIGINT, signal.SIGTERM} else -number)
    assert not list(spool.iterdir())
    assert not registry.requests("PUT", f"/{repository}/manifests/latest-apparate")
    result = converted(source, target)
    uploaded = [layer["uploaded"] for layer in result["images"][0]["layers"]]
    assert uploaded.count(False) >= uploads
    digests = [line.split("digest=")[1][:DIGEST_LENGTH] for line in finished()[before:] if " 201 " in line]
    assert len(digests) == len(set(digests)) == 7  # six layers and the configuration, each once


# --- bad input: one line, the right code, nothing changed ---------------------------------------

Broken = Callable[[Registry, str], list[str]]


def _exists(registry: Registry, name: str) -> list[str]:
    push(registry, name, build_image([plain_layer(seed=21)]), tag="v1-apparate")
    return [
        push(registry, name, build_image([plain_layer(seed=20)]), tag="v1"),
        f"{registry.address}/{name}:v1-apparate",
    ]


def _accelerated(registry: Registry, name: str) -> list[str]:
    source = push(registry, name, build_image([plain_layer(seed=22)]), tag="v1")
    converted(source, f"{source}-apparate")
    return [f"{source}-apparate", f"{source}-apparate-apparate"]


def _foreign(registry: Registry, name: str) -> list[str]:
    windows = build_image([plain_layer(seed=23)], platform="windows/amd64")
    return [push(registry, name, build_index([windows])), f"{registry.address}/{name}:x"]


def _other_platform(registry: Registry, name: str) -> list[str]:
    arm = build_image([plain_layer(seed=24)], platform="linux/arm64")
    return ["--platform", "linux/amd64", push(registry, name, build_index([arm])), f"{registry.address}/{name}:x"]


def _unknown_layer(registry: Registry, name: str) -> list[str]:
    odd = Layer(b"odd", "application/vnd.example.odd", sha256(b"odd"))
    return [push(registry, name, build_image([odd])), f"{registry.address}/{name}:x"]


def _plain(registry: Registry, name: str) -> str:
    return push(registry, name, build_image([plain_layer(seed=25)]))


BAD: dict[str, tuple[Broken, int, str]] = {
    "reference": (lambda _r, _n: ["not a reference", "x/y:z"], 2, "not a reference"),
    "target by digest": (lambda r, n: [_plain(r, n), f"{r.address}/{n}@sha256:{'0' * 64}"], 2, "tag"),
    "no such image": (lambda r, n: [f"{r.address}/{n}:nope", f"{r.address}/{n}:x"], 3, "nope"),
    "no such platform": (_other_platform, 3, "it has linux/arm64"),
    "other content": (_exists, 4, "--replace"),
    "accelerated": (_accelerated, 5, "accelerated already"),
    "foreign platform": (_foreign, 6, "only Linux"),
    "unknown layer": (_unknown_layer, 6, "application/vnd.example.odd"),
    "level": (lambda r, n: ["--level", "99", _plain(r, n), f"{r.address}/{n}:x"], 2, "99"),
    "size": (lambda r, n: ["--member-size", "5", _plain(r, n), f"{r.address}/{n}:x"], 2, "5"),
    "platform": (lambda r, n: ["--platform", "linux", _plain(r, n), f"{r.address}/{n}:x"], 2, "os/architecture"),
    "prefetch": (lambda r, n: ["--prefetch", "/nonexistent", _plain(r, n), f"{r.address}/{n}:x"], 2, "/nonexistent"),
}


def tags(registry: Registry, name: str) -> dict[str, str]:
    """Every tag of a repository and what it stands for."""
    folder = registry.directory / "data/docker/registry/v2/repositories" / name / "_manifests/tags"
    return {path.parent.parent.name: path.read_text() for path in folder.glob("*/current/link")}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_clear_line_and_changes_nothing(registry: Registry, name: str, case: str) -> None:
    prepare, code, words = BAD[case]
    arguments = prepare(registry, name)
    before = tags(registry, name)
    done = apparate("convert", *arguments, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code != 2:
        assert done.stderr.startswith("apparate: ")
        assert done.stderr.count("\n") == 1
    assert tags(registry, name) == before


def test_an_unreachable_registry_is_named(registry: Registry, name: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = apparate("convert", "--patience", "1", f"{address}/{name}:v1", f"{registry.address}/{name}:x", check=False)
    assert done.returncode == 9, done.stderr
    assert address in done.stderr
    assert done.stderr.count("\n") == 1


def test_missing_credentials_are_named(folder: Path, registry: Registry, name: str) -> None:
    with Registry(folder / "private", users={"user": "secret"}) as private:
        target = f"{private.address}/{name}:x"
        done = apparate("convert", _plain(registry, name), target, check=False)
    assert done.returncode == 8, done.stderr
    assert "401" in done.stderr
    assert private.address in done.stderr
    assert done.stderr.count("\n") == 1
