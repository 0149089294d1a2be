"""Every parser of what comes from outside, as a function of bytes that may raise our own errors and nothing else.

`tests/unit/test_parsers.py` tries each with damaged samples, `tests/matrix/test_fuzz.py` has a fuzzer look for worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.support.fuzz.layers import LAYER_TARGETS
from tests.support.fuzz.registry import REGISTRY_TARGETS
from tests.support.fuzz.target import Target
from tests.support.fuzz.texts import TEXT_TARGETS

TARGETS: Final[Mapping[str, Target]] = {**LAYER_TARGETS, **REGISTRY_TARGETS, **TEXT_TARGETS}
