"""What conversion costs, how large its result is, and how soon a layer of very many entries can be mounted."""

from __future__ import annotations

from tests.benchmark.cells import Cell, Round, Sample
from tests.benchmark.contenders import CONTAINERD, CONVERT_TIMEOUT_S, Usage, convert_for_stargz, measured
from tests.benchmark.stage import Stage
from tests.support.content import stored
from tests.support.node import node
from tests.support.services import apparate

ATTACHED = "layer made known"


def convert_round(stage: Stage, cell: Cell, number: int) -> Round:
    """CPU seconds of both converters for the plain image of a stage that has nothing else.

    Ours includes reading from the registry, all verification and the upload; the foreign one is counted without pull and push.
    """
    images = stage.images
    line = ["convert", "--plain-http", images.plain, images.accelerated]
    ours = measured(lambda: apparate(*line, timeout_s=CONVERT_TIMEOUT_S))
    nothing = stage.folder / "profile"
    nothing.write_text("")
    theirs = convert_for_stargz(stage.place("converter"), stage.registry.address, images.plain, images.stargz, nothing)
    plain = stored(images.plain).size
    return Round(
        {"apparate": _sample(ours, images.accelerated, plain), "stargz": _sample(theirs, images.stargz, plain)}, {}
    )


def attach_round(stage: Stage, cell: Cell, number: int) -> Round:
    """How long the loader takes to make the layer of many entries known: with an embedded index, and from a TOC."""
    found = {
        "embedded": _attach(stage, stage.images.accelerated),
        "from_toc": _attach(stage, stage.images.stargz),
    }
    return Round(found, {})


def _attach(stage: Stage, reference: str) -> Sample:
    with node(stage.place("attach"), CONTAINERD, plain_http=[stage.registry.address]) as made:
        made.containerd.cri.pull(reference)
        events = {str(event["layer"]): float(event["duration_s"]) for event in made.ours.events(ATTACHED)}
        made.containerd.remove_all()
    return {"attach_s": events[stored(reference).digests[-1]]}


def _sample(used: Usage, result: str, plain_bytes: int) -> Sample:
    size = stored(result).size
    return {"cpu_s": round(used.cpu_s, 2), "wall_s": round(used.wall_s, 2), "bytes": size, "plain_bytes": plain_bytes}
