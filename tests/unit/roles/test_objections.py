"""What stands in the way is named before anything is on the host."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.role_tables import ROLES

SOCKET = "/run/apparate/snapshotter.sock"
PLAIN = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "overlayfs"\n'


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def objections() -> Callable[..., list[str]]:
    """The filter as Ansible finds it."""
    module = _module(ROLES / "apparate_node" / "filter_plugins" / "containerd_objections.py")
    found: Callable[..., list[str]] = module.FilterModule().filters()["containerd_objections"]
    return found


@pytest.mark.parametrize(
    "dump",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        "",
        f"{PLAIN}[proxy_plugins.apparate]\ntype = 'snapshot'\naddress = '{SOCKET}'\n",
        "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'apparate'\n",
    ],
    ids=["plain", "over a terminal", "nothing", "configured", "configured, containerd 2"],
)
def test_a_node_that_can_be_configured_raises_none(objections: Callable[..., list[str]], dump: str) -> None:
    assert objections(dump, SOCKET) == []


@pytest.mark.parametrize(
    ("dump", "says"),
    [
        ("disabled_plugins = ['cri']\n", "take it out of disabled_plugins"),
        ("disabled_plugins = ['io.containerd.grpc.v1.cri']\n", "take it out of disabled_plugins"),
        ("[proxy_plugins.apparate]\naddress = '/run/other.sock'\n", "a proxy plugin apparate at /run/other.sock"),
        (PLAIN.replace("overlayfs", "native"), "agree with apparate_node_replace=native"),
        (
            "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'stargz'\n",
            "agree with apparate_node_replace=stargz",
        ),
        ("[plugins.cri.containerd]\nsnapshotter = 'zfs'\n", "agree with apparate_node_replace=zfs"),
        ("what is this", "no TOML"),
    ],
)
def test_what_stands_in_the_way_is_named_with_the_fix(
    objections: Callable[..., list[str]], dump: str, says: str
) -> None:
    (found,) = objections(dump, SOCKET)
    assert says in found


def test_a_snapshotter_that_may_be_replaced_is_none(objections: Callable[..., list[str]]) -> None:
    assert objections(PLAIN.replace("overlayfs", "native"), SOCKET, "native") == []


def test_a_socket_of_the_settings_is_ours(objections: Callable[..., list[str]]) -> None:
    dump = "[proxy_plugins.apparate]\naddress = '/run/a.sock'\n"
    assert objections(dump, "/run/a.sock") == []
