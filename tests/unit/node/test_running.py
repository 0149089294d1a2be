from __future__ import annotations

from pathlib import Path

from apparate.node.running import RunningContainer, running_lazy
from apparate.oci.digest import Digest
from apparate.snapshot.model import Info, Kind, Origin, Record, SnapshotId

ROOT = Path("/var/lib/a b")  # mountinfo writes the space as \040


def _record(number: int, name: str, parent: int | None, origin: Origin, kind: Kind = Kind.COMMITTED) -> Record:
    info = Info(name, "", kind, 0, 0)
    layer = Digest.of(name.encode()) if origin is Origin.LAZY else None
    return Record(SnapshotId(number), info, None if parent is None else SnapshotId(parent), origin, layer)


RECORDS = [
    _record(1, "base", None, Origin.LAZY),
    _record(2, "top", 1, Origin.UNPACKED),
    _record(3, "k8s.io/9/lazy", 2, Origin.ORDINARY, Kind.ACTIVE),
    _record(4, "plain", None, Origin.ORDINARY),
    _record(5, "k8s.io/8/plain", 4, Origin.ORDINARY, Kind.ACTIVE),
]


def _line(upper: str, kind: str = "overlay") -> str:
    options = f"rw,lowerdir=1/fs:2/fs,upperdir={upper},workdir=/w,index=off"
    return f"40 30 0:50 / / rw,relatime shared:1 - {kind} overlay {options}"


def _proc(tmp_path: Path, *namespaces: list[str]) -> Path:
    proc = tmp_path / "proc"
    for number, lines in enumerate(namespaces, start=1):
        process = proc / str(number)
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").symlink_to(f"mnt:[{number}]")
        (process / "mountinfo").write_text("\n".join(lines) + "\n")
    (proc / "self").mkdir()
    return proc


def test_container_on_lazy_layers_is_found_in_any_namespace(tmp_path: Path) -> None:
    proc = _proc(tmp_path, [_line("/var/lib/other/snapshots/3/fs")], [_line(r"/var/lib/a\040b/snapshots/3/fs")])
    assert running_lazy(ROOT, RECORDS, proc) == [RunningContainer(3, "k8s.io/9/lazy")]


def test_ordinary_container_is_not_counted(tmp_path: Path) -> None:
    assert running_lazy(ROOT, RECORDS, _proc(tmp_path, [_line(r"/var/lib/a\040b/snapshots/5/fs")])) == []


def test_unknown_snapshot_counts_as_lazy(tmp_path: Path) -> None:
    proc = _proc(tmp_path, [_line(r"/var/lib/a\040b/snapshots/77/fs"), _line(r"/var/lib/a\040b/snapshots/5/fs")])
    assert running_lazy(ROOT, RECORDS, proc) == [RunningContainer(77, "")]
    assert running_lazy(ROOT, None, proc) == [RunningContainer(5, ""), RunningContainer(77, "")]


def test_other_mounts_and_odd_lines_are_passed_over(tmp_path: Path) -> None:
    proc = _proc(
        tmp_path,
        [_line(r"/var/lib/a\040b/snapshots/3/fs", "ext4"), "", "40 30", _line(r"/var/lib/a\040b/snapshots/x/fs")],
    )
    assert running_lazy(ROOT, RECORDS, proc) == []
