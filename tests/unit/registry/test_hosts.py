"""From a registry's name to endpoints: directories, defaults, changes."""

from pathlib import Path

import pytest

from apparate.errors import FailedPrecondition, InvalidArgument
from apparate.registry.endpoint import Capability, Endpoint
from apparate.registry.hosts import HostTable
from apparate.registry.settings import RegistrySettings


def table(*roots: Path, plain: tuple[str, ...] = ()) -> HostTable:
    return HostTable(RegistrySettings(hosts_dirs=tuple(map(str, roots)), plain_http_hosts=plain), recheck_s=0)


def write(root: Path, name: str, text: str) -> Path:
    path = root / name / "hosts.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def only(made: HostTable, registry: str, needed: Capability = Capability.PULL) -> Endpoint:
    (endpoint,) = made.endpoints(registry, needed)
    return endpoint


@pytest.mark.parametrize(
    ("registry", "scheme", "host", "fallback"),
    [
        ("registry.test", "https", "registry.test", False),
        ("registry.test:80", "https", "registry.test:80", False),
        ("docker.io", "https", "registry-1.docker.io", False),
        ("localhost", "https", "localhost", False),
        ("localhost:443", "https", "localhost:443", False),
        ("localhost:80", "http", "localhost:80", False),
        ("localhost:5000", "https", "localhost:5000", True),
        ("127.9.9.9:5000", "https", "127.9.9.9:5000", True),
        ("[::1]:5000", "https", "[::1]:5000", True),
        ("plain.test:5000", "http", "plain.test:5000", False),
    ],
)
def test_registry_without_a_directory(registry: str, scheme: str, host: str, fallback: bool) -> None:
    endpoint = only(table(plain=("plain.test:5000",)), registry)
    assert (endpoint.scheme, endpoint.host, endpoint.http_fallback) == (scheme, host, fallback)
    assert (endpoint.path, endpoint.namespace) == ("/v2", "")


def test_directories_are_tried_in_containerds_order(tmp_path: Path) -> None:
    made = table(tmp_path)
    for name, expected in (("_default", "d"), ("r.test:5000", "c"), ("r.test_5000_", "u")):
        write(tmp_path, name, f'server = "https://{expected}.test"')
        assert only(made, "r.test:5000").host == f"{expected}.test"
    assert only(made, "other.test").host == "d.test"


def test_first_root_that_has_the_host_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    second.mkdir()
    write(second, "r.test", 'server = "https://second.test"')
    assert only(table(first, second), "r.test").host == "second.test"
    first.mkdir()
    write(first, "_default", 'server = "https://first.test"')
    assert only(table(first, second), "r.test").host == "first.test"


def test_mirrors_come_first_and_carry_the_namespace(tmp_path: Path) -> None:
    write(tmp_path, "docker.io", '[host."https://mirror.test"]\ncapabilities = ["pull"]\n')
    made = table(tmp_path)
    mirror, itself = made.endpoints("docker.io", Capability.PULL)
    assert mirror.url("library/a/blobs/sha256:0") == "https://mirror.test/v2/library/a/blobs/sha256:0?ns=docker.io"
    assert itself.url("x", (("n", "1"),)) == "https://registry-1.docker.io/v2/x?n=1"
    assert only(made, "docker.io", Capability.RESOLVE) == itself
    assert only(made, "docker.io", Capability.PUSH) == itself


def test_server_without_a_place_has_every_capability_as_in_containerd(tmp_path: Path) -> None:
    write(tmp_path, "r.test", 'capabilities = ["pull"]\nskip_verify = true\n')
    endpoint = only(table(tmp_path), "r.test", Capability.PUSH)
    assert endpoint.tls.skip_verify


def test_nothing_may_be_asked_of_a_file_that_allows_nothing(tmp_path: Path) -> None:
    write(tmp_path, "r.test", 'server = "https://r.test"\ncapabilities = ["pull"]\n')
    assert table(tmp_path).endpoints("r.test", Capability.PUSH) == ()


def test_plain_host_with_tls_settings_is_tried_with_tls_first(tmp_path: Path) -> None:
    write(tmp_path, "r.test", 'server = "http://r.test:8080"\nskip_verify = false\n')
    assert only(table(tmp_path), "r.test").http_fallback
    write(tmp_path, "s.test", 'server = "http://s.test:80"\nskip_verify = true\n')
    assert only(table(tmp_path), "s.test").scheme == "http"
    write(tmp_path, "t.test", 'server = "http://t.test:8080"\n')
    assert not only(table(tmp_path), "t.test").http_fallback


def test_change_is_seen_without_a_restart(tmp_path: Path) -> None:
    made = table(tmp_path)
    assert only(made, "r.test").host == "r.test"
    path = write(tmp_path, "r.test", 'server = "https://a.test"')
    assert only(made, "r.test").host == "a.test"
    path.write_text('server = "https://bb.test"')
    assert only(made, "r.test").host == "bb.test"
    path.unlink()
    path.parent.rmdir()
    assert only(made, "r.test").host == "r.test"


def test_many_questions_look_at_the_files_once(tmp_path: Path) -> None:
    path = write(tmp_path, "r.test", 'server = "https://a.test"')
    made = HostTable(RegistrySettings(hosts_dirs=(str(tmp_path),)), recheck_s=3600)
    assert only(made, "r.test").host == "a.test"
    path.write_text('server = "https://bb.test"')
    assert only(made, "r.test").host == "a.test"
    assert only(made, "r.test", Capability.PUSH).host == "bb.test", "another question is another look"


def test_renewed_certificate_makes_another_tls_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, "r.test", 'ca = "ca.pem"\n').parent / "ca.pem"
    path.write_text("one")
    made = table(tmp_path)
    before = only(made, "r.test").tls
    assert only(made, "r.test").tls == before
    path.write_text("another")
    assert only(made, "r.test").tls != before


def test_dockers_certificate_files_are_found(tmp_path: Path) -> None:
    directory = tmp_path / "r.test"
    (directory / "sub.crt").mkdir(parents=True)
    for name in ("b.crt", "a.crt", "c.cert", "c.key", "d.cert", "e.key"):
        (directory / name).touch()
    tls = only(table(tmp_path), "r.test").tls
    assert tls.ca_files == (f"{directory}/a.crt", f"{directory}/b.crt")
    assert tls.client_pairs == ((f"{directory}/c.cert", f"{directory}/c.key"), (f"{directory}/d.cert", ""))


def test_file_that_does_not_parse_leaves_the_certificates(tmp_path: Path) -> None:
    path = write(tmp_path, "r.test", "server = [")
    (path.parent / "own.crt").touch()
    endpoint = only(table(tmp_path), "r.test")
    assert endpoint.host == "r.test"
    assert endpoint.tls.ca_files == (str(path.parent / "own.crt"),)


def test_directory_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.test").write_text("")
    with pytest.raises(FailedPrecondition, match=r"r\.test"):
        table(tmp_path).endpoints("r.test", Capability.PULL)


def test_port_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"r\.test:99999"):
        table().endpoints("r.test:99999", Capability.PULL)
