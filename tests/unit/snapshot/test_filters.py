from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import InvalidArgument
from apparate.snapshot.filters import compile_filters
from apparate.snapshot.model import Info, Kind

ROOT = Info("sha256:base", "", Kind.COMMITTED, 1, 1, {"a": "1", "with.dot/slash": "x y", "empty-not-stored": "z"})
CHILD = Info("k8s.io/7/run key", "sha256:base", Kind.ACTIVE, 1, 1, {"containerd.io/snapshot.ref": "sha256:c"})
VIEW = Info("v", "sha256:base", Kind.VIEW, 1, 1)
ALL = [ROOT, CHILD, VIEW]


@pytest.mark.parametrize(
    ("filters", "selected"),
    [
        ([], ALL),
        (["kind==committed"], [ROOT]),
        (["kind==active", "kind==view"], [CHILD, VIEW]),
        (["name==sha256:base"], [ROOT]),
        (['name=="k8s.io/7/run key"'], [CHILD]),
        (['parent==""'], [ROOT]),
        (['parent!=""'], [CHILD, VIEW]),
        (["parent==sha256:base,kind!=view"], [CHILD]),
        (["labels.a"], [ROOT]),
        (["labels.a==1"], [ROOT]),
        (["labels.a!=1"], [CHILD, VIEW]),
        (['labels."with.dot/slash"=="x y"'], [ROOT]),
        (['labels."containerd.io/snapshot.ref"==sha256:c,parent=="sha256:base"'], [CHILD]),
        (['labels."containerd.io/snapshot.ref"==sha256:c,parent==""'], []),
        (["name~=^v$"], [VIEW]),
        (["name~=/run key$/"], [CHILD]),
        (["name~=|^k8s.io/|"], [CHILD]),
        (['name~="^v"'], [VIEW]),
        (["nothing"], []),
        (["nothing.else==x"], []),
        (["name == v"], [VIEW]),
        (['name=="\\x76"'], [VIEW]),
        (['name=="\\u0076"'], [VIEW]),
        (["labels"], []),
    ],
)
def test_filters_select_as_containerd_does(filters: list[str], selected: list[Info]) -> None:
    selects = compile_filters(filters)
    assert [info for info in ALL if selects(info)] == selected


@pytest.mark.parametrize(
    "text",
    ["", ",", "name=", "name=x", "name===x", "name==", "=x", "name==a b", 'name=="a', "name==a,", "name.", "name!~x",
     'name=="\\q"', "name~=(", "name==/x/", "-", "name~=" + "a" * 600, "name==" + "a" * 9000],
)  # fmt: skip
def test_malformed_filters_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        compile_filters([text])


def test_too_many_filters_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most"):
        compile_filters(["name"] * 65)


@given(st.lists(st.text(alphabet=st.sampled_from('abAB01_.,=!~"\\/|xu \t\n(){}[]*+?é'), max_size=40), max_size=3))
def test_any_text_is_a_filter_or_refused(filters: list[str]) -> None:
    try:
        selects = compile_filters(filters)
    except InvalidArgument:
        return
    for info in ALL:
        assert selects(info) in (True, False)


@given(st.text(max_size=30))
def test_a_quoted_value_means_itself(value: str) -> None:
    escaped = "".join(f"\\U{ord(character):08x}" for character in value)
    selects = compile_filters([f'name=="{escaped}"'])
    assert selects(Info(value, "", Kind.VIEW, 0, 0))
    assert not selects(Info(value + "x", "", Kind.VIEW, 0, 0))
