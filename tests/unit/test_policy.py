"""The token loss: values by hand, gradients of the surrogates, and rows that must not count."""

from __future__ import annotations

import math

import pytest
import torch

from scope_megatron.objective import Streams
from tests.support.losses import policy_loss, policy_terms

NAN = math.nan


def tensor(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def gradient(loss: torch.Tensor, logprob: torch.Tensor) -> list[float]:
    return torch.autograd.grad(loss, logprob)[0].tolist()


def test_first_update_is_the_policy_gradient():
    """At rho = 1: the value is -mle + kl (logp - logq) - pg - nll logp, d rho = d logp."""
    logprob = tensor(-1.0, -2.0, -0.5, -0.7, grad=True)
    streams = Streams(
        mle=tensor(0.3, 0, 0, 0),
        kl=tensor(0, 0.2, 0, 0),
        pg=tensor(0, 0, -0.4, 0),
        nll=tensor(0, 0, 0, 0.1),
    )
    loss = policy_loss(
        logprob, logprob.detach(), streams, teacher_logprob=tensor(NAN, -0.5, NAN, NAN)
    )
    assert loss.item() == pytest.approx(-0.3 + 0.2 * (-2.0 + 0.5) + 0.4 + 0.1 * 0.7)
    assert gradient(loss, logprob) == pytest.approx([-0.3, 0.2 * -1.5, 0.4, -0.1])


def test_old_weights_scale_every_surrogate():
    logprob, old = tensor(-1.0, -2.0, grad=True), tensor(-1.5, -1.8)
    rho = [math.exp(0.5), math.exp(-0.2)]
    streams = Streams(mle=tensor(0.3, 0), kl=tensor(0, 0.2))
    terms = policy_terms(logprob, old, streams, teacher_logprob=tensor(0, -3.0))
    assert terms["mle"].tolist() == pytest.approx([-0.3 * rho[0], 0])
    assert terms["kl"].tolist() == pytest.approx([0, 0.2 * rho[1] * 1.0])
    # the log-ratio inside eq. 3 is detached: only rho is differentiated
    loss = terms["mle"].sum() + terms["kl"].sum()
    assert gradient(loss, logprob) == pytest.approx([-0.3 * rho[0], 0.2 * rho[1]])


@pytest.mark.parametrize("name", ["mle", "pg", "kl"])
@pytest.mark.parametrize("positive", [True, False])
def test_clipping_stops_only_the_steps_that_go_further(name, positive):
    """PPO: rho above 1 + eps stops a positive advantage, below 1 - eps a negative one."""
    ratios = [0.5, 0.81, 1.19, 2.0]
    logprob = tensor(*(math.log(r) - 1.0 for r in ratios), grad=True)
    old, advantage = torch.full_like(logprob, -1.0).detach(), 0.4 if positive else -0.4
    if name == "kl":  # advantage = -kl (logp - logq)
        weight, teacher = tensor(*[0.4] * 4), logprob.detach() + (1.0 if positive else -1.0)
    else:
        weight, teacher = tensor(*[advantage] * 4), None
    terms = policy_terms(
        logprob, old, Streams(**{name: weight}), teacher_logprob=teacher, clip_eps=0.2
    )
    clipped = [0.5, 0.81, 1.19, 1.2] if positive else [0.8, 0.81, 1.19, 2.0]
    flat = 3 if positive else 0
    assert terms[name].tolist() == pytest.approx([-advantage * r for r in clipped])
    slope = [0.0 if i == flat else -advantage * r for i, r in enumerate(ratios)]
    assert gradient(terms[name].sum(), logprob) == pytest.approx(slope)


def test_divergence_replaces_the_sampled_term():
    logprob, divergence = tensor(-1.0, -2.0, grad=True), tensor(0.7, NAN, grad=True)
    loss = policy_loss(
        logprob, None, Streams(kl=tensor(0.5, 0)), divergence=divergence, clip_eps=0.2
    )
    assert loss.item() == pytest.approx(0.35)
    assert torch.autograd.grad(loss, divergence)[0].tolist() == [0.5, 0.0]


def test_truncated_importance_weights():
    logprob = tensor(-1.0, -1.0, -1.0, -1.0, grad=True)
    old, engine = logprob.detach(), tensor(-1.3, -0.8, -9.0, NAN)
    weights = [math.exp(0.3), math.exp(-0.2), 2.0]
    divergence, on = tensor(1.0, 1.0, 1.0, 1.0, grad=True), tensor(1, 1, 1, 0)
    streams = Streams(mle=on, kl=on, pg=on, nll=on)
    terms = policy_terms(
        logprob, old, streams, divergence=divergence, engine_logprob=engine, tis_clip=2.0
    )
    for name in ("mle", "pg"):
        assert terms[name].tolist() == pytest.approx([-w for w in weights] + [0])
    assert terms["nll"].tolist() == pytest.approx([*weights, 0])
    # a divergence over the vocabulary does not depend on the token that was sampled
    assert terms["kl"].tolist() == pytest.approx([1.0, 1.0, 1.0, 0])
    terms = policy_terms(logprob, old, Streams(nll=on), engine_logprob=engine)
    assert terms["nll"].tolist() == pytest.approx([1.0] * 3 + [0])  # given responses: no engine


@pytest.mark.parametrize("cut", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("name", ["mle", "pg", "kl", "nll", "pull", "kl_ref"])
def test_the_ratio_to_the_engine_is_cut_whatever_is_taken_for_old(name, cut):
    """objective.old_logprobs auto, recompute, rollout at a first update: each weighs a token by
    min(trainer / engine, C), in value and in the gradient of log p, here of up to 0.5 / 0.01."""
    ratios = [0.3, 1.0, 1.9, 2.1, 50.0]
    logprob = torch.full((5,), math.log(0.5), dtype=torch.float64, requires_grad=True)
    engine = tensor(*(math.log(0.5 / ratio) for ratio in ratios))
    sizes = tensor(0.7, -0.4, 0.2, -1.1, 0.9)
    models = {"teacher_logprob": tensor(*[-1.5] * 5), "ref_logprob": tensor(*[-0.2] * 5)}
    bare = policy_terms(logprob, None, Streams(**{name: sizes}), **models)[name]
    slopes = gradient(bare.sum(), logprob)
    weights = [min(ratio, cut) for ratio in ratios]
    for old, rest in (
        (None, {}),
        (logprob.detach(), {}),
        (engine, {"engine_old": True}),
    ):
        given = models | {"engine_logprob": engine, "tis_clip": cut} | rest
        term = policy_terms(logprob, old, Streams(**{name: sizes}), **given)[name]
        wanted = [w * v for w, v in zip(weights, bare.tolist(), strict=True)]
        assert term.tolist() == pytest.approx(wanted, rel=1e-14)
        wanted = [w * v for w, v in zip(weights, slopes, strict=True)]
        assert gradient(term.sum(), logprob) == pytest.approx(wanted, rel=1e-14)


def test_ppo_clips_the_ratio_to_the_engine_that_tis_has_cut():
    """Old are the engine's: rho 50 is 2 for a negative advantage, 1 + eps for a positive one."""
    logprob, engine = tensor(*[math.log(0.5)] * 4, grad=True), tensor(*[math.log(0.01)] * 4)
    given = {"engine_logprob": engine, "engine_old": True, "clip_eps": 0.2}
    streams = Streams(pg=tensor(0.4, -0.4, 0.4, -0.4))
    term = policy_terms(logprob, engine, streams, tis_clip=2.0, **given)["pg"]
    assert term.tolist() == pytest.approx([-0.48, 0.8, -0.48, 0.8])
    assert gradient(term.sum(), logprob) == pytest.approx([0.0, 0.8, 0.0, 0.8])
    term = policy_terms(logprob, engine, streams, **given)["pg"]  # without C nothing is cut
    assert term.tolist() == pytest.approx([-0.48, 20.0, -0.48, 20.0])


def test_reference_kl_is_k3():
    logprob, ref = tensor(-1.0, -2.0, -3.0, grad=True), tensor(-1.5, -2.0, NAN)
    loss = policy_loss(logprob, None, Streams(kl_ref=tensor(0.1, 0.1, 0)), ref_logprob=ref)
    assert loss.item() == pytest.approx(0.1 * (math.exp(-0.5) + 0.5 - 1))
    assert gradient(loss, logprob) == pytest.approx([0.1 * (1 - math.exp(-0.5)), 0, 0])


def test_zero_streams_are_exactly_zero_whatever_they_read():
    """NaN in every input of a row outside the terms reaches neither value nor gradient."""
    logprob = tensor(-1.0, NAN, math.inf, grad=True)
    bad = tensor(-1.0, NAN, NAN)
    one = tensor(1.0, 0, 0)
    inputs = {"ref_logprob": bad, "engine_logprob": bad, "tis_clip": 2.0, "clip_eps": 0.2}
    for extra in ({"teacher_logprob": bad}, {"divergence": bad.clone().requires_grad_()}):
        streams = Streams(mle=one, kl=one, pg=-one, nll=one, kl_ref=one)
        terms = policy_terms(logprob, bad, streams, **inputs, **extra)
        assert all(term[1:].tolist() == [0, 0] for term in terms.values())
        loss = policy_loss(logprob, bad, streams, **inputs, **extra)
        assert math.isfinite(loss.item())
        wanted = [logprob, *(v for v in extra.values() if v.requires_grad)]
        for grad in torch.autograd.grad(loss, wanted):
            assert grad[1:].tolist() == [0, 0]
            assert grad.isfinite().all()


def test_a_row_in_a_term_does_not_hide_nan():
    logprob = tensor(-1.0, -1.0)
    streams = Streams(kl=tensor(1.0, 1.0))
    loss = policy_loss(logprob, logprob, streams, teacher_logprob=tensor(-1.0, NAN))
    assert math.isnan(loss.item())


def test_a_microbatch_without_streams_can_be_backpropagated():
    logprob = tensor(-1.0, NAN, grad=True)
    loss = policy_loss(logprob, None, Streams())
    assert loss.item() == 0.0
    assert gradient(loss, logprob) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("streams", "inputs", "message"),
    [
        ({"kl": 1.0}, {}, "needs the teacher log-probabilities"),
        ({"kl_ref": 1.0}, {}, "needs the reference log-probabilities"),
        ({"mle": 1.0}, {"tis_clip": 2.0}, "needs the engine log-probabilities"),
        ({"mle": 1.0}, {"tis_clip": 0.0}, "objective.tis_clip"),
        ({"mle": 1.0}, {"clip_eps": 1.5}, "algorithm.clip_eps"),
        ({"kl": 1.0}, {"teacher_logprob": torch.zeros(3)}, "teacher is"),
    ],
)
def test_refusals(streams, inputs, message):
    logprob = torch.zeros(2)
    weights = Streams(**{name: torch.full((2,), value) for name, value in streams.items()})
    with pytest.raises(ValueError, match=message):
        policy_loss(logprob, logprob, weights, **inputs)


def test_without_old_scores_the_current_weights_sampled():
    """rho is 1 in value with the gradient of logp, also under a clip and beside the engine's."""
    logprob = tensor(-1.0, -2.0, -0.5, grad=True)
    streams = Streams(mle=tensor(0.3, 0, 0), kl=tensor(0, 0.2, 0), pg=tensor(0, 0, -0.4))
    given = {
        "teacher_logprob": tensor(NAN, -3.0, NAN),
        "engine_logprob": tensor(-1.1, -1.5, -0.9),
        "tis_clip": 1.2,
        "clip_eps": 0.2,
    }
    ours = policy_loss(logprob, None, streams, **given)
    theirs = policy_loss(logprob, logprob.detach(), streams, **given)
    assert ours.item() == theirs.item()
    assert gradient(ours, logprob) == gradient(theirs, logprob) != [0.0, 0.0, 0.0]
