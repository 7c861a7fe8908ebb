"""Every switch of docs/algorithms.md: the loss and its gradient on a batch small enough for plain
Python, which computes both in double precision and shares no code with the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from scope_megatron.config import Config
from scope_megatron.learn.algorithms import group_advantages, weigh
from scope_megatron.learn.batch import Batch
from scope_megatron.learn.passes import Passes
from scope_megatron.learn.privileged import extrapolated
from scope_megatron.objective.loss import Clip, Known, token_losses
from scope_megatron.objective.packing import build
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.steps import batch_of
from tests.support.switches import GROUP, LIMIT, RESPONSES, Response, made_batch, made_config

# of one token: (response, place) -> d loss / d log pi, at the first update of a batch
Slope = Callable[[Response, int], float]


def tokens(keep: Callable[[Response], bool] = lambda r: True) -> int:
    return sum(r.length for r in RESPONSES if r.judged and keep(r))


def group_of(response: Response) -> list[Response]:
    return [r for r in RESPONSES if r.group == response.group and r.judged]


def advantage(response: Response, reward: Callable[[Response], float] = lambda r: float(r.right)):
    """(R - mean) / (std + 1e-6) over the judged responses of the group."""
    rewards = [reward(r) for r in group_of(response)]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((x - mean) ** 2 for x in rewards) / len(rewards))
    return (reward(response) - mean) / (std + 1e-6)


def gap(response: Response, place: int) -> float:
    """d = log pi_T - log pi_S."""
    return response.teacher[place] - response.student[place]


def scope_weight(response: Response) -> float:
    """n softmax of perplexities over the response's path."""
    sign, scores = (-1.0, "student") if response.right else (1.0, "teacher")
    mass = {
        r.number: math.exp(sign * sum(getattr(r, scores)) / r.length)
        for r in group_of(response)
        if r.right == response.right
    }
    return len(mass) * mass[response.number] / sum(mass.values())


def scope(response: Response, place: int) -> float:
    return scope_weight(response) * (-1.0 if response.right else -gap(response, place)) / tokens()


def scope_of_the_batch(response: Response, place: int) -> float:
    """n softmax of perplexities over all responses of a path, whatever their prompts."""
    sign, scores = (-1.0, "student") if response.right else (1.0, "teacher")
    mass = {
        r.number: math.exp(sign * sum(getattr(r, scores)) / r.length)
        for r in RESPONSES
        if r.judged and r.right == response.right
    }
    weight = len(mass) * mass[response.number] / sum(mass.values())
    return weight * (-1.0 if response.right else -gap(response, place)) / tokens()


def correct_alone(response: Response, place: int) -> float:
    return scope(response, place) if response.right else 0.0


def kdrl(response: Response, place: int) -> float:
    return (-advantage(response) - 0.3 * gap(response, place)) / tokens()


def rlsd(response: Response, place: int) -> float:
    a = advantage(response)
    ratio = math.exp(math.copysign(1.0, a) * gap(response, place))
    return -a * (1 - 0.5 + 0.5 * min(max(ratio, 0.8), 1.2)) / tokens()


def sdar(response: Response, place: int) -> float:
    gate = 1 / (1 + math.exp(-5 * gap(response, place)))
    return (-advantage(response) - 0.3 * gate) / tokens()


def srpo(response: Response, place: int) -> float:
    if response.right:
        return -advantage(response) / tokens()
    return -0.3 * math.exp(-0.7 * response.entropy[place]) * gap(response, place) / tokens()


def mixed(response: Response) -> bool:
    return len({r.right for r in group_of(response)}) == 2


def filtered(response: Response, place: int) -> float:
    return -gap(response, place) / tokens(mixed) if mixed(response) else 0.0


def overlong(response: Response, place: int) -> float:
    def reward(r: Response) -> float:
        if not mixed(r):  # lengths are compared where verdicts differ, as DAPO's filter leaves it
            return float(r.right)
        start = LIMIT - 6
        penalty = 0.0 if r.length <= start else 0.5 * (start - r.length) / 6
        return float(r.right) + max(penalty, -0.5)

    return -advantage(response, reward) / tokens()


def iw_opd(response: Response, place: int) -> float:
    sizes = [abs(gap(response, t)) for t in range(response.length)]
    weight = 1 + 0.5 * (1 - sum(sizes[:place]) / sum(sizes))
    return -weight * gap(response, place) / tokens()


def prefix(response: Response, place: int) -> float:
    short = sum(min(r.length, 3) for r in RESPONSES if r.judged)
    return -gap(response, place) / short if place < 3 else 0.0


def prefix_of_scope(response: Response, place: int) -> float:
    counted = sum(r.length if r.right else min(r.length, 3) for r in RESPONSES if r.judged)
    whole = scope(response, place) * tokens() / counted
    return whole if response.right or place < 3 else 0.0


def paced(response: Response, place: int) -> float:
    def weight(of: Response) -> float:
        p = sum(r.right for r in group_of(of)) / len(group_of(of))
        return p * (1 - p) ** 2

    firsts = [next(r for r in RESPONSES if r.judged and r.group == g) for g in range(4)]
    mean = sum(map(weight, firsts)) / 4
    return weight(response) / mean * scope(response, place)


def exopd(response: Response, place: int) -> float:
    """A_t = l (log pi_T - log pi_ref) - (log pi_S - log pi_ref)."""
    own, theirs, ref = (
        getattr(response, name)[place] for name in ("student", "teacher", "reference")
    )
    return -(1.25 * (theirs - ref) - (own - ref)) / tokens()


# name: (settings, slope of each token)
SWITCHES: dict[str, tuple[dict[str, Any], Slope]] = {
    "scope": ({}, scope),
    "correct-alone": ({"objective": {"incorrect": "none"}}, correct_alone),
    "kdrl": ({"algorithm": {"name": "kdrl", "teacher_coef": 0.3}}, kdrl),
    "rlsd": ({"algorithm": {"name": "rlsd"}}, rlsd),
    "sdar": ({"algorithm": {"name": "sdar", "teacher_coef": 0.3}}, sdar),
    "srpo": ({"algorithm": {"name": "srpo", "teacher_coef": 0.3, "srpo_beta": 0.7}}, srpo),
    "group-filter": ({"algorithm": {"name": "opd", "group_filter": "mixed"}}, filtered),
    "overlong": (
        {
            "algorithm": {
                "name": "grpo",
                "kl_coef": 0.0,
                "overlong_buffer": 6,
                "overlong_penalty": 0.5,
            }
        },
        overlong,
    ),
    "iw-opd": ({"algorithm": {"name": "opd"}, "objective": {"iw_gamma": 0.5}}, iw_opd),
    "prefix": ({"algorithm": {"name": "opd"}, "objective": {"prefix_tokens": 3}}, prefix),
    "prefix-of-scope": ({"objective": {"prefix_tokens": 3}}, prefix_of_scope),
    "exopd": ({"algorithm": {"name": "opd"}, "objective": {"extrapolation": 1.25}}, exopd),
    "over-the-batch": ({"objective": {"weight_group": "batch"}}, scope_of_the_batch),
    "paced": ({"algorithm": {"pass_rate_alpha": 1.0, "pass_rate_beta": 2.0}}, paced),
}


def slopes(config: Config, batch: Batch) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """(d loss / d log pi of every token of every response, per-token terms), at rho = 1."""
    members = list(range(len(RESPONSES)))
    pack = build({r.number: ((1,), [5] * r.length) for r in RESPONSES}, members)
    logp = torch.cat([torch.tensor(r.student).double() for r in RESPONSES]).requires_grad_()
    theirs = {r.number: torch.tensor(r.teacher).double() for r in RESPONSES}
    if config.extrapolates:
        batch.target_logprobs = extrapolated(batch, config.objective.extrapolation)
        theirs |= batch.target_logprobs
    known = Known(teacher=torch.cat([theirs[r.number] for r in RESPONSES]))
    clip = Clip(eps=0.2)
    terms = token_losses(logp, weigh(batch, config).streams.lay_out(pack), known, clip)
    sum(term.sum() for term in terms.values()).backward()
    return [part.tolist() for part in logp.grad.split([r.length for r in RESPONSES])], terms


@pytest.mark.parametrize("name", SWITCHES)
def test_gradient_is_the_formulas(name: str) -> None:
    settings, slope = SWITCHES[name]
    ours, _ = slopes(made_config(**settings), made_batch())
    for response in RESPONSES:
        wanted = [
            slope(response, place) if response.judged else 0.0 for place in range(response.length)
        ]
        assert ours[response.number] == pytest.approx(wanted, rel=2e-5, abs=1e-9), response.number


@pytest.mark.parametrize("verdict", [True, False])
@pytest.mark.parametrize("name", ["grpo", "kdrl", "rlsd", "sdar", "srpo"])
def test_one_token_in_the_overlong_buffer_is_no_advantage(name: str, verdict: bool) -> None:
    """Of eight that are all correct, or all incorrect; of the seven others A would be 0.38."""
    given = Rollout(Prompt(0, (1,), "1"), 0, [5] * 10, [], True)
    given.verdict = Verdict.CORRECT if verdict else Verdict.INCORRECT
    longer = replace(given, token_ids=[5] * 11)
    batch = batch_of([replace(given, sample=k) for k in range(7)] + [replace(longer, sample=7)])
    config = made_config(algorithm={"name": name, "overlong_buffer": 6}, rollout={"group_size": 8})
    assert group_advantages(batch, config).tolist() == [0.0] * 8
    batch.routes.correct[0], batch.routes.incorrect[0] = not verdict, verdict  # a mixed group
    rewards = [float(not verdict), *[float(verdict)] * 6, verdict - 1 / 6]
    mean = sum(rewards) / 8
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 8)
    wanted = [(r - mean) / (std + 1e-6) for r in rewards]
    assert group_advantages(batch, config).tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "scope"])
def test_it_does_something(name: str) -> None:
    """Without its settings the gradient is another one."""
    settings = {section: dict(values) for section, values in SWITCHES[name][0].items()}
    algorithm = settings.get("algorithm", {})
    plain = {"algorithm": {k: v for k, v in algorithm.items() if k in ("name", "kl_coef")}}
    if plain["algorithm"].get("name") in ("kdrl", "rlsd", "sdar", "srpo"):
        plain = {"algorithm": {"name": "grpo", "kl_coef": 0.0}}
    assert (
        slopes(made_config(**settings), made_batch())[0]
        != (slopes(made_config(**plain), made_batch())[0])
    )


def test_equal_weights_are_equal_over_a_prompt_or_a_batch() -> None:
    equal = {"student_weight": "uniform", "teacher_weight": "uniform"}
    prompt, batch = (
        slopes(made_config(objective={**equal, "weight_group": over}), made_batch())[0]
        for over in ("prompt", "batch")
    )
    for ours, theirs in zip(batch, prompt, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_value_of_the_gated_pull() -> None:
    """SDAR's term is c mean(gate d), not only its gradient."""
    _, terms = slopes(made_config(**SWITCHES["sdar"][0]), made_batch())
    judged = [(r, t) for r in RESPONSES if r.judged for t in range(r.length)]
    wanted = sum(gap(r, t) / (1 + math.exp(-5 * gap(r, t))) for r, t in judged)
    assert float(terms["pull"].sum().detach()) == pytest.approx(0.3 * wanted / tokens(), rel=1e-5)


def test_nothing_is_weighed_where_every_prompt_is_hopeless() -> None:
    batch = made_batch()
    batch.routes.correct[:] = False
    batch.routes.incorrect[:] = ~batch.routes.masked
    for settings in ({"pass_rate_alpha": 1.0}, {"group_filter": "mixed"}):
        streams = weigh(batch, made_config(algorithm={"name": "opd", **settings})).streams
        assert not streams.active().any()
        assert all(bool(factor.isfinite().all()) for _, factor in streams)


@pytest.mark.parametrize("ratio", [0.5, 0.81, 1.0, 1.21, 1.27, 1.29, 2.0])
@pytest.mark.parametrize("gain", [-0.7, 0.7])
def test_clip_higher(ratio: float, gain: float) -> None:
    """DAPO: min(rho A, clip(rho, 0.8, 1.28) A)."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    streams = weigh(made_batch(), made_config(algorithm={"name": "grpo"})).streams
    one = type(streams)(pg=torch.tensor([gain], dtype=torch.float64))
    loss = token_losses(logp, one, Known(old=old), Clip(eps=0.2, high=0.28))["pg"]
    bounded = min(max(ratio, 0.8), 1.28)
    assert float(loss.detach()) == pytest.approx(-min(ratio * gain, bounded * gain))
    loss.sum().backward()
    moves = ratio * gain <= bounded * gain
    assert float(logp.grad) == pytest.approx(-ratio * gain if moves else 0.0)


@pytest.mark.parametrize(
    ("settings", "student", "logprobs", "entropy"),
    [
        ({"algorithm": {"name": "kdrl"}}, "none", True, False),
        ({"algorithm": {"name": "rlsd"}}, "engine", True, False),
        ({"algorithm": {"name": "sdar"}, "rollout": {"top_p": 0.9}}, "all", True, False),
        ({"algorithm": {"name": "srpo"}}, "none", True, True),
        ({"algorithm": {"name": "kdrl"}, "objective": {"kl": "reverse_kl"}}, "none", False, False),
        (
            {
                "algorithm": {"name": "opd"},
                "objective": {"kl": "reverse_kl", "iw_gamma": 0.5},
            },
            "engine",
            True,
            False,
        ),
        (
            {"objective": {"incorrect": "constant", "student_weight": "uniform"}},
            "none",
            False,
            False,
        ),
        ({"objective": {"incorrect": "constant", "constant_below": 0.1}}, "engine", False, False),
        ({"objective": {"incorrect": "none"}}, "engine", False, False),
    ],
)
def test_only_passes_that_are_read(
    settings: dict[str, Any], student: str, logprobs: bool, entropy: bool
) -> None:
    passes = Passes.of(made_config(**settings))
    assert (passes.student, passes.teacher_logprobs) == (student, logprobs)
    assert passes.teacher_entropy == entropy


def test_parts_keep_what_tokens_are_weighed_by() -> None:
    """Several updates per batch: each part's streams are those of its groups alone."""
    config = made_config(**SWITCHES["srpo"][0])
    for part in made_batch().parts(2):
        assert len(part.rollouts) == 2 * GROUP
        kl = weigh(part, config).streams
        assert sorted(kl.tokens["kl"]) == part.members(part.routes.incorrect)
        for index, scale in kl.tokens["kl"].items():
            assert len(scale) == int(part.lengths[index])
