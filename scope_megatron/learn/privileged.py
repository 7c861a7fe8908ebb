"""Teachers that know more than the student, or that are looked beyond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.batch import Batch
from scope_megatron.types import Rollout


def read_by_teacher(rollouts: Mapping[int, Rollout], config: Config) -> Mapping[int, Rollout]:
    """The responses after the prompts that the teacher reads: with ``teacher.privileged`` others
    than the student's (OPSD, arXiv 2601.18734)."""
    if not config.needs_teacher or config.teacher.privileged is None:
        return rollouts
    return {index: _privileged(rollout) for index, rollout in rollouts.items()}


def _privileged(rollout: Rollout) -> Rollout:
    prompt = replace(rollout.prompt, token_ids=rollout.prompt.privileged_ids)
    return replace(rollout, prompt=prompt)


def extrapolated(batch: Batch, scale: float) -> dict[int, Tensor]:
    """log pi_ref + l (log pi_T - log pi_ref) of the sampled tokens (ExOPD, arXiv 2602.12125): what
    the sampled teacher's term pulls to in the place of log pi_T."""
    return {
        index: scale * batch.teacher_logprobs[index] + (1.0 - scale) * reference
        for index, reference in batch.reference_logprobs.items()
        if index in batch.teacher_logprobs
    }
