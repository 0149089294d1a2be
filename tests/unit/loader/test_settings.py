"""Limits that make no sense are refused by name."""

from pathlib import Path

import pytest

from apparate.errors import InvalidArgument
from apparate.loader.settings import LoaderSettings


@pytest.mark.parametrize(
    "name", ["read_threads", "disk_threads", "requests", "max_background", "push_buffer_bytes", "call_threads"]
)
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"loader.{name} "):
        LoaderSettings(**{name: 0})  # type: ignore[arg-type]  # one of the numbers


@pytest.mark.parametrize("name", ["lazy_read_ahead_kb", "fuse_read_ahead_kb"])
def test_a_read_ahead_below_a_page_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"loader.{name} "):
        LoaderSettings(**{name: 0})  # type: ignore[arg-type]  # one of the numbers


def test_one_layer_cannot_have_more_threads_than_all() -> None:
    with pytest.raises(InvalidArgument, match="layer_read_threads"):
        LoaderSettings(read_threads=4, layer_read_threads=5)


def test_the_kernel_has_as_many_reads_in_flight_as_are_served() -> None:
    with pytest.raises(InvalidArgument, match=r"max_background must be at least loader\.requests"):
        LoaderSettings(requests=65, max_background=64)


@pytest.mark.parametrize("name", ["run_dir", "socket"])
def test_a_path_too_long_for_a_socket_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"loader.{name}: .* too long"):
        LoaderSettings(**{name: Path("/" + "x" * 107)})  # type: ignore[arg-type]  # one of the paths
