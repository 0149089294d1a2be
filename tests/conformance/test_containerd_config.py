"""Every configuration file of the corpus, judged by real containerds: ours comes into force, nothing else changes, and it goes again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.support.containerd import release
from tests.support.scope import matrix_only

from apparate.errors import ApparateError, InvalidArgument
from apparate.node import files, toml_edit
from apparate.node.containerd_config import ConfigPlanner
from apparate.node.program import Program
from apparate.node.settings import NAME, NodeSettings
from apparate.node.state import State, StateStore

CORPUS = Path(__file__).parents[1] / "corpus/containerd"
NAMES = sorted(path.name for path in CORPUS.glob("*.toml"))
RELEASES = ("debian", "2.4.2", pytest.param("1.4.3", marks=matrix_only), pytest.param("1.7.35", marks=matrix_only))


@pytest.fixture(scope="module", params=RELEASES)
def program(request: pytest.FixtureRequest) -> Program:
    return Program(release(str(request.param)).folder / "containerd")


def _planner(program: Program, config: Path) -> ConfigPlanner:
    return ConfigPlanner(
        program, NodeSettings(Path("/run/apparate/s.sock"), Path("/var/lib/apparate-root"), config=config)
    )


def _placed(tmp_path: Path, name: str) -> Path:
    """The file in a directory of its own, its absolute imports made relative to that."""
    config = tmp_path / "config.toml"
    config.write_bytes((CORPUS / name).read_bytes().replace(b"/etc/containerd/conf.d", b"conf.d"))
    (tmp_path / "conf.d").mkdir()
    return config


def _refused(program: Program, name: str) -> str:
    """Why *name* cannot be used with this containerd; empty if it can."""
    if name == "dotted.toml":
        return "bare keys" if program.version() < (1, 5, 0) else "as tables"
    declared = tomllib.loads((CORPUS / name).read_text()).get("version", 0)
    if declared > 2 and program.version() < (2, 0, 0):
        return "version"
    return ""


def _others(dump: dict[str, Any]) -> dict[str, Any]:
    """What of a dump is not ours: everything but our keys."""
    for table in ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"):
        cri = dump.get("plugins", {}).get(table, {})
        for holder in (cri, cri.get("containerd", {})):
            for key in (
                "snapshotter",
                "disable_snapshot_annotations",
                "discard_unpacked_layers",
                "use_local_image_pull",
            ):
                holder.pop(key, None)
    dump.get("proxy_plugins", {}).pop(NAME, None)
    dump.pop("imports", None)
    return {key: value for key, value in dump.items() if value}


@pytest.mark.parametrize("name", NAMES)
def test_settings_come_into_force_and_go_again(program: Program, tmp_path: Path, name: str) -> None:
    config = _placed(tmp_path, name)
    before = config.read_bytes()
    planner = _planner(program, config)
    there = {config: before}
    if name == "docker-package.toml":
        assert planner.effective(there).cri_disabled
        return
    if _refused(program, name):
        with pytest.raises(ApparateError, match=_refused(program, name)):
            planner.plan(there)
        assert config.read_bytes() == before
        return
    others = _others(program.dump(config))
    plan = planner.plan(there)
    assert plan.change is not None
    assert (plan.effective.snapshotter, plan.effective.annotations, plan.effective.discards_layers) == (
        NAME,
        True,
        False,
    )
    store = StateStore(tmp_path / "state")
    state = State.of(plan.change, "overlayfs", "1.0.0")
    store.begin(plan.change, state)
    files.replace(plan.change.path, plan.change.after)
    assert _others(program.dump(config)) == others
    assert planner.effective({config: config.read_bytes(), plan.change.path: plan.change.after}) == plan.effective
    given = store.give_back(state)
    files.replace(given.path, given.body)
    assert config.read_bytes() == before
    assert list((tmp_path / "conf.d").iterdir()) == []


def test_drop_in_is_used_where_tables_are_merged(program: Program, tmp_path: Path) -> None:
    config = _placed(tmp_path, "nvidia.toml")
    plan = _planner(program, config).plan({config: config.read_bytes()})
    assert plan.change is not None
    expected = tmp_path / "conf.d/apparate.toml" if program.version() >= (2, 0, 0) else config
    assert plan.change.path == expected
    assert plan.effective.systemd_cgroup


def test_drop_in_of_others_that_wins_is_refused_by_name(program: Program, tmp_path: Path) -> None:
    config = _placed(tmp_path, "nvidia.toml")
    table = (
        "io.containerd.cri.v1.images" if program.version() >= (2, 0, 0) else "io.containerd.grpc.v1.cri'.'containerd"
    )
    version = 3 if program.version() >= (2, 0, 0) else 2
    (tmp_path / "conf.d/zz-other.toml").write_text(
        f"version = {version}\n[plugins.'{table}']\nsnapshotter = 'overlayfs'\n"
    )
    if program.version() < (1, 7, 0):
        # A relative pattern counts from containerd's working directory here.
        config.write_text(config.read_text().replace("conf.d/", f"{tmp_path}/conf.d/"))
    with pytest.raises(ApparateError, match="do not come into force"):
        _planner(program, config).plan({config: config.read_bytes()})


def test_missing_file_is_made_whole(program: Program, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    plan = _planner(program, config).plan({config: None})
    assert plan.change is not None
    assert plan.change.after is not None
    config.write_bytes(plan.change.after)
    assert _planner(program, config).plan({config: plan.change.after}).change is None
    text, left = toml_edit.revert(plan.change.after.decode(), plan.change.edits, "f")
    assert (text.strip(), left) == ("", ())


def test_file_that_containerd_refuses_is_named_with_its_words(program: Program, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("version = 2\n[plugins\n")
    with pytest.raises(InvalidArgument, match=f"containerd refuses {config}"):
        _planner(program, config).plan({config: config.read_bytes()})
