"""Deadlines."""

import math

import pytest

from apparate.errors import Unavailable
from apparate.registry.deadline import Deadline


def test_a_passed_deadline_raises_a_temporary_error_that_names_the_wait() -> None:
    with pytest.raises(Unavailable, match="tail of layer"):
        Deadline.after(-1).check("tail of layer")
    assert Deadline.after(-1).expired


def test_never_has_all_the_time() -> None:
    assert Deadline.never().remaining() == math.inf
    Deadline.never().check()


def test_capped_takes_the_earlier_moment() -> None:
    assert Deadline.after(100).capped(1).remaining() <= 1
    assert Deadline.after(1).capped(100).remaining() <= 1
    assert Deadline.never().capped(5).remaining() <= 5
