"""`apparate node configure` and `restore` on real containerds with images and pods."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.support.busybox import busybox_entries
from tests.support.containerd import PAUSE
from tests.support.cri import CriError
from tests.support.distribution import Registry
from tests.support.images import build_image, push
from tests.support.processes import wait_until
from tests.support.scope import matrix_only
from tests.support.services import apparate
from tests.support.site import Site, site
from tests.support.tarball import Node as Entry
from tests.support.tarball import directory, file
from tests.support.trees import differences, read_tree

from apparate.snapshot.snapshotter import REMOTE_PREPARED

SLEEP = ["sh", "-c", "echo up; sleep 100000"]
RELEASES = (
    "debian",
    "2.4.2",
    pytest.param("1.4.3", marks=matrix_only),
    pytest.param("1.7.35", marks=matrix_only),
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(params=RELEASES)
def machine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Site]:
    with site(folder, str(request.param)) as made:
        yield made


@pytest.fixture
def debian(folder: Path) -> Iterator[Site]:
    with site(folder, "debian") as made:
        yield made


@pytest.fixture(scope="module")
def plain(registry: Registry) -> str:
    """Three layers, of which the upper ones change, empty and delete what the lower ones have."""
    layers: list[Mapping[str, Entry | bytes | None]] = [
        {
            **busybox_entries(),
            "note": b"first\n",
            "d/": None,
            "d/old": b"1\n",
            "gone": b"1\n",
            "e/": None,
            "e/x": b"1\n",
        },
        {
            "note": file(b"third\n", mode=0o4755, uid=3, gid=4, xattrs={"user.a": b"b"}),
            "d/": directory(mode=0o2711),
            "d/.wh..wh..opq": b"",
            "d/new": b"2\n",
            ".wh.gone": b"",
        },
        {"e/.wh.x": b"", "e/y": b"3\n"},
    ]
    return push(registry, "node/app", build_image(layers))


@pytest.fixture(scope="module")
def converted(plain: str) -> str:
    target = f"{plain}-apparate"
    apparate("convert", plain, target)
    return target


def _print_note(machine: Site, reference: str) -> None:
    pod = machine.containerd.cri.run_pod()
    machine.containerd.cri.start(pod, reference, ["cat", "/note"]).wait_output("third")
    machine.containerd.cri.remove_pod(pod)


def _image_names(machine: Site) -> set[str]:
    return {tag for image in machine.containerd.cri.images() for tag in image.repo_tags}


def test_node_is_configured_and_given_back(machine: Site, plain: str, converted: str) -> None:
    cri = machine.containerd.cri
    before = machine.config.read_bytes()
    cri.pull(plain)
    old_pod = cri.run_pod()
    old = cri.start(old_pod, plain, SLEEP)
    old.wait_output("up")

    machine.apparate("configure")
    assert machine.restarts == 1
    assert machine.apparate("configure").stdout == "nothing to do\n"
    assert machine.restarts == 1
    assert old.exec(["cat", "/note"]).stdout == "third\n"

    cri.pull(converted)
    pod = cri.run_pod()
    for reference in (plain, converted):
        started = cri.start(pod, reference, SLEEP)
        started.wait_output("up")
        assert started.exec(["cat", "/note"]).stdout == "third\n"
    assert machine.services.events(REMOTE_PREPARED)
    status = machine.json("status")
    assert (status["configured"], status["mode"], status["last_error"]) == ("yes", "lazy", "")
    assert (len(status["lazy"]), len(status["standing"])) == (1, 3)
    assert started.id in machine.apparate("status", "--running-lazy", code=5).stdout

    assert "--default-only" in machine.apparate("restore", code=5).stderr
    cri.remove_pod(pod)
    assert machine.apparate("status", "--running-lazy").stdout == ""
    machine.apparate("restore")
    assert machine.config.read_bytes() == before
    assert not machine.state_dir.exists()
    assert old.exec(["cat", "/note"]).stdout == "third\n"
    assert {PAUSE, plain} <= _image_names(machine)
    assert converted not in _image_names(machine)
    _print_note(machine, plain)
    assert machine.apparate("restore").stdout == "nothing to do\n"


def test_images_whose_layers_were_discarded_are_carried_over(machine: Site, plain: str) -> None:
    machine.containerd.cri.pull(plain)
    for reference in (PAUSE, plain):
        machine.lose_layers(reference)
    machine.apparate("configure")
    _print_note(machine, plain)
    mounted = machine.containerd.mounted
    with (
        mounted(plain, "apparate", machine.base / "ours") as ours,
        mounted(plain, "overlayfs", machine.base / "theirs") as theirs,
    ):
        assert differences(read_tree(ours), read_tree(theirs), 0) == []
    machine.containerd.cri.remove_all()
    assert machine.containerd.snapshots("apparate") == []
    machine.apparate("restore")


def test_check_says_everything_and_changes_nothing(machine: Site) -> None:
    before = machine.config.read_bytes()
    said = machine.json("configure", "--check")
    assert said["changed"]
    assert '+  snapshotter = "apparate"' in said["diff"].replace("+snapshotter", "+  snapshotter")
    assert "run a probe pod" in said["steps"]
    assert machine.config.read_bytes() == before
    assert not machine.state_dir.exists()
    machine.apparate("configure")
    assert machine.json("configure", "--check") == {"changed": False, "diff": "", "steps": [], "check": True}
    there = machine.config.read_bytes()
    assert machine.json("restore", "--check")["changed"]
    assert machine.config.read_bytes() == there
    assert machine.restarts == 1


def test_edits_of_others_outlive_a_restore(machine: Site) -> None:
    machine.apparate("configure")
    edited = machine.config.read_text().replace("oom_score = 0", "oom_score = 0 # ours to keep\n# a remark of the site")
    machine.config.write_text(edited)
    machine.apparate("configure")
    machine.apparate("restore")
    after = machine.config.read_text()
    assert "oom_score = 0 # ours to keep\n# a remark of the site\n" in after
    assert "apparate.sock" not in after
    assert "proxy_plugins" not in after
    _print_pause(machine)


def _print_pause(machine: Site) -> None:
    machine.containerd.cri.remove_pod(machine.containerd.cri.run_pod())


def test_containerd_that_does_not_start_is_rolled_back(machine: Site, plain: str) -> None:
    before = machine.config.read_bytes()
    machine.containerd.cri.pull(plain)
    machine.faults.append(lambda: "Job for containerd.service failed.")
    failed = machine.apparate("configure", code=1)
    assert "Job for containerd.service failed.; the old configuration is back in force" in failed.stderr
    assert machine.config.read_bytes() == before
    assert "Job for" in machine.json("status")["last_error"]
    _print_note(machine, plain)
    machine.apparate("configure")
    assert machine.json("status")["last_error"] == ""
    _print_note(machine, plain)
    machine.apparate("restore")
    assert machine.config.read_bytes() == before


def test_pod_that_does_not_run_is_rolled_back(debian: Site, plain: str) -> None:
    before = debian.config.read_bytes()
    debian.containerd.cri.pull(plain)

    def snapshotter_dies() -> str:
        debian.services.snapshotter.kill()
        return ""

    debian.faults.append(snapshotter_dies)
    assert "the old configuration is back in force" in debian.apparate("configure", code=1).stderr
    assert debian.restarts == 2
    assert debian.config.read_bytes() == before
    _print_note(debian, plain)
    debian.services.start_snapshotter()
    debian.apparate("configure")


@pytest.mark.parametrize("verb", ["configure", "restore"])
def test_killed_run_is_repaired_by_the_next(machine: Site, plain: str, verb: str) -> None:
    before = machine.config.read_bytes()
    machine.containerd.cri.pull(plain)
    if verb == "restore":
        machine.apparate("configure")
    runs: list[subprocess.Popen[str]] = []

    def kill() -> str:
        os.kill(runs[0].pid, signal.SIGKILL)
        return ""

    machine.faults.append(kill)
    runs.append(machine.start(verb))
    runs[0].communicate()
    assert runs[0].returncode == -signal.SIGKILL
    wait_until(lambda: _answers(machine), "containerd is back")
    machine.apparate(verb)
    assert (machine.config.read_bytes() == before) == (verb == "restore")
    _print_note(machine, plain)
    if verb == "configure":
        machine.apparate("restore")
        assert machine.config.read_bytes() == before


def _answers(machine: Site) -> bool:
    try:
        return machine.restarts > 0 and bool(machine.containerd.cri.images())
    except CriError:
        return False


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=matrix_only),
        pytest.param(signal.SIGHUP, marks=matrix_only),
    ],
)
def test_run_that_is_told_to_end_rolls_back(debian: Site, number: signal.Signals) -> None:
    before = debian.config.read_bytes()
    runs: list[subprocess.Popen[str]] = []

    def interrupt() -> str:
        runs[0].send_signal(number)
        return ""

    debian.faults.append(interrupt)
    runs.append(debian.start("configure"))
    runs[0].communicate()
    assert runs[0].returncode == 130
    assert debian.config.read_bytes() == before
    assert debian.restarts == 2
    assert not (debian.state_dir / "node.json").exists()
    _print_pause(debian)


def test_two_runs_at_once_restart_containerd_once(debian: Site) -> None:
    runs = [debian.start("configure") for _ in range(2)]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert debian.restarts == 1
    assert sorted(text == "nothing to do\n" for text in said) == [False, True]


def test_default_comes_back_while_containers_keep_the_plugin(debian: Site, converted: str) -> None:
    before = debian.config.read_bytes()
    cri = debian.containerd.cri
    debian.apparate("configure")
    cri.pull(converted)
    pod = cri.run_pod()
    old = cri.start(pod, converted, SLEEP)
    old.wait_output("up")
    debian.apparate("restore", "--default-only")
    assert debian.json("status")["configured"] == "leaving"
    assert old.exec(["cat", "/note"]).stdout == "third\n"
    fresh = cri.run_pod()
    standing = set(debian.json("status")["standing"])
    assert old.id in standing
    assert fresh.sandbox_id not in standing
    assert "drain the node" in debian.apparate("restore", code=5).stderr
    cri.remove_pod(pod)
    debian.apparate("restore")
    assert debian.config.read_bytes() == before
    assert converted not in _image_names(debian)


def test_run_goes_on_after_the_default_came_back(debian: Site, converted: str) -> None:
    debian.apparate("configure")
    debian.apparate("restore", "--default-only")
    debian.apparate("configure")
    debian.containerd.cri.pull(converted)
    _print_note(debian, converted)
    assert debian.services.events(REMOTE_PREPARED)


def test_containerd_that_is_down_is_started_with_the_right_files(debian: Site) -> None:
    debian.apparate("configure")
    debian.containerd.process.stop()
    assert "restart containerd" in debian.apparate("configure").stdout
    _print_pause(debian)


def test_restore_by_force_asks_no_containerd(debian: Site) -> None:
    before = debian.config.read_bytes()
    debian.apparate("configure")
    debian.containerd.process.stop()
    debian.faults.append(lambda: "Unit containerd.service not found.")
    assert "start containerd, or give --force" in debian.apparate("restore", code=9).stderr
    debian.apparate("restore", "--force", code=9)
    assert debian.config.read_bytes() == before
    debian.containerd.start()


BAD = {
    "no TOML": ("[plugins\n", 2, "containerd refuses"),
    "CRI is disabled": ('disabled_plugins = ["io.containerd.grpc.v1.cri"]\n', 5, "disabled_plugins"),
    "proxy plugin of somebody else": (
        '[proxy_plugins.apparate]\ntype = "snapshot"\naddress = "/run/other.sock"\n',
        5,
        "not ours",
    ),
    "made by k3s": ("# File generated by k3s. DO NOT EDIT. Use config.toml.tmpl instead.\n", 5, "config.toml.tmpl"),
}


def test_node_that_cannot_be_configured_is_left_alone(debian: Site) -> None:
    good = debian.config.read_text()
    head, _, rest = good.partition("\n")
    for what, (added, code, said) in BAD.items():
        bad = f"{head}\n{added}{rest}" if "proxy_plugins" not in added else f"{good}{added}"
        debian.config.write_text(bad)
        assert said in debian.apparate("configure", code=code).stderr, what
        _assert_untouched(debian, bad)


def test_other_default_snapshotter_is_replaced_only_by_agreement(debian: Site) -> None:
    text = debian.config.read_text()
    other = text.replace('snapshotter = "overlayfs"', 'snapshotter = "native"')
    debian.config.write_text(other)
    assert "--replace native" in debian.apparate("configure", code=5).stderr
    _assert_untouched(debian, other)
    debian.apparate("configure", "--replace", "native")
    debian.apparate("restore")
    assert debian.config.read_text() == other


def test_old_containerd_and_missing_services_are_refused(debian: Site) -> None:
    text = debian.config.read_text()
    old = debian.base / "old-containerd"
    old.write_text("#!/bin/sh\necho containerd github.com/containerd/containerd v1.4.2 abc\n")
    old.chmod(0o755)
    assert "upgrade it to 1.4.3" in debian.apparate("configure", "--containerd", str(old), code=6).stderr
    debian.services.snapshotter.stop()
    assert "start the snapshotter first" in debian.apparate("configure", code=5).stderr
    assert any("start the snapshotter first" in step for step in debian.json("configure", "--check")["steps"])
    _assert_untouched(debian, text)
    debian.services.start_snapshotter()


def _assert_untouched(machine: Site, text: str) -> None:
    assert machine.config.read_text() == text
    assert machine.restarts == 0
    assert not (machine.state_dir / "node.json").exists()
    _print_pause(machine)


def test_check_asks_a_registry_for_parts(debian: Site, plain: str) -> None:
    found = {finding["name"]: finding for finding in debian.json("check", "--image", plain)}
    assert found[f"image {plain}"]["detail"].endswith("answers, with ranges")
    assert found["containerd socket"]["level"] == "ok"
    missing = debian.apparate("check", "--image", f"{plain}-missing", code=5).stdout
    assert "failed" in missing
