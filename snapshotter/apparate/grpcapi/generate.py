"""Generate the gRPC message modules of the product from its .proto files: `python -m apparate.grpcapi.generate`.

A tool of the developer: it needs `grpcio-tools`, which the product does not. The result is committed; a unit test
compares it with what this module makes of the sources.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

GRPCAPI = Path(__file__).resolve().parent
PACKAGE = "apparate/grpcapi/_gen"


def generate() -> dict[str, str]:
    """Return the generated files, by name: a module and its type stub for each .proto file."""
    sources = sorted((GRPCAPI / "proto").glob("*.proto"))
    with tempfile.TemporaryDirectory(prefix="apparate-stubs-") as out:
        status = protoc.main(
            [
                "protoc",
                # The sources are compiled under the path of the Python package, so that what is generated imports it.
                f"--proto_path={PACKAGE}={GRPCAPI / 'proto'}",
                f"--proto_path={Path(protoc.__file__).parent / '_proto'}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                *(f"{PACKAGE}/{source.name}" for source in sources),
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc ended with status {status}")
        return {path.name: path.read_text() for path in sorted((Path(out) / PACKAGE).iterdir())}


def main() -> int:
    """Write the generated files where the product imports them from."""
    for name, text in generate().items():
        (GRPCAPI / "_gen" / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
