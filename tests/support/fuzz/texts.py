"""Parsers of files on the node and of what containerd sends."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.fuzz.target import Target, deep, text_of

from apparate.cli.settings import Settings, default_text
from apparate.config import load
from apparate.loader.session import SessionState
from apparate.oci import names
from apparate.registry.docker_config import parse_docker_config
from apparate.registry.hosts_file import parse_hosts_file
from apparate.registry.proxies import ProxyRules
from apparate.snapshot.filters import compile_filters
from apparate.snapshot.labels import annotations_of, layer_of, promises_lazy, target_of
from apparate.snapshot.model import Info, Kind
from apparate.snapshot.rows import from_json

DIGEST: Final = "sha256:" + "ab" * 32
INFO: Final = Info("sha256:" + "cd" * 32, "parent", Kind.COMMITTED, 1, 2, {"a/b": "c", "containerd.io/gc.root": "x"})


def read_settings(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        load(Settings, Path(file.name))


def read_hosts(data: bytes) -> None:
    for entry in parse_hosts_file(text_of(data), "/etc/containerd/certs.d/registry.test"):
        assert entry.dial_timeout_s is None or entry.dial_timeout_s > 0


def read_docker_config(data: bytes) -> None:
    config = parse_docker_config(data, "secret")
    for host in ("docker.io", "registry.test:5000"):
        config.credentials(host, "team/app")
        config.helper(host)


def read_session_state(data: bytes) -> None:
    state = SessionState.parse(text_of(data))
    assert SessionState.parse(state.to_json()) == state


def read_proxies(data: bytes) -> None:
    proxy, _, excluded = text_of(data).partition("\n")
    rules = ProxyRules.from_environment({"HTTPS_PROXY": proxy, "NO_PROXY": excluded})
    for host in ("registry.test:5000", "10.1.2.3", "[::1]"):
        rules.proxy_for(f"https://{host}/v2/")


def read_filters(data: bytes) -> None:
    compile_filters(text_of(data).split("\n"))(INFO)


def read_labels(data: bytes) -> None:
    """Labels of a snapshot, one a line."""
    labels = dict(line.partition("=")[::2] for line in text_of(data).split("\n"))
    layer = layer_of(labels)
    assert layer is None or layer.reference
    promises_lazy(annotations_of(labels))
    target_of("extract-1 sha256:ab", labels)


def read_records(data: bytes) -> None:
    for record in from_json(data):
        str(record)


def session_states() -> Sequence[bytes]:
    return [
        b'{"device":"0:51","minor":39,"resend":true,"drained":false}',
        deep(b"["),
        b'{"device":' + deep(b"[", b"]") + b"}",
    ]


def docker_configs() -> Sequence[bytes]:
    return [
        json.dumps(
            {
                "auths": {
                    "https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNz"},
                    "*.registry.test:5000/team": {"username": "u", "password": "p"},
                    "r": {"identitytoken": "t"},
                },
                "credHelpers": {"gcr.io": "gcloud"},
                "credsStore": "pass",
            }
        ).encode(),
        deep(b'{"auths":', b"}"),
    ]


def hosts_files() -> Sequence[bytes]:
    text = b"""server = "https://registry.test"
[host."https://mirror.test:5000/v2/sub"]
  capabilities = ["pull", "resolve"]
  override_path = true
  skip_verify = false
  ca = ["ca.crt", "/etc/ca.crt"]
  client = [["client.cert", "client.key"]]
  dial_timeout = "1m30.5s"
  proxy = "http://user:pass@proxy.test:3128"
  [host."https://mirror.test:5000/v2/sub".header]
    x-a = ["b", "c"]
"""
    return [text, b"a = " + deep(b"[", b"]"), b"a = " + b"9" * 5000, deep(b"a."), b"[" + deep(b"a.") + b"a]"]


def labels() -> Sequence[bytes]:
    pairs = {
        names.CRI_IMAGE_REF: "registry.test/app:v1", names.CRI_LAYER_DIGEST: DIGEST, names.CRI_MANIFEST_DIGEST: DIGEST,
        names.CRI_IMAGE_LAYERS: f"{DIGEST},{DIGEST}", names.TARGET_SNAPSHOT: DIGEST, names.TOC_DIGEST: DIGEST,
    }  # fmt: skip
    stargz = {names.REMOTE_REFERENCE: "app", names.REMOTE_DIGEST: DIGEST, names.REMOTE_LAYERS: DIGEST}
    return ["\n".join(f"{key}={value}" for key, value in made.items()).encode() for made in (pairs, stargz)]


def records() -> Sequence[bytes]:
    row = [1, "name", None, "committed", "lazy", DIGEST, "", 1, 2, '{"a":"b"}', 10, 2]
    return [
        json.dumps({"version": 1, "rows": [row]}).encode(),
        json.dumps({"version": 1, "rows": [["INF", *row[1:]]]}).replace('"INF"', "Infinity").encode(),
        json.dumps({"version": 1, "rows": [[*row[:9], "[" * 5000, *row[10:]]]}).encode(),
        b'{"version": 1, "rows": [[2]]}',
        deep(b'{"rows":', b"}"),
    ]


TEXT_TARGETS: Final[Mapping[str, Target]] = {
    "settings": Target(
        read_settings,
        lambda: [default_text().encode(), *hosts_files()],
        (b"[layers]\n", b"[registry]\n", b"root = ", b'"/a"', b"true", b"[]", b"nan", b"inf", b"-1", b"1979-05-27"),
        16_384,
    ),
    "hosts-toml": Target(
        read_hosts,
        hosts_files,
        (b'[host."', b"server = ", b"ca = ", b"client = ", b"http://", b"1ms", b"[::1]", b"\\u0000"),
    ),
    "docker-config": Target(
        read_docker_config,
        docker_configs,
        (
            b'"auths"',
            b'"auth"',
            b'"credHelpers"',
            b'"credsStore"',
            b'"identitytoken"',
            b"\xc3\xa9",
            b"\\ud800",
            b"null",
        ),
    ),
    "session-state": Target(read_session_state, session_states, (b'"device"', b'"minor"', b"true", b"null", b"[]")),
    "proxy": Target(
        read_proxies,
        lambda: [b"http://user:pass@proxy.test:3128\n.test,10.0.0.0/8,*,[::1]:443,example.org:80"],
        (b"socks5://", b"/33", b"*.", b":"),
        600,
    ),
    "filter": Target(
        read_filters,
        lambda: [b'labels."a/b"==c,kind~=com.*\nname!=x', b'parent,labels."containerd.io/gc.root"~=|[xy]+|'],
        (b"labels.", b"~=", b"==", b"!=", b"kind", b"\\x41"),
        600,
    ),
    "labels": Target(
        read_labels, labels, tuple(key.encode() for key in (names.TOC_DIGEST, names.CRI_IMAGE_LAYERS, DIGEST))
    ),
    "records": Target(read_records, records, (b'"version"', b'"rows"', b"null", b"NaN", b"Infinity", b"[]", b"-1")),
}
