"""A few faults of the table, each in another way. `python tests/faults/run.py` plays them all."""

from __future__ import annotations

import pytest

from tests.faults.cases import CASES
from tests.faults.run import run_case

CHOSEN = (
    "kill -9 of rank 1 under torchrun",
    "hang of rank 1 (hang_timeout_s=5)",
    "corrupt rows of data",
)


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("name", CHOSEN)
def test_the_run_goes_on(name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    result = run_case(case, patience=10.0)  # the seconds of a quiet machine are run.py's
    assert not result.reason, result.cells()
