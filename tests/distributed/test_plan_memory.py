"""The planner's memory by tenant against that of real updates: within 5%.

One layout here; all of them:  pytest -m study tests/distributed/test_plan_memory.py, or as a table
by `python -m benchmarks.bench_plan --every`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.harness import run_distributed_test
from tests.support.plan_layouts import CASES, Case, errors, make_models, measure, planned

QUICK = ("tensor 2, sequence",)
LIMIT = 0.05


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_models(root)
    return root


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.study)
        for case in CASES
    ],
)
def test_every_tenant_is_planned_within_5_percent(case: Case, models: Path) -> None:
    got = run_distributed_test(measure, case.world, models, case)
    found = errors(got, planned(models, case))
    assert {name for name, error in found.items() if abs(error) > LIMIT} == set(), found
    assert {"student", "gradients", "optimizer", "teacher", "activations"} <= found.keys()
