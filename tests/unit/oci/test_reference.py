import pytest

from apparate.errors import InvalidArgument
from apparate.oci.digest import Digest
from apparate.oci.reference import Reference

HEX = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("index.docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("[::1]:5000/app:v1", "[::1]:5000/app:v1"),
        ("ccr.ccs.tencentyun.com/ns/app:v1-apparate", "ccr.ccs.tencentyun.com/ns/app:v1-apparate"),
        (f"r.example/a/b@{HEX}", f"r.example/a/b@{HEX}"),
        (f"r.example/a/b:v1@{HEX}", f"r.example/a/b:v1@{HEX}"),
        ("r.example/a__b/c-d--e", "r.example/a__b/c-d--e:latest"),
    ],
)
def test_reference_has_one_normal_form(text: str, normal: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == normal
    assert Reference.parse(normal) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " a",
        "https://r.example/a",
        "r.example/A",
        "r.example/a//b",
        "r.example/a:",
        "r.example/a:-x",
        "r.example/a@sha256:12",
        "r.example/a/../b",
        "r.example/" + "a" * 300,
        "r.example/a:" + "t" * 129,
        "a b",
        "r.example/a\n",
    ],
)
def test_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Reference.parse(text)


def test_tag_and_digest_replace_each_other() -> None:
    reference = Reference.parse(f"r.example/a:v1@{HEX}")
    assert str(reference.with_tag("v2")) == "r.example/a:v2"
    assert str(reference.with_digest(Digest.parse(HEX))) == f"r.example/a@{HEX}"
    with pytest.raises(InvalidArgument):
        reference.with_tag("a/b")
