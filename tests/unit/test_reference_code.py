"""What the published code computes otherwise: each switch against its formula in plain Python.

The formulas are written out here in double precision and share no code with the package.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from scope_megatron.config import Config
from scope_megatron.config.sections.presets import REFERENCE_CODE
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.learn.algorithms import ALGORITHMS, Weighed
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Clip, Known, Streams, token_losses
from scope_megatron.objective.normalize import microbatch_scales
from scope_megatron.objective.packing import build
from scope_megatron.rollout.statistics import pass_with_replacement, pass_without_replacement
from scope_megatron.rollout.verify.text import string
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.harness import run_distributed_test
from tests.support.steps import batch_of
from tests.unit.test_prompts import Characters, write_jsonl

GROUPS, SIZE = 4, 4


def settings(preset: str = "paper", **sections: dict[str, Any]) -> Config:
    raw: dict[str, Any] = {
        "output_dir": "out",
        "model": {"student": "s", "teacher": "t"},
        "data": {"train": "d.jsonl", "max_prompt_tokens": 8},
        "rollout": {"prompts_per_step": 4, "group_size": 4, "max_response_tokens": 16},
        "objective": {"preset": preset},
        "train": {"steps": 1, "microbatch_tokens": 64},
    }
    for name, values in sections.items():
        raw[name] = raw.get(name, {}) | values
    return Config.model_validate(raw)


class Facts:
    """A batch in plain numbers: correct or not, and both models' log-probabilities."""

    def __init__(self) -> None:
        rng = random.Random(3)
        self.right = [bool(n) for n in (1, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0)]
        self.lengths = [rng.randint(1, 9) for _ in self.right]
        self.student = [[-2 * rng.random() for _ in range(n)] for n in self.lengths]
        self.teacher = [[-3 * rng.random() for _ in range(n)] for n in self.lengths]

    def mean_one_weights(self, tau: float = 1.0) -> list[float]:
        """n softmax(+mean logp / tau) over the responses of a prompt that are right, or wrong."""
        weights = []
        for i, right in enumerate(self.right):
            path = [j for j in range(len(self.right)) if j // SIZE == i // SIZE]
            path = [j for j in path if self.right[j] == right]
            scores = self.student if right else self.teacher
            mass = {j: math.exp(sum(scores[j]) / len(scores[j]) / tau) for j in path}
            weights.append(len(path) * mass[i] / sum(mass.values()))
        return weights

    def batch(self) -> Batch:
        said = {True: Verdict.CORRECT, False: Verdict.INCORRECT}
        rollouts = [
            Rollout(Prompt(i // SIZE, (1, 2), "1"), i % SIZE, [5] * n, [], True, verdict=said[ok])
            for i, (n, ok) in enumerate(zip(self.lengths, self.right, strict=True))
        ]
        batch = batch_of(rollouts)
        for of, into in ((self.student, "old_logprobs"), (self.teacher, "teacher_logprobs")):
            setattr(batch, into, {i: torch.tensor(v).double() for i, v in enumerate(of)})
        batch.student_mean = torch.tensor([sum(v) / len(v) for v in self.student])
        batch.teacher_mean = torch.tensor([sum(v) / len(v) for v in self.teacher])
        return batch


@pytest.fixture
def facts() -> Facts:
    return Facts()


def weighed(facts: Facts, config: Config) -> Weighed:
    return ALGORITHMS["scope"].weigh(facts.batch(), config)


def test_weights_favour_low_perplexity_and_have_mean_one(facts: Facts) -> None:
    ours = weighed(facts, settings("reference_code")).streams
    factor = torch.stack([value for _, value in ours]).sum(0)
    expected = torch.tensor(facts.mean_one_weights())
    torch.testing.assert_close(factor, expected, rtol=1e-5, atol=1e-7)
    for group in range(GROUPS):  # mean 1 on each path
        for right in (True, False):
            path = [i for i in range(16) if i // SIZE == group and facts.right[i] == right]
            if path:
                assert float(factor[path].mean()) == pytest.approx(1.0, rel=1e-5)


def test_means_are_taken_inside_each_microbatch(facts: Facts) -> None:
    """The whole loss of a batch in three microbatches: A log-ratio over all tokens of one, the
    likelihood over its correct tokens alone, n / B for each."""
    microbatches = [[0, 5, 9, 14, 15], [1, 2, 3, 4, 6, 7], [8, 10, 11, 12, 13]]
    weights, expected = facts.mean_one_weights(), 0.0
    for members in microbatches:
        every = sum(facts.lengths[i] for i in members)
        right = sum(facts.lengths[i] for i in members if facts.right[i])
        policy = likelihood = 0.0
        for i in members:
            for own, theirs in zip(facts.student[i], facts.teacher[i], strict=True):
                if facts.right[i]:
                    likelihood += -weights[i] * own
                else:
                    policy += -weights[i] * (theirs - own)
        expected += len(members) / 16 * (policy / every + (likelihood / right if right else 0.0))
    config = settings("reference_code")
    ours, batch, streams = 0.0, facts.batch(), weighed(facts, config).streams
    sequences = {i: ((1, 2), [5] * n) for i, n in enumerate(facts.lengths)}
    for members in microbatches:
        pack = build(sequences, members)
        right = [facts.right[i] for i in members]
        laid = streams.scaled(microbatch_scales(pack.counts, right, 16)).lay_out(pack)
        own = torch.cat([batch.old_logprobs[i] for i in members])
        theirs = torch.cat([batch.teacher_logprobs[i] for i in members])
        terms = token_losses(own, laid, Known(old=own, teacher=theirs), Clip())
        ours += sum(float(term.sum()) for term in terms.values())
    assert ours == pytest.approx(expected, rel=1e-5)


def test_a_microbatch_without_correct_responses_has_no_likelihood() -> None:
    scales = microbatch_scales([3, 5], [False, False], 4)
    assert scales["kl"] == pytest.approx(2 / 4 / 8)
    assert math.isfinite(scales["nll"])
    assert microbatch_scales([3, 5], [False, True], 4)["nll"] == pytest.approx(2 / 4 / 5)


def test_the_likelihood_is_of_log_probabilities(facts: Facts) -> None:
    paper, code = (
        weighed(facts, settings(preset)).streams for preset in ("paper", "reference_code")
    )
    assert paper.nll is None and code.mle is None and code.nll is not None
    logp = torch.tensor([-1.5, -0.25], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0, -0.5], dtype=torch.float64)
    weight = torch.tensor([2.0, 3.0], dtype=torch.float64)
    loss = token_losses(logp, Streams(nll=weight), Known(old=old), Clip(eps=0.2, dual=3.0))["nll"]
    assert loss.tolist() == pytest.approx([3.0, 0.75])
    loss.sum().backward()
    assert logp.grad is not None and logp.grad.tolist() == [-2.0, -3.0]  # no ratio, no clip


@pytest.mark.parametrize("ratio", [0.5, 0.81, 1.0, 1.19, 1.5, 2.9, 3.1, 8.0])
@pytest.mark.parametrize("gap", [-1.3, 0.7])
def test_the_teachers_term_passes_the_dual_clip(ratio: float, gap: float) -> None:
    """A = w (log pi_T - log pi_old); loss max(-rho A, -clip(rho) A), at most -3 A where A < 0."""
    old, weight = -1.1, 0.8
    logp = torch.tensor([old + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    known = Known(
        old=torch.tensor([old], dtype=torch.float64),
        teacher=torch.tensor([old + gap], dtype=torch.float64),
    )
    streams = Streams(kl=torch.tensor([weight], dtype=torch.float64))
    loss = token_losses(logp, streams, known, Clip(eps=0.2, dual=3.0, old_gap=True))["kl"]
    advantage = weight * gap
    bounded = min(max(ratio, 0.8), 1.2)
    expected = max(-ratio * advantage, -bounded * advantage)
    moves = expected == -ratio * advantage
    if advantage < 0 and expected > -3.0 * advantage:
        expected, moves = -3.0 * advantage, False
    assert float(loss.detach()) == pytest.approx(expected)
    loss.sum().backward()
    assert float(logp.grad) == pytest.approx(-ratio * advantage if moves else 0.0)


def test_the_gap_is_that_of_the_weights_that_sampled() -> None:
    logp, old, theirs = (torch.tensor([v], dtype=torch.float64) for v in (-0.4, -1.0, -2.0))
    streams = Streams(kl=torch.ones(1, dtype=torch.float64))
    for clip, gap in ((Clip(), -0.4 + 2.0), (Clip(old_gap=True), -1.0 + 2.0)):
        loss = token_losses(logp, streams, Known(old=old, teacher=theirs), clip)["kl"]
        assert float(loss) == pytest.approx(math.exp(0.6) * gap)


def test_answers_are_compared_as_text() -> None:
    assert settings("reference_code").verifier.name == "string"
    assert string("so \\boxed{\\frac12}", "\\frac{1}{2}")  # Hendrycks' rewriting
    assert not string("so \\boxed{2/4}", "1/2")  # equal numbers, other texts
    assert not string("so \\boxed{x+1}", "1+x")


def test_pass_at_k_is_drawn_with_replacement() -> None:
    """By all k-tuples of n answers, beside the unbiased one by all k-subsets."""
    for n, right, k in ((5, 2, 3), (6, 1, 4)):
        tuples = [[(code // n**place) % n for place in range(k)] for code in range(n**k)]
        hits = sum(any(drawn < right for drawn in one) for one in tuples) / n**k
        assert pass_with_replacement(n, right, k) == pytest.approx(hits, abs=1e-14)
        subsets = [one for one in tuples if sorted(set(one)) == one]
        hits = sum(any(drawn < right for drawn in one) for one in subsets) / len(subsets)
        assert pass_without_replacement(n, right, k) == pytest.approx(hits, abs=1e-14)
    assert pass_with_replacement(32, 1, 32) == pytest.approx(0.638, abs=1e-3)


def test_prompts_end_as_they_do_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The literal double braces, and a prompt that is too long loses its right end."""
    monkeypatch.setenv("SCOPE_MEGATRON_CACHE", str(tmp_path / "cache"))
    rows = write_jsonl(
        tmp_path / "rows.jsonl", *({"prompt": p, "answer": "1"} for p in ("a", "bcd"))
    )
    suffix = " \\boxed{{}}"
    data = PromptDataset(rows, Characters(), 100, suffix=suffix)
    texts = ["".join(map(chr, data[i].token_ids)) for i in range(2)]
    assert texts == ["u:a \\boxed{{}}|", "u:bcd \\boxed{{}}|"]
    cut = PromptDataset(rows, Characters(), 15, suffix=suffix, cut=True)
    assert ["".join(map(chr, cut[i].token_ids)) for i in range(2)] == [text[:15] for text in texts]
    assert not cut.skipped
    dropped = PromptDataset(rows, Characters(), 15, suffix=suffix)
    assert len(dropped) == 1 and len(dropped.skipped) == 1


def test_the_preset_is_the_sum_of_its_switches() -> None:
    preset = settings("reference_code")
    given = {name: dict(values) for name, values in REFERENCE_CODE.items()}
    by_hand = settings(**given)
    assert by_hand.model_copy(update={"objective": preset.objective}) == preset
    assert preset.model_copy(update={"objective": by_hand.objective}) == by_hand
    assert settings("reference_code", verifier={"name": "math"}).verifier.name == "math"
    default = settings()
    for section, values in given.items():
        for name, value in values.items():
            assert getattr(getattr(default, section), name) != value, f"{section}.{name}"


def bfloat16_steps(rank: int, world_size: int) -> list[dict[str, Any]]:
    from scope_megatron.parallel import platform
    from scope_megatron.parallel.topology import create_topology

    platform.initialize()
    create_topology(1, 1, False)
    kinds = (("parameters", 0.0), ("float32", 0.0), ("parameters", 0.125), ("float32", 0.125))
    return [two_updates(*kind) for kind in kinds]


def two_updates(states: str, clip: float) -> dict[str, Any]:
    """Of one small layer in bfloat16, by the student's own optimizer."""
    from megatron.core.transformer import TransformerConfig

    from scope_megatron.parallel.optimizer import build_optimizer, state_tensors, wrap_student

    adam = settings("reference_code").optimizer.model_copy(
        update={"lr": 1e-2, "clip_grad": clip, "states": states}
    )
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    model.config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    before = model.weight.detach().double()
    ddp = wrap_student(model, adam)
    optimizer = build_optimizer(ddp, adam, torch.bfloat16)
    slopes = [torch.linspace(-1, 1, 12).view(3, 4).bfloat16() * scale for scale in (1.0, -0.25)]
    for slope in slopes:
        ddp.zero_grad_buffer()
        optimizer.zero_grad()
        model.weight.main_grad.copy_(slope)
        optimizer.step()
    return {
        "before": before,
        "after": model.weight.detach().double(),
        "slopes": [slope.double() for slope in slopes],
        "gradient": float(model.weight.main_grad.double().norm()),
        "types": sorted({str(t.dtype) for t in state_tensors(optimizer) if t.numel() == 12}),
    }


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_adam_has_the_published_betas_and_states_in_bfloat16() -> None:
    """AdamW with 0.9 and 0.999, in double precision; ours rounds to bfloat16 at each step."""
    ((told, default, *clipped),) = run_distributed_test(bfloat16_steps, 1)
    assert told["types"] == ["torch.bfloat16"]
    assert default["types"] == ["torch.float32"]
    w, m, v = told["before"].clone(), 0.0, 0.0
    for t, g in enumerate(told["slopes"], 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        hat = v / (1 - 0.999**t)
        w = w - 1e-2 * (m / (1 - 0.9**t) / (hat.sqrt() + 1e-8) + 0.01 * w)
    for found in (told, default):
        torch.testing.assert_close(found["after"], w, rtol=1e-2, atol=2e-3)
        assert float((found["after"] - found["before"]).abs().max()) > 5e-3
    half, single = clipped  # of the second gradient, a quarter as steep as the first
    assert told["gradient"] == pytest.approx(0.25 * 2.1735, rel=0.01)
    assert half["gradient"] == pytest.approx(0.125, rel=0.01)
    torch.testing.assert_close(half["after"], single["after"], rtol=1e-2, atol=2e-3)
