"""What the units must say, and what they must never say."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from apparate.layer.settings import LayerSettings

HOST = Path(__file__).parents[3] / "snapshotter" / "packaging" / "host"
SERVICES = ("apparate-loader", "apparate-snapshotter")
NEW_NAMESPACE = {
    *(
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectProc",
    ),
    *(
        "ProtectControlGroups",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateUsers",
    ),
    *(
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "BindPaths",
        "BindReadOnlyPaths",
    ),
    *("TemporaryFileSystem", "LogNamespace", "MountFlags", "MountAPIVFS", "RootDirectory", "RootImage", "DynamicUser"),
}


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # keys of systemd keep their letters' case
    parsed.read_string((HOST / "systemd" / f"{name}.service").read_text())
    return parsed


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_of_a_service_are_seen_by_the_host(name: str) -> None:
    assert NEW_NAMESPACE.isdisjoint(unit(name)["Service"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_there_before_containerd_and_is_no_condition_for_it(name: str) -> None:
    assert "containerd.service" in unit(name)["Unit"]["Before"].split()
    assert "containerd.service" in unit(name)["Install"]["WantedBy"].split()
    assert "RequiredBy" not in unit(name)["Install"]
    assert not {"Requires", "BindsTo", "PartOf"} & set(unit(name)["Unit"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_restarted_without_limit(name: str) -> None:
    assert unit(name)["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit(name)["Service"]["Restart"] == "always"


@pytest.mark.parametrize("name", SERVICES)
def test_no_setting_empties_the_run_directory(name: str) -> None:
    assert "RuntimeDirectory" not in unit(name)["Service"]
    assert "d /run/apparate 0700 root root" in (HOST / "tmpfiles" / "apparate.conf").read_text()


def test_the_loader_has_time_to_answer_what_is_in_its_hands() -> None:
    assert int(unit("apparate-loader")["Service"]["TimeoutStopSec"]) > LayerSettings().read_deadline_s


def test_the_session_outlives_the_loader_and_a_stop() -> None:
    service = unit("apparate-loader")["Service"]
    assert int(service["FileDescriptorStoreMax"]) > 0
    assert service["FileDescriptorStorePreserve"] == "yes"
    assert service["KillMode"] == "process"


@pytest.mark.parametrize("name", SERVICES)
def test_calls_are_refused_by_name_not_admitted_by_name(name: str) -> None:
    assert unit(name)["Service"]["SystemCallFilter"].startswith("~")


def test_the_snapshotter_can_unpack_setuid_programs() -> None:
    assert "RestrictSUIDSGID" not in unit("apparate-snapshotter")["Service"]
