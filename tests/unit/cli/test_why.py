import pytest

from apparate.cli.inventory import Inventory
from apparate.cli.why import EXPECTATIONS, judge
from apparate.errors import FailedPrecondition
from apparate.oci.digest import Digest
from apparate.snapshot.inventory import Image, ImageLayer
from apparate.snapshot.model import Origin


def _image(*layers: tuple[Origin, str]) -> Image:
    made = (ImageLayer(Digest.of(bytes([number])), *layer) for number, layer in enumerate(layers))
    return Image("registry.test/app:1", tuple(made), 1)


LAZY, ORDINARY = (Origin.LAZY, ""), (Origin.ORDINARY, "")


@pytest.mark.parametrize(
    ("image", "is_so"),
    [
        (_image(LAZY, LAZY), {"lazy"}),
        (_image(ORDINARY, ORDINARY), {"ordinary"}),
        (_image(LAZY, (Origin.ORDINARY, "no table of contents")), set()),
        (_image((Origin.UNPACKED, "odd"), LAZY), set()),
    ],
    ids=["lazy", "ordinary", "fallback", "unpacked"],
)
def test_an_image_is_judged_by_all_of_its_layers(image: Image, is_so: set[str]) -> None:
    inventory = Inventory((image,), {}, "the loader does not answer")
    judge(inventory, image, None)
    for expected in EXPECTATIONS:
        if expected in is_so:
            judge(inventory, image, expected)
        else:
            with pytest.raises(FailedPrecondition, match=f"registry.test/app:1 is not {expected} on this node: "):
                judge(inventory, image, expected)
