"""Group weights against the paper's worked example and against plain softmaxes."""

from __future__ import annotations

import math

import pytest
import torch

from scope_megatron.objective import student_weights, teacher_weights

LABELS = torch.tensor([7, -2, 7, -2, 7, 900, -2, 7])
LOGPROB = torch.tensor([-0.3, -1.1, -2.0, -0.2, -0.7, -1.5, -0.9, -3.0], dtype=torch.float64)
MEMBER = torch.tensor([True, True, False, True, True, True, False, True])


def expected(sign: float, tau: float) -> torch.Tensor:
    """PPL^(sign/tau) normalised by loops, as eq. 4 and 5 are written."""
    out = torch.zeros(len(LABELS), dtype=torch.float64)
    power = {i: math.exp(-LOGPROB[i].item()) ** (sign / tau) for i in range(len(LABELS))}
    for i in range(len(LABELS)):
        peers = [j for j in range(len(LABELS)) if LABELS[j] == LABELS[i] and MEMBER[j]]
        if MEMBER[i]:
            out[i] = power[i] / sum(power[j] for j in peers)
    return out


def test_worked_example_of_the_paper():
    perplexity = torch.tensor([1.2, 2.6, 3.8])
    weights = student_weights(-perplexity.log(), torch.zeros(3).long(), torch.ones(3).bool())
    assert weights.tolist() == pytest.approx([0.158, 0.342, 0.500], abs=5e-4)
    assert weights.dtype == torch.float32
    teacher = teacher_weights(-perplexity.log(), torch.zeros(3).long(), torch.ones(3).bool())
    inverse = [1 / 1.2, 1 / 2.6, 1 / 3.8]
    assert teacher.tolist() == pytest.approx([w / sum(inverse) for w in inverse], abs=1e-6)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("mode", ["perplexity", "uniform", "reversed"])
def test_interleaved_groups_match_the_formula(tau, mode):
    sign = {"perplexity": 1.0, "uniform": 0.0, "reversed": -1.0}[mode]
    student = student_weights(LOGPROB, LABELS, MEMBER, tau, mode=mode)
    teacher = teacher_weights(LOGPROB, LABELS, MEMBER, tau, mode=mode)
    torch.testing.assert_close(student, expected(sign, tau), rtol=1e-12, atol=0)
    torch.testing.assert_close(teacher, expected(-sign, tau), rtol=1e-12, atol=0)


def test_extreme_log_probabilities_stay_finite():
    """exp(50) overflows nothing, and a float32 sum keeps the path at 1."""
    logprob = torch.tensor([-50.0, -0.01, -120.0, -50.0])
    group = torch.tensor([0, 0, 1, 1])
    student = student_weights(logprob, group, torch.ones(4).bool(), 0.5)
    assert student.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0], abs=1e-12)
    assert teacher_weights(logprob, group, torch.ones(4).bool(), 0.5)[3] == 1.0


def test_singletons_and_empty_paths():
    group = torch.tensor([0, 0, 1, 1])
    one = torch.tensor([False, True, False, False])
    assert student_weights(LOGPROB[:4], group, one).tolist() == [0, 1, 0, 0]
    assert teacher_weights(LOGPROB[:4], group, ~one)[[0, 1]].tolist() == [1, 0]
    nobody = torch.zeros(4).bool()  # all wrong: no student path; all right: no teacher path
    assert student_weights(LOGPROB[:4], group, nobody).tolist() == [0, 0, 0, 0]
    assert teacher_weights(LOGPROB[:0], group[:0], nobody[:0]).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unscored_members_are_refused_and_others_are_not_read(bad):
    logprob = LOGPROB.clone()
    logprob[2] = bad  # not a member
    torch.testing.assert_close(student_weights(logprob, LABELS, MEMBER), expected(1, 1))
    logprob[4] = bad
    with pytest.raises(ValueError, match=r"student's .* not finite for response\(s\) \[4\]"):
        student_weights(logprob, LABELS, MEMBER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 0.0}, "objective.tau"),
        ({"tau": math.nan}, "objective.tau"),
        ({"mode": "inverse"}, "objective.teacher_weight"),
        ({"group": LABELS[:3]}, "one length"),
        ({"group": LABELS.float()}, "integer"),
        ({"incorrect": MEMBER.long()}, "bool"),
    ],
)
def test_refusals(change, message):
    good = {"mean_logprob": LOGPROB, "group": LABELS, "incorrect": MEMBER}
    with pytest.raises(ValueError, match=message):
        teacher_weights(**{**good, **change})
