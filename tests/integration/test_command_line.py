"""The command line as people and scripts use it: real processes, exit codes, one clear line for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.busybox import busybox_entries
from tests.support.content import stored
from tests.support.distribution import Registry
from tests.support.images import OCI_LAYER, Layer, build_image, build_index, pattern, push, sha256
from tests.support.leftovers import clean_folder
from tests.support.node import Node, node
from tests.support.processes import run, wait_until
from tests.support.services import Services, apparate, as_nobody, command, environment
from tests.support.tarball import Node as Entry

PROGRAM = ["sh", "-c", "md5sum /data/touched && echo up && sleep 100000"]
TOUCHED_BYTES = 400_000
NEIGHBOUR_BYTES = 64 << 10  # what read-ahead touches beyond the end of a file

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def refusal(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and the single line on standard error of a call that must fail without a word on standard output."""
    done = apparate(*arguments, check=False)
    assert done.returncode != 0, done.stdout
    assert done.stdout == ""
    return done.returncode, told(done.stderr)


def told(stderr: str) -> str:
    """The one line for a person; a service may have logged that it starts before."""
    lines = [line for line in stderr.strip().splitlines() if '"level": "info"' not in line]
    assert len(lines) == 1, stderr
    return lines[0]


# --- a node that runs ---


@pytest.fixture(scope="module")
def source(registry: Registry) -> str:
    data: dict[str, Entry | bytes | None] = {"data/": None, "data/touched": pattern(TOUCHED_BYTES, seed=1)}
    data["data/untouched"] = pattern(6_000_000, seed=2)
    return push(registry, "cli/app", build_image([busybox_entries(), data]))


@pytest.fixture(scope="module")
def converted(source: str) -> str:
    apparate("convert", source, f"{source}-apparate")
    return f"{source}-apparate"


@pytest.fixture(scope="module")
def running(converted: str, source: str) -> Iterator[Node]:
    """A node with a container of the converted image and one of the plain image."""
    with clean_folder("cli") as folder, node(folder, "debian") as made:
        cri = made.containerd.cri
        pod = cri.run_pod()
        for reference in (converted, source):
            cri.pull(reference)
            cri.start(pod, reference, PROGRAM).wait_output("up")
        yield made
        made.containerd.remove_all()
        made.assert_empty()


def on(running: Node, *arguments: str) -> str:
    return apparate(*arguments, "--config", running.ours.config).stdout


def test_images_tells_lazy_from_ordinary(running: Node, converted: str, source: str) -> None:
    listed = json.loads(on(running, "images", "--json"))
    text = on(running, "images")
    states = {image["reference"]: {layer["mode"] for layer in image["layers"]} for image in listed["images"]}
    assert states[converted] == {"lazy"}
    assert states[source] == {"ordinary"}
    accelerated = {image["reference"]: image["accelerated"] for image in listed["images"]}
    assert (accelerated[converted], accelerated[source]) == (True, False)
    assert converted in text


def test_why_explains_the_lazy_and_the_ordinary_image(running: Node, converted: str, source: str) -> None:
    assert "on demand" in on(running, "why", converted)
    assert on(running, "why", source) != on(running, "why", converted)


def test_why_judges_what_is_expected(running: Node, converted: str, source: str) -> None:
    on(running, "why", "--expect", "lazy", converted)
    on(running, "why", "--expect", "ordinary", source)
    for expected, reference in (("ordinary", converted), ("lazy", source)):
        done = apparate("why", "--expect", expected, reference, "--config", running.ours.config, check=False)
        assert done.returncode == 5
        assert reference in done.stdout  # the explanation comes first, as ever
        assert f"{reference} is not {expected} on this node" in told(done.stderr)


def test_why_of_an_unknown_image_is_not_found(running: Node) -> None:
    code, line = refusal("why", "registry.test/never/pulled:1", "--config", running.ours.config)
    assert code == 3
    assert "registry.test/never/pulled:1" in line


def test_a_profile_of_an_ordinary_node_makes_an_image(running: Node, source: str, folder: Path) -> None:
    """It lacks what was fetched along with something else, and so was never asked for."""
    recorded = folder / "profile"
    recorded.write_text(on(running, "profile", f"{source}-apparate"))
    assert recorded_bytes(recorded, "data/touched") > 0
    assert recorded_bytes(recorded, "data/untouched") <= NEIGHBOUR_BYTES
    target = f"{source}-profiled"
    apparate("convert", source, target, "--prefetch", recorded)
    cri = running.containerd.cri
    cri.pull(target)
    container = cri.start(cri.run_pod(), target, PROGRAM)
    container.wait_output("up")
    assert len(stored(target).layers) == 2


def test_recording_node_tells_exactly_what_was_touched(converted: str) -> None:
    """Also of a second start, for which everything that the first one touched is loaded ahead and could be pushed."""
    with clean_folder("recorder") as folder:
        recorded = folder / "profile"
        with node(folder, "debian", sections={"loader": {"record_profiles": True}}) as recorder:
            reference = converted
            for target in (f"{converted}-exact", None):
                cri = recorder.containerd.cri
                cri.pull(reference)
                cri.start(cri.run_pod(), reference, PROGRAM).wait_output("up")
                recorded.write_text(on(recorder, "profile", reference))
                assert recorded_bytes(recorded, "data/touched") == TOUCHED_BYTES
                assert recorded_bytes(recorded, "data/untouched") == 0
                if target is not None:
                    apparate("convert", reference.removesuffix("-apparate"), target, "--prefetch", recorded)
                    reference = target
            recorder.containerd.remove_all()
            recorder.assert_empty()


def recorded_bytes(profile: Path, path: str) -> int:
    """Bytes of *path* in a prefetch list of `path offset length` lines."""
    lines = [line.split(" ") for line in profile.read_text().splitlines() if line.startswith(f"{path} ")]
    return sum(int(line[2]) for line in lines)


def test_complete_makes_every_layer_local_and_fsck_agrees(running: Node, converted: str) -> None:
    on(running, "complete", converted)
    listed = json.loads(on(running, "images", "--json"))
    states = {image["reference"]: {layer["mode"] for layer in image["layers"]} for image in listed["images"]}
    assert states[converted] == {"complete"}
    on(running, "fsck")


def test_node_check_finds_what_is_needed(running: Node) -> None:
    report = json.loads(on(running, "node", "check", "--json"))
    assert report


@pytest.mark.parametrize("service", ["snapshotter", "loader"])
def test_second_instance_on_the_same_root_is_refused(running: Node, service: str) -> None:
    code, line = refusal(service, "--config", running.ours.config)
    assert code == 5
    assert str(running.ours.root) in line or str(running.ours.run_dir) in line


# --- bad input of the services ---


def test_wrong_key_is_refused_with_a_suggestion(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text('[loader]\ndrivr = "auto"\n')
    for service in ("snapshotter", "loader"):
        code, line = refusal(service, "--config", config)
        assert code == 2
        assert "loader.driver" in line


def test_root_on_overlayfs_is_refused(folder: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (folder / name).mkdir()
    layers = f"lowerdir={folder / 'lower'},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    run(["mount", "-t", "overlay", "overlay", "-o", layers, folder / "merged"])
    try:
        services = Services(folder / "services", folder / "merged" / "root")
        code, line = refusal("snapshotter", "--config", services.config)
        assert code in {5, 6}
        assert "overlay" in line
    finally:
        run(["umount", folder / "merged"])


def test_loader_without_fuse_says_so(folder: Path) -> None:
    services = Services(folder / "services", folder / "root")
    empty = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    hidden = ["unshare", "-m", "sh", "-c", empty, "sh"]
    code, line = refused_process([*hidden, *command("loader", "--config", services.config)])
    assert code in {5, 6, 9}
    assert "/dev/fuse" in line


def test_snapshotter_of_an_ordinary_user_says_what_it_needs(folder: Path) -> None:
    folder.chmod(0o755)
    services = Services(folder / "services", folder / "root")
    services.base.chmod(0o755)
    code, line = refused_process(as_nobody(command("snapshotter", "--config", services.config)))
    assert code in {5, 9}
    assert "ermission" in line or "root" in line


@pytest.mark.parametrize("service", ["snapshotter", "loader"])
def test_service_that_may_not_mount_says_so(folder: Path, service: str) -> None:
    services = Services(folder / "services", folder / "root")
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    code, line = refused_process([*drop, *command(service, "--config", services.config)])
    assert code in {5, 9}
    assert "not permitted" in line


def refused_process(line: Sequence[str | Path]) -> tuple[int, str]:
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, told(done.stderr)


# --- bad input of convert ---


def test_reference_that_does_not_parse_is_refused() -> None:
    code, line = refusal("convert", "not/a:ref:x", "127.0.0.1:1/b:c")
    assert code == 2
    assert "not/a:ref:x" in line


def test_unreachable_registry_is_told_by_its_address() -> None:
    code, line = refusal("convert", "127.0.0.1:1/a/b:c", "127.0.0.1:1/a/b:d")
    assert code == 9
    assert "127.0.0.1:1" in line


def test_missing_image_is_not_found(registry: Registry) -> None:
    code, line = refusal("convert", f"{registry.address}/cli/none:1", f"{registry.address}/cli/none:2")
    assert code == 3
    assert "cli/none" in line


def test_missing_credentials_are_named(folder: Path) -> None:
    with Registry(folder / "registry", users={"user": "secret"}) as private:
        code, line = refusal("convert", f"{private.address}/a/b:1", f"{private.address}/a/b:2")
    assert code == 8
    assert private.address in line
    assert "401" in line


def test_tag_with_other_content_is_kept_unless_told(registry: Registry, source: str) -> None:
    other = push(registry, "cli/taken", build_image([{"other": b"1\n"}]))
    before = stored(other).manifest
    code, line = refusal("convert", source, other)
    assert code == 4
    assert other in line
    assert "--replace" in line
    assert stored(other).manifest == before
    apparate("convert", source, other, "--replace")
    assert stored(other).manifest != before


def test_accelerated_image_is_not_converted_again(converted: str) -> None:
    code, _ = refusal("convert", converted, f"{converted}-again")
    assert code in {2, 5, 6}


def test_platform_that_the_image_lacks_is_named(source: str) -> None:
    code, line = refusal("convert", source, f"{source}-arm", "--platform", "linux/arm64")
    assert code in {3, 6}
    assert "linux/arm64" in line


def test_all_platforms_of_an_index_are_converted(registry: Registry) -> None:
    images = [build_image([{"arch": name.encode()}], platform=name) for name in ("linux/amd64", "linux/arm64")]
    reference = push(registry, "cli/index", build_index(images))
    result = json.loads(apparate("convert", reference, f"{reference}-apparate", "--json").stdout)
    assert [image["platform"] for image in result["images"]] == ["linux/amd64", "linux/arm64"]


def test_layer_of_an_unknown_media_type_is_refused(registry: Registry) -> None:
    blob = b"no layer at all"
    strange = Layer(blob, OCI_LAYER.replace("tar", "parquet"), sha256(blob))
    reference = push(registry, "cli/strange", build_image([strange]))
    code, line = refusal("convert", reference, f"{reference}-apparate")
    assert code == 6
    assert "parquet" in line


def test_result_is_the_same_every_time(registry: Registry, source: str) -> None:
    results = []
    for number in range(2):
        target = f"{source}-same"
        done = apparate("convert", source, target, "--json", "--replace", "--threads", str(number + 1))
        results.append(json.loads(done.stdout)["digest"])
        assert stored(target).size
    assert results[0] == results[1]


def test_help_of_every_subcommand_is_quick_and_clean() -> None:
    known = apparate("--help").stdout
    for name in ("snapshotter", "loader", "convert", "images", "why", "complete", "profile", "fsck", "node", "config"):
        assert name in known
        assert apparate(name, "--help").stderr == ""


def test_broken_pipe_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -1', "bash", *command("config", "default")],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_services_stop_cleanly_and_leave_no_socket(folder: Path) -> None:
    services = Services(folder / "services", folder / "root")
    services.start()
    services.stop()
    wait_until(lambda: not services.socket.exists(), "the snapshotter's socket is gone")
    assert (services.loader.status, services.snapshotter.status) == (0, 0)
    assert services.unexpected() == []
    run(["umount", services.run_dir / "fs"])
