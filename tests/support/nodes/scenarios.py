"""Runs molecule's scenarios side by side, each in processes of its own, on nodes that no other run has.

What a run makes, it removes: nodes carry its label, and its folder lies below the temporary one. Nodes of runs that were killed are
removed by the next one, once their run's process is gone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.support.nodes.api import label_api
from tests.support.nodes.broken import not_starting, truncated
from tests.support.nodes.fixtures import write_fixtures
from tests.support.nodes.images import KINDS, image, lock
from tests.support.nodes.repositories import ARCHIVED, index_debs, index_rpms, repositories
from tests.support.peers import cache_root
from tests.support.processes import run

ROOT = Path(__file__).resolve().parents[3]
MOLECULE = ROOT / "tests" / "molecule"
LONGEST = ("failure", "debian", "rolling", "remove", "upgrade", "running")
"""They begin first, so that none is left alone at the end; then the others."""
SCENARIOS = tuple(
    sorted(
        (path.parent.name for path in MOLECULE.glob("*/molecule.yml")),
        key=lambda name: (LONGEST.index(name) if name in LONGEST else len(LONGEST), name),
    )
)
WORKERS = 2
"""A scenario keeps a core busy nine tenths of its time: Ansible itself is what takes it."""
SCENARIO_TIMEOUT_S = 900.0
BUDGET_S = 1200.0
LABEL = "apparate.test"
TAIL_LINES = 150
LOOK_S = 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one scenario ended."""

    name: str
    passed: bool
    duration_s: float
    log: Path


def run_scenarios(names: Sequence[str], *, keep: bool = False) -> int:
    """Run *names*, print what failed, and return the exit code for make. With *keep* nodes stay."""
    started = time.monotonic()
    remove_abandoned()
    with work_folder(keep=keep) as work, label_api(work):
        env = environment(work)
        with ThreadPoolExecutor(WORKERS) as pool:
            outcomes = list(pool.map(lambda name: _run(name, work, env, keep=keep), names))
        for outcome in outcomes:
            print(f"{'passed' if outcome.passed else 'FAILED'}  {outcome.duration_s:6.1f} s  {outcome.name}")
            if not outcome.passed:
                print(*outcome.log.read_text(errors="replace").splitlines()[-TAIL_LINES:], sep="\n")
        duration_s = time.monotonic() - started
        print(f"{len(outcomes)} scenarios in {duration_s:.0f} s (budget {BUDGET_S:.0f} s)")
        return 0 if all(outcome.passed for outcome in outcomes) else 1


def tools() -> Path:
    """The folder with molecule and ansible: an environment of its own, installed once for each set of versions."""
    uv = Path(sys.executable).parent / "uv"
    locked = run([uv, "export", "--quiet", "--frozen", "--no-header", "--only-group", "nodes"], cwd=ROOT)
    key = hashlib.sha256(f"{locked}\n{sys.version}".encode()).hexdigest()[:16]
    target = cache_root() / "nodes" / f"tools-{key}"
    with lock("tools"):
        if not (target / "complete").exists():
            env = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(target)}
            options = [
                "--quiet",
                "--frozen",
                "--no-install-project",
                "--only-group",
                "nodes",
                "--python",
                sys.executable,
            ]
            run([uv, "sync", *options], cwd=ROOT, env=env)
            (target / "complete").touch()
    return target / "bin"


def environment(work: Path) -> dict[str, str]:
    """What molecule and the playbooks below tests/molecule need to know."""
    repository = repositories()
    return {
        **os.environ,
        **{f"NODE_IMAGE_{kind.upper()}": image(kind) for kind in KINDS},
        "PATH": f"{MOLECULE / 'resources' / 'bin'}:{tools()}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'snapshotter'}:{ROOT}",
        "MOLECULE_GLOB": "tests/molecule/*/molecule.yml",
        "CONTAINERS_CONF": str(MOLECULE / "resources" / "containers.conf"),
        "NODE_REPOSITORIES": str(repository),
        "NODE_WORK": str(work),
        "NODE_PREFIX": work.name,
        "NODE_RUN": str(os.getpid()),
        "NODE_PYTHON": sys.executable,
        "NODE_SECRET": secrets.token_hex(16),
        "NODE_PACKAGES": str(packages()),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
    }


@contextlib.contextmanager
def work_folder(*, keep: bool) -> Iterator[Path]:
    """A folder for this run, with the content of the nodes' registry."""
    work = Path(tempfile.mkdtemp(prefix="apparate-nodes-"))
    try:
        (work / "pods").mkdir()
        (work / "pids").mkdir()
        (deb,), (rpm,) = (packages().glob(f"*.{end}") for end in ("deb", "rpm"))
        archives = repositories() / "archives"
        files = {
            "package": deb,
            "rpm": rpm,
            "containerd": archives / f"containerd-{ARCHIVED}.tar.gz",
            "runc": archives / "runc",
        }
        write_fixtures(work, files)
        _write_packages(work)
        yield work
    finally:
        if not keep:
            shutil.rmtree(work)


def packages() -> Path:
    """The folder with the packages under test."""
    return Path(os.environ.get("NODE_PACKAGES", str(ROOT / "dist")))


def _write_packages(work: Path) -> None:
    """Fill `work/packages` with repositories of the package, which nodes mount, and `work/broken` with packages that fail."""
    for folder, end, index in (("deb", "deb", index_debs), ("rpm", "rpm", index_rpms)):
        target = work / "packages" / folder
        target.mkdir(parents=True)
        for package in packages().glob(f"*.{end}"):
            shutil.copy(package, target)
        index(target)
    (work / "broken").mkdir()
    following = os.environ.get("NODE_PACKAGES_NEXT")
    for package in Path(following).glob("*.deb") if following else ():
        truncated(package, work / "broken" / "truncated.deb")
        not_starting(package, work / "broken" / "not-starting.deb")


def remove_abandoned() -> None:
    """Remove nodes whose run is over: its process has gone, so nobody else will."""
    listed = run(
        [
            "podman",
            "ps",
            "--all",
            "--filter",
            f"label={LABEL}",
            "--format",
            f'{{{{.Names}}}} {{{{index .Labels "{LABEL}"}}}}',
        ]
    )
    for line in listed.splitlines():
        name, _, process = line.partition(" ")
        if not (process.isdigit() and Path(f"/proc/{process}").exists()):
            run(["podman", "rm", "--force", "--volumes", "--time", "2", "--ignore", name])


def _run(name: str, work: Path, env: Mapping[str, str], *, keep: bool) -> Outcome:
    log = Path(os.environ.get("NODE_LOGS", str(ROOT / "build" / "nodes"))) / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    folder = work / "molecule" / name
    folder.mkdir(parents=True)
    started = time.monotonic()
    command = ["molecule", "--base-config", str(MOLECULE / "base.yml"), "test", "--scenario-name", name]
    command += ["--destroy", "never" if keep else "always"]
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**env, "MOLECULE_EPHEMERAL_DIRECTORY": str(folder), "NODE_LOG": str(log)},
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            passed = _watch(process, env["NODE_SECRET"], out)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Outcome(name, passed, time.monotonic() - started, log)


def _watch(process: subprocess.Popen[bytes], secret: str, out: TextIO) -> bool:
    """Wait for *process*; say whether it succeeded, in time, with *secret* in nobody's command line, the nodes' included."""
    deadline = time.monotonic() + SCENARIO_TIMEOUT_S
    seen: set[str] = set()
    while process.poll() is None and time.monotonic() < deadline:
        seen.update(_command_lines_with(secret))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    if process.poll() is None:
        out.write(f"\nnot over after {SCENARIO_TIMEOUT_S:.0f} s\n")
    if seen:
        out.write(f"\nthe password stood in the process list, in the command lines of: {', '.join(sorted(seen))}\n")
    return process.returncode == 0 and not seen


def _command_lines_with(secret: str) -> Iterator[str]:
    """Yield the program of each process, on this machine and its nodes, that has *secret* or its encoded form as an argument."""
    forms = (secret.encode(), base64.b64encode(f"puller:{secret}".encode()))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            words = path.read_bytes()
            if any(form in words for form in forms):
                yield words.split(b"\0", 1)[0].decode(errors="replace")
