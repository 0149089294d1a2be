"""Trying one endpoint after the other, and again."""

import threading
from collections.abc import Callable

import pytest

from apparate.errors import ApparateError, NotFound, RegistryError, Unavailable
from apparate.registry import attempts
from apparate.registry.attempts import Attempts
from apparate.registry.breakers import Breakers
from apparate.registry.deadline import Deadline
from apparate.registry.endpoint import Endpoint
from apparate.registry.ranges import RangesUnsupported

MIRROR, ORIGIN = Endpoint("https", "mirror.test"), Endpoint("https", "origin.test")
PATIENCE_S = 20.0


class Script:
    """What each endpoint does, call by call; the last thing is repeated."""

    def __init__(self, **by_host: list[ApparateError | str]) -> None:
        self._by_host = by_host
        self.calls: list[str] = []

    def __call__(self, endpoint: Endpoint) -> str:
        name = endpoint.host.partition(".")[0]
        self.calls.append(name)
        steps = self._by_host[name]
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if isinstance(step, ApparateError):
            raise step
        return step


@pytest.fixture
def closing() -> threading.Event:
    return threading.Event()


@pytest.fixture
def run(closing: threading.Event) -> Callable[..., str]:
    tried = Attempts(Breakers(), closing)

    def runner(script: Script, deadline: Deadline | None = None) -> str:
        return tried.run([MIRROR, ORIGIN], script, deadline or Deadline.after(PATIENCE_S))

    return runner


def gone() -> Unavailable:
    return Unavailable("gone")


def test_first_result_ends_the_search(run: Callable[..., str]) -> None:
    script = Script(mirror=["data"], origin=["never asked"])
    assert run(script) == "data"
    assert script.calls == ["mirror"]


@pytest.mark.parametrize("error", [gone(), NotFound("no"), RegistryError("GET", "u", 401), RangesUnsupported("whole")])
def test_any_failure_of_a_mirror_leads_to_the_next(run: Callable[..., str], error: ApparateError) -> None:
    script = Script(mirror=[error], origin=["data"])
    assert run(script) == "data"
    assert script.calls == ["mirror", "origin"]


def test_temporary_failures_are_tried_again(run: Callable[..., str]) -> None:
    script = Script(mirror=[gone()], origin=[gone(), gone(), "data"])
    assert run(script) == "data"


def test_last_endpoints_refusal_is_the_answer(run: Callable[..., str]) -> None:
    script = Script(mirror=[RegistryError("GET", "u", 403)], origin=[NotFound("not at the origin")])
    with pytest.raises(NotFound, match="origin"):
        run(script)
    assert script.calls == ["mirror", "origin"]


def test_who_sends_only_whole_blobs_has_the_blob(run: Callable[..., str]) -> None:
    with pytest.raises(RangesUnsupported):
        run(Script(mirror=[RangesUnsupported("whole")], origin=[NotFound("no")]))


def test_mirror_that_blips_is_waited_for_though_the_origin_has_nothing(run: Callable[..., str]) -> None:
    assert run(Script(mirror=[gone(), "data"], origin=[NotFound("no")])) == "data"


def test_mirror_known_to_be_broken_does_not_delay_a_refusal(run: Callable[..., str]) -> None:
    with pytest.raises(NotFound):
        run(Script(mirror=[gone()], origin=[NotFound("no")]))
    script = Script(mirror=[gone()], origin=[NotFound("no")])
    with pytest.raises(NotFound):
        run(script)
    assert len(script.calls) <= 2


def test_no_pause_is_begun_that_would_pass_the_deadline(run: Callable[..., str]) -> None:
    script = Script(mirror=[Unavailable("busy", 3600.0)], origin=[Unavailable("busy", 3600.0)])
    with pytest.raises(Unavailable) as caught:
        run(script)
    assert caught.value.retry_after_s == pytest.approx(3600.0, abs=1)
    assert script.calls == ["mirror", "origin"]


def test_caller_without_a_deadline_is_not_kept_for_ever(
    run: Callable[..., str], closing: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "wait", lambda _seconds: False)
    script = Script(mirror=[gone()], origin=[gone()])
    with pytest.raises(Unavailable):
        run(script, Deadline.never())
    assert len(script.calls) == 2 * attempts.PASSES_WITHOUT_DEADLINE


def test_closing_ends_the_search(run: Callable[..., str], closing: threading.Event) -> None:
    closing.set()
    script = Script(mirror=[gone()], origin=[gone()])
    with pytest.raises(Unavailable):
        run(script)
    assert script.calls == ["mirror", "origin"]


def test_no_endpoint_is_an_error_that_names_the_file() -> None:
    with pytest.raises(NotFound, match=r"hosts\.toml"):
        Attempts(Breakers(), threading.Event()).run([], lambda _endpoint: "", Deadline.after(1))
