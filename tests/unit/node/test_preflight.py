from pathlib import Path

import pytest

from apparate.errors import Unsupported
from apparate.node.preflight import Finding, Host, Level, run, worst


def _host(tmp_path: Path, kernel: str = "6.12.1") -> Host:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/filesystems").write_text("nodev\tproc\nnodev\toverlay\n\terofs\n")
    return Host(tmp_path, kernel)


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_capable_host_has_no_failures_but_fuse(tmp_path: Path) -> None:
    found = _by_name(run(tmp_path / "data", _host(tmp_path)))
    assert found["kernel"].level is Level.OK
    assert found["overlay"].level is Level.OK
    assert found["erofs"].level is Level.OK
    assert found["fuse"].level is Level.FAILED
    assert "modprobe fuse" in found["fuse"].fix


def test_old_kernel_without_erofs_is_a_warning_that_names_the_loss(tmp_path: Path) -> None:
    host = _host(tmp_path, "4.18.0-553.el8")
    (tmp_path / "proc/filesystems").write_text("nodev\toverlay\n")
    found = _by_name(run(tmp_path / "data", host))
    assert found["erofs"].level is Level.WARNING
    assert "trees" in found["erofs"].detail
    assert found["kernel"].level is Level.WARNING
    assert "EIO" in found["kernel"].detail


@pytest.mark.parametrize("listing", ["modules.dep", "modules.builtin"])
def test_module_that_is_not_loaded_yet_counts(tmp_path: Path, listing: str) -> None:
    host = _host(tmp_path, "6.1.0")
    (tmp_path / "proc/filesystems").write_text("nodev\toverlay\n")
    modules = tmp_path / "lib/modules/6.1.0"
    modules.mkdir(parents=True)
    (modules / listing).write_text("kernel/fs/erofs/erofs.ko.xz: kernel/lib/x.ko\n")
    assert _by_name(run(tmp_path / "data", host))["erofs"].level is Level.OK


def test_driver_that_does_not_work_fails_with_its_reason(tmp_path: Path) -> None:
    def none() -> str:
        raise Unsupported("no loop device")

    found = run(tmp_path / "data", _host(tmp_path), none)
    assert _by_name(found)["driver"].detail == "no loop device"
    assert worst(found) is Level.FAILED


def test_worst_of_nothing_is_ok() -> None:
    assert worst([]) is Level.OK


def test_unknown_architecture_fails_and_unknown_system_warns(tmp_path: Path) -> None:
    host = Host(_host(tmp_path).root, "6.12.1", "riscv64")
    found = _by_name(run(tmp_path / "data", host))
    assert (found["architecture"].level, found["system"].level) == (Level.FAILED, Level.WARNING)


@pytest.mark.parametrize(
    "release", ['ID=ubuntu\nPRETTY_NAME="Ubuntu 22.04"\n', 'ID="tencentos"\n', 'ID=other\nID_LIKE="rhel centos"\n']
)
def test_known_systems_are_fine(tmp_path: Path, release: str) -> None:
    host = _host(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(release)
    assert _by_name(run(tmp_path / "data", host))["system"].level is Level.OK


def test_security_modules_are_named(tmp_path: Path) -> None:
    host = _host(tmp_path)
    assert "neither" in _by_name(run(tmp_path / "data", host))["security module"].detail
    apparmor = tmp_path / "sys/module/apparmor/parameters"
    apparmor.mkdir(parents=True)
    (apparmor / "enabled").write_text("Y\n")
    assert "AppArmor" in _by_name(run(tmp_path / "data", host))["security module"].detail
    selinux = tmp_path / "sys/fs/selinux"
    selinux.mkdir(parents=True)
    (selinux / "enforce").write_text("1\n")
    assert _by_name(run(tmp_path / "data", host))["security module"].level is Level.WARNING
