"""The teacher's side: its perplexity of wrong responses, and what it makes of their beginnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from scope_megatron.config import Config
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.engine.interface import Sampling
from scope_megatron.engine.vllm import VLLMEngine
from scope_megatron.parallel import platform
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Prompt, Verdict
from tools.recovery.samples import Wrong

CUTS = (0.2, 0.4, 0.6, 0.8)  # of a response's tokens, section 2.2 of arXiv 2604.10688


@dataclass(frozen=True)
class Attempt:
    """The teacher's completions of one wrong response, cut at one place."""

    problem: int
    sample: int
    cut: float
    kept: int  # tokens of the response before the cut
    teacher_perplexity: float  # of the whole wrong response
    completions: int
    recovered: int  # completions that the verifier found correct

    @property
    def share(self) -> float:
        return self.recovered / self.completions


def complete(
    config: Config, tokenizer: Tokenizer, wrong: Sequence[Wrong], completions: int
) -> list[Attempt]:
    """Score every response with the teacher, cut it at each of ``CUTS``, complete it so often.

    At objective.teacher_temperature; response and completion together may be as long as the
    configuration's longest sequence.
    """
    rollout = config.rollout
    assert rollout is not None and config.model.teacher is not None
    dtype = config.model.dtype if config.teacher.dtype == "auto" else config.teacher.dtype
    engine = VLLMEngine(
        config.model.teacher,
        rollout.engine,
        max_model_len=config.needed_model_len + 1,  # scoring samples one more token
        dtype=platform.resolve_dtype(dtype),
        eos_ids=tokenizer.eos_ids,
        seed=config.seed,
        own_weights=True,
    )
    sampling = Sampling(
        samples=completions,
        max_tokens=rollout.max_response_tokens,
        temperature=config.teacher_temperature,
        seed=config.seed,
        logprobs=False,
    )
    pieces = [(one, cut) for one in wrong for cut in CUTS]
    with closing(engine):
        perplexities = _perplexities(engine, tokenizer, wrong)
        asked = [_beginning(one, cut, number) for number, (one, cut) in enumerate(pieces)]
        answers = engine.generate(asked, sampling)
    prefixes = [(_prefix(one, cut), one.prompt) for one, cut in pieces for _ in range(completions)]
    graded = [
        (tokenizer.decode([*prefix, *answer.token_ids]), prompt)
        for (prefix, prompt), answer in zip(prefixes, answers, strict=True)
    ]
    with Verifiers(config.verifier, [one.prompt for one in wrong]) as verifiers:
        verdicts = verifiers.grade(graded)
    right = [v is Verdict.CORRECT and a.finished for v, a in zip(verdicts, answers, strict=True)]
    return [
        Attempt(
            problem=one.prompt.index,
            sample=one.sample,
            cut=cut,
            kept=len(_prefix(one, cut)),
            teacher_perplexity=perplexities[number // len(CUTS)],
            completions=completions,
            recovered=sum(right[number * completions : (number + 1) * completions]),
        )
        for number, (one, cut) in enumerate(pieces)
    ]


def _perplexities(engine: VLLMEngine, tokenizer: Tokenizer, wrong: Sequence[Wrong]) -> list[float]:
    """exp(-mean log-probability) of each response under the teacher, end token included."""
    end = min(tokenizer.eos_ids)
    sequences = [
        [*one.prompt.token_ids, *one.token_ids, *([end] if one.finished else [])] for one in wrong
    ]
    found = []
    for one, scores in zip(wrong, engine.score(sequences), strict=True):
        response = scores[len(one.prompt.token_ids) - 1 :]
        found.append(math.exp(min(-sum(response) / len(response), 80.0)))
    return found


def _prefix(one: Wrong, cut: float) -> tuple[int, ...]:
    """What is kept of a response: the first ``cut`` of its tokens, rounded up."""
    return one.token_ids[: math.ceil(cut * len(one.token_ids))]


def _beginning(one: Wrong, cut: float, number: int) -> Prompt:
    """A prompt that goes on with the kept tokens; its number seeds the sampling."""
    return replace(one.prompt, index=number, token_ids=(*one.prompt.token_ids, *_prefix(one, cut)))
