"""Streams of each algorithm against the paper's formulas written out in plain python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from scope_megatron.config import Config
from scope_megatron.learn.algorithms import ALGORITHMS, group_advantages
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams
from scope_megatron.objective.packing import build, scatter_to_sequences
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.steps import batch_of

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.CRASH
VERDICTS = [[R, W, R, W], [R, R, R, R], [W, W, W, W], [R, W, U, W]]
LENGTHS = [[3, 5, 2, 7], [1, 2, 3, 4], [4, 4, 4, 4], [6, 1, 9, 2]]


def config(name: str, **objective: Any) -> Config:
    return Config.model_validate(
        {
            "output_dir": "out",
            "algorithm": {"name": name, "kl_coef": 0.1},
            "model": {"student": "s", "teacher": "t"},
            "data": {"train": "d.jsonl", "max_prompt_tokens": 8},
            "rollout": {"prompts_per_step": 4, "group_size": 4, "max_response_tokens": 16},
            "objective": objective,
            "train": {"steps": 1, "microbatch_tokens": 64},
        }
    )


@pytest.fixture
def batch() -> Batch:
    rollouts = [
        Rollout(Prompt(g, (1, 2), "1"), k, [5] * LENGTHS[g][k], [], True, verdict=VERDICTS[g][k])
        for g in range(4)
        for k in range(4)
    ]
    batch = batch_of(rollouts)
    batch.student_mean, batch.teacher_mean = torch.zeros(16), torch.zeros(16)
    generator = torch.Generator().manual_seed(0)
    for index in batch.members(batch.routes.routed):
        length = int(batch.lengths[index])
        batch.old_logprobs[index] = -torch.rand(length, generator=generator)
        batch.teacher_logprobs[index] = -2 * torch.rand(length, generator=generator)
        batch.student_mean[index] = batch.old_logprobs[index].mean()
        batch.teacher_mean[index] = batch.teacher_logprobs[index].mean()
    return batch


def streams(batch: Batch, settings: Config) -> Streams:
    return ALGORITHMS[settings.algorithm.name].weigh(batch, settings).streams


def expected_scope(batch: Batch, tau: float, student: float, teacher: float) -> list[float]:
    """|path| w_i / routed tokens; ``student`` and ``teacher`` scale the exponents (0: uniform)."""
    tokens = sum(LENGTHS[g][k] for g in range(4) for k in range(4) if VERDICTS[g][k] is not U)
    out = []
    for index in range(16):
        g, verdict = index // 4, VERDICTS[index // 4][index % 4]
        if verdict is U:
            out.append(0.0)
            continue
        path = [4 * g + k for k in range(4) if VERDICTS[g][k] is verdict]
        scores = batch.old_logprobs if verdict is R else batch.teacher_logprobs
        power = -student if verdict is R else teacher
        ppl = {i: math.exp(power * float(scores[i].mean()) / tau) for i in path}
        out.append(len(path) * ppl[index] / sum(ppl.values()) / tokens)
    return out


@pytest.mark.parametrize(
    ("switches", "student", "teacher"),
    [
        ({}, 1.0, 1.0),
        ({"tau": 0.5}, 1.0, 1.0),
        ({"student_weight": "uniform"}, 0.0, 1.0),
        ({"teacher_weight": "uniform"}, 1.0, 0.0),
        ({"student_weight": "uniform", "teacher_weight": "uniform"}, 0.0, 0.0),
        ({"student_weight": "reversed"}, -1.0, 1.0),
        ({"teacher_weight": "reversed"}, 1.0, -1.0),
    ],
)
def test_scope_and_the_papers_ablations(
    batch: Batch, switches: dict[str, Any], student: float, teacher: float
) -> None:
    ours = streams(batch, config("scope", **switches))
    expected = expected_scope(batch, switches.get("tau", 1.0), student, teacher)
    torch.testing.assert_close(ours.mle + ours.kl, torch.tensor(expected), rtol=1e-5, atol=1e-8)
    assert torch.equal(ours.mle != 0, batch.routes.correct)
    assert torch.equal(ours.kl != 0, batch.routes.incorrect)
    assert ours.pg is None and ours.nll is None


@pytest.mark.parametrize("below", [None, 0.6])
def test_no_teacher_pushes_incorrect_responses_down(batch: Batch, below: float | None) -> None:
    """The student's path as in SCOPE; every token of an incorrect response, or those that the
    student thought unlikely, has the advantage -c over the routed tokens."""
    switches = {"incorrect": "constant", "constant_advantage": 0.5, "constant_below": below}
    batch.student_logprobs, batch.teacher_mean = batch.old_logprobs, None
    settings = config("scope", **switches)
    assert not settings.needs_teacher and not settings.has_frozen
    ours = streams(batch, settings)
    tokens = int(batch.lengths[batch.routes.routed].sum())
    expected = torch.tensor(expected_scope(batch, 1.0, 1.0, 0.0))
    torch.testing.assert_close(ours.mle, torch.where(batch.routes.correct, expected, 0.0))
    assert ours.kl is None
    pack = build({i: ((1,), [5] * int(n)) for i, n in enumerate(batch.lengths)}, list(range(16)))
    laid = dict(scatter_to_sequences(ours.lay_out(pack).pg, pack))
    for index in range(16):
        wrong = bool(batch.routes.incorrect[index])
        for token, given in enumerate(laid[index].tolist()):
            if wrong:
                wrong_here = below is None or math.exp(batch.old_logprobs[index][token]) < below
            assert given == pytest.approx(-0.5 / tokens if wrong and wrong_here else 0.0)


def test_opd_distils_every_judged_response_alike(batch: Batch) -> None:
    ours = streams(batch, config("opd"))
    routed = batch.routes.routed
    expected = torch.where(routed, 1.0 / int(batch.lengths[routed].sum()), 0.0)
    torch.testing.assert_close(ours.kl, expected)
    assert ours.mle is None
    literal = streams(batch, config("opd", normalization="prompt_sum"))
    judged = torch.tensor([4.0, 4.0, 4.0, 3.0])[batch.group]
    torch.testing.assert_close(literal.kl, torch.where(routed, 1 / judged / 4, 0.0))


def test_grpo_advantages_and_reference_kl(batch: Batch) -> None:
    advantages = group_advantages(batch, config("grpo"))
    for g, verdicts in enumerate(VERDICTS):
        rewards = [float(v is R) for v in verdicts if v is not U]
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
        for k, verdict in enumerate(verdicts):
            expected = 0.0 if verdict is U else (float(verdict is R) - mean) / (std + 1e-6)
            assert float(advantages[4 * g + k]) == pytest.approx(expected, abs=1e-5)
    ours = streams(batch, config("grpo"))
    tokens = int(batch.lengths[batch.routes.routed].sum())
    torch.testing.assert_close(ours.pg, advantages / tokens)
    torch.testing.assert_close(ours.kl_ref, batch.routes.routed.float() * 0.1 / tokens)


def test_a_response_the_teacher_could_not_score_leaves_both_paths(batch: Batch) -> None:
    wrong = batch.members(batch.routes.incorrect)[0]
    batch.teacher_mean[wrong] = float("nan")
    batch.mask_unscored(~batch.teacher_mean.isfinite())
    assert wrong not in batch.teacher_logprobs and bool(batch.routes.masked[wrong])
    ours = streams(batch, config("scope"))
    assert float(ours.kl[wrong]) == 0.0 and bool(torch.isfinite(ours.kl).all())


def test_parts_keep_whole_groups_and_their_scores(batch: Batch) -> None:
    parts = batch.parts(2)
    assert sum(len(part.rollouts) for part in parts) == 16
    for part in parts:
        for index, rollout in part.rollouts.items():
            original = next(i for i, other in batch.rollouts.items() if other is rollout)
            assert bool(part.routes.correct[index]) == bool(batch.routes.correct[original])
            if original in batch.old_logprobs:
                assert part.old_logprobs[index] is batch.old_logprobs[original]
        for label in part.group.unique():
            assert (
                len({r.prompt.index for i, r in part.rollouts.items() if part.group[i] == label})
                == 1
            )
