"""A step makes only the passes whose result it uses."""

from __future__ import annotations

from typing import Any

import pytest

from scope_megatron.config import Config
from scope_megatron.learn.passes import Passes

FOUR = {"train": {"steps": 1, "microbatch_tokens": 64, "updates_per_batch": 4}}


def passes(name: str = "scope", **changes: Any) -> Passes:
    raw: dict[str, Any] = {
        "output_dir": "out",
        "algorithm": {"name": name, "kl_coef": changes.pop("kl_coef", 0.1)},
        "model": {"student": "s", "teacher": "t"},
        "data": {"train": "d.jsonl", "max_prompt_tokens": 8},
        "rollout": {"prompts_per_step": 4, "group_size": 4, "max_response_tokens": 16}
        | changes.pop("rollout", {}),
        "train": {"steps": 1, "microbatch_tokens": 64},
    }
    return Passes.of(Config.model_validate(raw | changes))


@pytest.mark.parametrize(
    ("settings", "student", "ratio", "logprobs", "hidden"),
    [
        ({}, "engine", False, True, False),
        ({"rollout": {"top_p": 0.9}}, "weights", False, True, False),
        ({"rollout": {"top_k": 20}}, "weights", False, True, False),
        ({"objective": {"student_weight": "uniform"}}, "none", False, True, False),
        ({"objective": {"old_logprobs": "recompute"}}, "all", True, True, False),
        ({"objective": {"old_logprobs": "rollout"}}, "engine", True, True, False),
        (FOUR, "all", True, True, False),
        ({"objective": {"kl": "reverse_kl"}}, "engine", False, True, True),
        (
            {"objective": {"kl": "reverse_kl", "teacher_weight": "uniform"}},
            "engine",
            False,
            False,
            True,
        ),
        ({"name": "opd"}, "none", False, True, False),
        ({"name": "opd", "objective": {"kl": "reverse_kl"}}, "none", False, False, True),
        ({"name": "opd", "objective": {"kl": "topk"}}, "none", False, True, True),
        ({"name": "opd", "objective": {"kl": "reverse_kl"}} | FOUR, "all", True, True, True),
        ({"name": "grpo"}, "none", False, True, False),
        ({"name": "grpo", "kl_coef": 0.0}, "none", False, False, False),
    ],
)
def test_only_passes_that_are_used(
    settings: dict[str, Any], student: str, ratio: bool, logprobs: bool, hidden: bool
) -> None:
    assert passes(**settings) == Passes(student, ratio, logprobs, hidden)  # type: ignore[arg-type]
