"""A whole step of a 0.5B student with a 1.5B teacher: time by phase, memory by tenant, FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tools.proof import measure
from tools.proof.parts.engine import build_trainer
from tools.proof.record import Proof
from tools.proof.trainer import scored_lengths

if TYPE_CHECKING:
    from scope_megatron.rollout.sample import Sampled
    from scope_megatron.train.acting import Meanwhile
    from scope_megatron.train.trainer import Trainer
from scope_megatron.types import Prompt

GIB = 2**30
PHASES = ("rollout", "verify", "score", "train", "sync")


def step(proof: Proof) -> None:
    """The second step: the first one compiles and warms up."""
    trainer = proof.once("trainer", lambda: build_trainer(proof))
    trainer.send_parameters()
    trainer.step(1)
    lengths: list[int] = []
    sample = trainer.actor.sample

    def measured(prompts: list[Prompt], step: int, meanwhile: Meanwhile | None = None) -> Sampled:
        sampled: Sampled = sample(prompts, step, meanwhile)
        lengths.extend(rollout.length for rollout in sampled.rollouts)
        return sampled

    trainer.actor.sample = measured  # type: ignore[method-assign]
    with scored_lengths(trainer.learner) as scored:
        metrics = trainer.step(2)
    del trainer.actor.sample
    for phase in PHASES:
        proof.figure(f"seconds: {phase}", metrics[f"time/{phase}"], "s")
    proof.figure("seconds: step", metrics["time/step"], "s")
    proof.figure("tokens", sum(lengths))
    proof.figure("tokens per second", sum(lengths) / metrics["time/step"])
    finite = float(metrics["loss/total"] == metrics["loss/total"])
    proof.check("the loss is a number", finite, at_least=1)
    proof.check("updates skipped", metrics.get("update/skipped", 0.0), at_most=0)
    _utilisation(proof, metrics, lengths, scored)
    _memory(proof, trainer, metrics)


def _utilisation(
    proof: Proof, metrics: dict[str, float], lengths: list[int], scored: dict[str, list[int]]
) -> None:
    """Model FLOPs: an update is 3 forwards' worth, a pass that scores is one. The check of the
    engine's weights and the rollout are not counted."""
    student, teacher = proof.shared["shapes"]
    trained = 3 * student.forward_flops(lengths)
    passes = student.forward_flops(scored["student"]) + teacher.forward_flops(scored["teacher"])
    for name, tokens in scored.items():
        proof.figure(f"tokens scored by the {name}", sum(tokens))
    product = measure.product_rate(proof.size(8192, 128), proof.size(torch.bfloat16, torch.float32))
    proof.figure("matrix product, measured", product / 1e12, "TFLOP/s")
    rates = {"of the measured product": product}
    if nominal := measure.nominal_rate():
        rates[f"of the chip's {nominal / 1e12:.0f} TFLOP/s"] = nominal
    for words, rate in rates.items():
        proof.figure(f"MFU of train {words}", trained / metrics["time/train"] / rate)
        proof.figure(f"MFU of score {words}", passes / metrics["time/score"] / rate)
        total = (trained + passes) / metrics["time/step"] / rate
        proof.figure(f"MFU of the step without the rollout's FLOPs {words}", total)


def _memory(proof: Proof, trainer: Trainer, metrics: dict[str, float]) -> None:
    """Of what the process holds: who holds it, after the step and in each phase of it."""
    for name, value in metrics.items():
        if name.startswith("memory/"):
            proof.figure(name.removesuffix("_gib"), value, "GiB")
    student, frozen = trainer.learner.student, trainer.learner.frozen
    tenants = {"student": sum(p.nbytes for p in student.model.parameters())}
    tenants["teacher"] = sum(p.nbytes for f in frozen for p in f.model.parameters())
    tenants["gradients"] = sum(b.grad_data.nbytes for b in student.ddp.buffers)
    tenants["optimizer"] = _state_bytes(student.optimizer)
    if torch.cuda.is_available():
        awake = measure.in_use()
        trainer.engine.sleep()
        tenants["engine, awake"] = awake - measure.in_use()
        trainer.send_parameters()
    for name, nbytes in tenants.items():
        proof.figure(f"memory: {name}", nbytes / GIB, "GiB")


def _state_bytes(optimizer: object) -> int:
    """Moments and float32 parameters."""
    total = 0
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        torch_optimizer = inner.optimizer
        states = torch_optimizer.state.values()
        total += sum(v.nbytes for s in states for v in s.values() if torch.is_tensor(v))
        for group in getattr(inner, "fp32_from_float16_groups", []):
            total += sum(parameter.nbytes for parameter in group)
    return total
