"""Which pages of files are in memory, and what they weigh."""

import os
import zlib
from pathlib import Path

import pytest
from tests.benchmark.touched import PAGE, resident, weigh

CONTENT = os.urandom(3 * PAGE + 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


def test_a_written_file_is_in_memory(path: Path) -> None:
    pages = resident([path])[path]
    assert len(pages) == 4
    assert all(page & 1 for page in pages)


def test_only_pages_that_were_not_there_before_count(path: Path) -> None:
    total, compressed = weigh({path: b"\1\1\0\1"}, {path: b"\1\0\0\0"})
    assert total == PAGE + 100
    assert compressed == len(zlib.compress(CONTENT[PAGE : 2 * PAGE] + CONTENT[3 * PAGE :], 6))


def test_a_file_that_is_new_counts_whole(path: Path) -> None:
    assert weigh({path: b"\1\1\1\1"}, {})[0] == len(CONTENT)
