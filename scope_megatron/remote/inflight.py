"""The batch in flight as a part of a checkpoint: responses sampled and not yet trained on.

At ``rollout.lag`` 1 the responses of step s + 1, and with ``rollout.carry_over`` the groups that
step s left for it, come from parameters that are gone when step s is saved: a resumed run could not
sample them again.
"""

from __future__ import annotations

from typing import Any

import torch

from scope_megatron.config import Config
from scope_megatron.remote.messages import GradedResponse
from scope_megatron.types import Verdict


def sampled_as(config: Config) -> list[float]:
    """The settings that a batch in flight was sampled with, besides data and seed."""
    rollout = config.rollout
    assert rollout is not None
    return [
        float(rollout.prompts_per_step),
        float(rollout.group_size),
        float(rollout.max_response_tokens),
        rollout.temperature,
        rollout.top_p,
        float(rollout.top_k),
    ]


def encode_batch(
    config: Config, step: int, responses: list[GradedResponse], version: int
) -> dict[str, Any]:
    """The responses of ``step`` (from 1) in tensors and plain lists, which any torch reads.

    ``version``: steps done by the parameters that sampled them.
    """
    ordered = sorted(responses, key=lambda r: (r.position, r.sample))
    tokens = [token for r in ordered for token in r.token_ids]
    logprobs = [value for r in ordered for value in r.engine_logprobs]
    return {
        "step": step,
        "version": version,
        "sampled_as": sampled_as(config),
        "places": torch.tensor([[r.position, r.sample] for r in ordered], dtype=torch.int64),
        "lengths": torch.tensor([len(r.token_ids) for r in ordered], dtype=torch.int64),
        "tokens": torch.tensor(tokens, dtype=torch.int64),
        "logprobs": torch.tensor(logprobs, dtype=torch.float64),
        "finished": [r.finished for r in ordered],
        "texts": [r.text for r in ordered],
        "verdicts": [None if r.verdict is None else str(r.verdict) for r in ordered],
    }


def decode_batch(config: Config, step: int, saved: dict[str, Any]) -> list[GradedResponse]:
    """The responses of ``step``; none where they are another step's, or sampled otherwise."""
    if saved["step"] != step or saved["sampled_as"] != sampled_as(config):
        return []
    lengths = saved["lengths"].tolist()
    tokens, logprobs = saved["tokens"].split(lengths), saved["logprobs"].split(lengths)
    places, found = saved["places"].tolist(), []
    for number, (position, sample) in enumerate(places):
        verdict = saved["verdicts"][number]
        found.append(
            GradedResponse(
                ("train", step),
                position,
                sample,
                tokens[number].tolist(),
                logprobs[number].tolist(),
                saved["finished"][number],
                saved["texts"][number],
                None if verdict is None else Verdict(verdict),
            )
        )
    return found
