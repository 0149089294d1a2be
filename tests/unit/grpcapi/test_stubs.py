from __future__ import annotations

from apparate.grpcapi.generate import GRPCAPI, generate


def test_committed_stubs_are_what_the_proto_files_give() -> None:
    generated = generate()
    committed = {path.name: path.read_text() for path in (GRPCAPI / "_gen").glob("*_pb2.py*")}
    assert committed == generated, "run `make stubs`"
