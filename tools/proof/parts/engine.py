"""The rollout engine in the trainer's process: rounds of sleep and waking, mismatch, transfer."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from tools.proof import measure, models
from tools.proof.record import Proof
from tools.proof.trainer import logprobs

if TYPE_CHECKING:
    from scope_megatron.train.trainer import Trainer
    from scope_megatron.types import Rollout

GIB = 2**30


def build_trainer(proof: Proof) -> Trainer:
    """Student, teacher and engine of a whole run, as ``scope-megatron train`` builds them."""
    from scope_megatron.train.trainer import Trainer

    student, teacher = proof.size(
        (models.HALF_B, models.ONE_AND_A_HALF_B), (models.TOY, models.TOY_TEACHER)
    )
    dtype = proof.size("bfloat16", "float32")
    folder = proof.folder
    longest = proof.size(4096, 24)
    config = models.settings(
        folder,
        models.make_model(student, folder / "student", dtype),
        models.make_model(teacher, folder / "teacher", dtype, seed=1),
        model__dtype=dtype,
        rollout__prompts_per_step=proof.size(8, 2),
        rollout__group_size=proof.size(8, 2),
        rollout__max_response_tokens=longest,
        rollout__temperature=1.0,
        rollout__engine__max_num_seqs=proof.size(64, 8),
        rollout__engine__kv_cache_gib=0.25,
        train__microbatch_tokens=proof.size(16384, 128),
    )
    proof.shared["shapes"] = student, teacher
    before = measure.in_use()
    trainer = Trainer(config)
    proof.shared["engine and models"] = measure.in_use() - before
    return trainer


def engine(proof: Proof) -> None:
    """Two rounds: new weights wake the engine, it samples, the trainer scores the same tokens."""
    start = time.perf_counter()
    trainer = proof.once("trainer", lambda: build_trainer(proof))
    proof.figure("engine and models built", time.perf_counter() - start, "s")
    before: list[Rollout] = []
    for number in range(2):
        round_ = f"round {number + 1}"
        trainer.engine.sleep()
        asleep = measure.in_use()
        _move(trainer.learner.student.model, number)
        stale = _gap(trainer, before)[1] if before else 0.0
        trainer.send_parameters()
        if asleep:
            proof.figure(f"{round_}: freed by sleep", (measure.in_use() - asleep) / GIB, "GiB")
        before = _generate(proof, trainer, number)
        probability, mean, largest = _gap(trainer, before)
        proof.check(f"{round_}: probabilities, mean difference", probability, at_most=0.01)
        proof.check(f"{round_}: log-probabilities, mean difference", mean, at_most=0.1)
        proof.figure(f"{round_}: log-probabilities, largest difference", largest)
        if number:  # else the limits above could not tell
            proof.check("with the weights of before, over that", stale / mean, at_least=3)
    refused = trainer.engine._direct.refused  # type: ignore[attr-defined]
    proof.figure("weights go", f"through vLLM's loaders: {refused}" if refused else "directly")


def _generate(proof: Proof, trainer: Trainer, seed: int) -> list[Rollout]:
    from scope_megatron.engine.interface import Sampling

    prompts = [trainer.data[i] for i in range(proof.size(16, 4))]
    limit = proof.size(256, 12)
    sampling = Sampling(samples=4, max_tokens=limit, temperature=1.0, seed=seed)
    return trainer.engine.generate(prompts, sampling)


def _gap(trainer: Trainer, rollouts: list[Rollout]) -> tuple[float, float, float]:
    """Engine against trainer: mean difference of probabilities; of log-probabilities the mean and
    the largest."""
    theirs = torch.cat([torch.tensor(rollout.engine_logprobs) for rollout in rollouts])
    ours = torch.cat(logprobs(trainer.learner, rollouts))
    logs = (ours - theirs).abs()
    probabilities = (ours.exp() - theirs.exp()).abs()
    return float(probabilities.mean()), float(logs.mean()), float(logs.max())


@torch.no_grad()
def _move(model: torch.nn.Module, seed: int) -> None:
    """Other weights: an engine that kept the old ones would be found out."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter) * parameter.abs().mean())


def transfer(proof: Proof) -> None:
    """The weights to the engine that is awake, and a plain copy of as many bytes on the device."""
    from scope_megatron.engine.source import ModelParameters

    trainer = proof.once("trainer", lambda: build_trainer(proof))
    trainer.send_parameters()
    student = trainer.learner.student
    bucket = trainer.config.engine.bucket_mib * 2**20
    parameters = ModelParameters(student.model, student.hf, trainer.topology, bucket)
    source = [p.detach() for p in student.model.parameters()]
    nbytes = sum(p.nbytes for p in source)
    targets = [torch.empty_like(p) for p in source]
    times: dict[str, list[float]] = {"transfer": [], "copy": []}
    for _ in range(proof.size(10, 2)):
        send = measure.median_seconds(lambda: trainer.engine.send_parameters(parameters), 1, warm=0)
        times["transfer"].append(send)
        times["copy"].append(
            measure.median_seconds(lambda: torch._foreach_copy_(targets, source), 1, warm=0)
        )
    sent, copied = (statistics.median(times[name]) for name in ("transfer", "copy"))
    proof.figure("weights", nbytes / 1e9, "GB")
    whole = measure.median_seconds(trainer.send_parameters, proof.size(5, 1))
    proof.figure("transfer and giving cached memory back first", 1e3 * whole, "ms")
    proof.figure("transfer", 1e3 * sent, "ms")
    proof.figure("transfer", nbytes / sent / 1e9, "GB/s")
    proof.figure("copy of as many bytes", nbytes / copied / 1e9, "GB/s")
    proof.target("transfer's speed over the copy's", copied / sent, at_least=0.8)
