"""Lengths of responses that a benchmark prescribes, the same for every contestant."""

from __future__ import annotations

import math
import random
from typing import Literal

Lengths = Literal["natural", "equal", "long"]

SHORTEST = 8
_SPREAD = 1.0  # standard deviation of the logarithm


def length_of(kind: Lengths, limit: int, step: int, position: int) -> int | None:
    """Tokens of the response at ``position`` of the batch of ``step``; None: the model decides.

    ``equal``: ``limit``. ``long``: log-normal around an eighth of ``limit``, between 8 and
    ``limit``.
    """
    if kind == "natural":
        return None
    if kind == "equal":
        return limit
    drawn = random.Random(f"{step} {position}").lognormvariate(math.log(limit / 8), _SPREAD)
    return max(SHORTEST, min(limit, round(drawn)))
