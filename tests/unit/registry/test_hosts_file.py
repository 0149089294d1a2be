"""hosts.toml, held against what containerd makes of it (core/remotes/docker/config)."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError
from apparate.registry.endpoint import Capability
from apparate.registry.hosts_file import parse_hosts_file

EVERY = Capability.PULL | Capability.RESOLVE | Capability.PUSH
EXAMPLE = """
server = "https://registry.example"
capabilities = ["pull"]
ca = "root.pem"

[host."https://z.mirror.example:5000"]
  capabilities = ["PULL", "resolve"]
  ca = ["/etc/certs/a.pem", "b.pem"]
  client = [["c.cert", "c.key"], ["d.pem", ""]]
  skip_verify = true
  dial_timeout = "1m1.5s"
  [host."https://z.mirror.example:5000".header]
    x-one = "1"
    x-two = ["2", "3"]

[host."http://a.mirror.example/some/./path/"]
  client = "e.pem"
  proxy = "http://user:pw@proxy.example:3128/"

[host."b.mirror.example/v2"]
  override_path = true
  client = ["f.pem", "/g.pem"]
"""


def test_every_field_is_read() -> None:
    z, a, b, server = parse_hosts_file(EXAMPLE, "/certs.d/x")
    assert (z.scheme, z.host, z.path) == ("https", "z.mirror.example:5000", "/v2")
    assert z.capabilities == Capability.PULL | Capability.RESOLVE
    assert z.ca_files == ("/etc/certs/a.pem", "/certs.d/x/b.pem")
    assert z.client_pairs == (("/certs.d/x/c.cert", "/certs.d/x/c.key"), ("/certs.d/x/d.pem", ""))
    assert (z.skip_verify, z.dial_timeout_s) == (True, 61.5)
    assert dict(z.headers) == {"x-one": "1", "x-two": "2, 3"}
    assert (a.scheme, a.host, a.path) == ("http", "a.mirror.example", "/some/path/v2")
    assert (a.client_pairs, a.capabilities) == ((("/certs.d/x/e.pem", ""),), EVERY)
    assert a.proxy == "http://user:pw@proxy.example:3128"
    assert (b.scheme, b.host, b.path) == ("https", "b.mirror.example", "/v2")
    assert b.client_pairs == (("/certs.d/x/f.pem", ""), ("/g.pem", ""))
    assert (server.host, server.capabilities, server.ca_files) == (
        "registry.example",
        Capability.PULL,
        ("/certs.d/x/root.pem",),
    )


@pytest.mark.parametrize(
    ("server", "override", "path"),
    [
        ("https://r.example", False, "/v2"),
        ("https://r.example", True, ""),
        ("https://r.example/", False, "/v2"),
        ("https://r.example/v2", False, "/v2"),
        ("https://r.example/v2/", False, "/v2"),
        ("https://r.example/a/b", False, "/a/b/v2"),
        ("https://r.example/a/b", True, "/a/b"),
        ("https://r.example/a/../b", False, "/b/v2"),
    ],
)
def test_api_root(server: str, override: bool, path: str) -> None:
    (entry,) = parse_hosts_file(f'server = "{server}"\noverride_path = {str(override).lower()}', "/d")
    assert entry.path == path


def test_hosts_keep_the_order_of_the_file() -> None:
    text = "".join(f'[host."https://{name}.example"]\n' for name in "cabd")
    assert [entry.host[:1] for entry in parse_hosts_file(text, "/d")] == ["c", "a", "b", "d", ""]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("server = 5", "server"),
        ("= 1", "file"),
        ("host = 1", "host"),
        ("[host]\na = 1", "host.a"),
        ('server = "httpx://x"', "server"),
        ('server = "https://x:port"', "server"),
        ('server = "https://"', "server"),
        ('capabilities = ["fly"]', "capabilities"),
        ("capabilities = 1", "capabilities"),
        ("skip_verify = 1", "skip_verify"),
        ("ca = 1", "ca"),
        ("ca = [1]", "ca"),
        ("client = 1", "client"),
        ('client = [["a"]]', "client"),
        ("client = [1]", "client"),
        ("header = 1", "header"),
        ("[header]\na = 1", "header.a"),
        ('[header]\na = "x\\r\\ny"', "header"),
        ('[header]\n"a b" = "x"', "header"),
        ('[header]\na = "\u2603"', "header"),
        ("dial_timeout = 5", "dial_timeout"),
        ('dial_timeout = "soon"', "dial_timeout"),
        ('dial_timeout = "5"', "dial_timeout"),
        ('proxy = "proxy:3128"', "proxy"),
        ('proxy = "http://p/path"', "proxy"),
        ('proxy = "http://p:x"', "proxy"),
        ('[host."https://m"]\nskip_verify = "yes"', "host.https://m.skip_verify"),
    ],
)
def test_wrong_value_is_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_hosts_file(text, "/d")
    assert field in caught.value.field


_KEYS = [
    "server",
    "host",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
    "proxy",
]
_VALUES = [
    '"x"',
    "1",
    "true",
    "[]",
    '["pull"]',
    '[["a", "b"]]',
    '{a = "b"}',
    '"https://h:1/p"',
    '"1s"',
    "1979-05-27",
    '{"h" = {ca = 1}}',
]


@given(st.lists(st.tuples(st.sampled_from(_KEYS), st.sampled_from(_VALUES)), unique_by=lambda pair: pair[0]))
def test_any_values_are_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    with contextlib.suppress(FormatError):
        parse_hosts_file("\n".join(f"{key} = {value}" for key, value in pairs), "/d")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(FormatError):
        parse_hosts_file(text, "/d")
