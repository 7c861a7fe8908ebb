"""The responses of a step: how many, how long, how many of them a teacher scores."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

from scope_megatron.config import Config
from scope_megatron.config.errors import ConfigError
from scope_megatron.plan.layout import RunLayout

QUANTILES = 64  # lengths that stand for a distribution
# of the limit, where nobody says: the paper's mean of its 12,288 tokens is not published
ASSUMED_SHARE = 0.35
ASSUMED_SIGMA = 0.8  # of the logarithm: a long tail


@dataclass(frozen=True)
class ResponseLengths:
    """Response lengths in tokens by quantile, ascending: each stands for as many responses."""

    values: tuple[float, ...]
    source: str
    longest: float = 0.0  # of a step: longer than any quantile where there are many; 0: the last

    @property
    def most(self) -> float:
        """The longest response of a step."""
        return max(self.longest, self.values[-1])

    @property
    def varied(self) -> bool:
        return self.most > self.values[0]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def square(self) -> float:
        """Mean of the squares."""
        return sum(v * v for v in self.values) / len(self.values)

    @classmethod
    def lognormal(
        cls, mean: float, sigma: float, limit: int, source: str, count: int = QUANTILES
    ) -> ResponseLengths:
        """Quantiles of a log-normal cut off at ``limit``, whose mean after the cut is ``mean``, and
        the longest of ``count`` responses: what an engine waits for."""
        normal = NormalDist()
        points = [normal.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)]
        shapes = [math.exp(sigma * point) for point in points]
        low, high = 0.0, float(limit) * math.exp(4 * sigma)
        for _ in range(60):
            middle = (low + high) / 2
            cut = [min(float(limit), max(1.0, middle * shape)) for shape in shapes]
            low, high = (middle, high) if sum(cut) / QUANTILES < mean else (low, middle)
        last = math.exp(sigma * normal.inv_cdf(1 - 0.5 / max(count, QUANTILES)))
        *values, longest = (min(float(limit), max(1.0, high * s)) for s in (*shapes, last))
        return cls(tuple(values), source, longest)


@dataclass(frozen=True)
class Workload:
    """One step's work, all replicas together."""

    responses: int
    prompts: int
    prompt_tokens: float  # mean
    lengths: ResponseLengths
    limit: int  # tokens of the longest response
    longest: int  # tokens of the longest sequence
    incorrect: float = 0.5  # share of responses
    samples: bool = True  # the student's responses; kd is given them
    student_pass: float = 0.0  # share of the responses that the student scores before its update
    teacher_pass: float = 1.0  # share that the frozen model scores
    updates: int = 1
    steps_between: int = field(default=0)  # of the weights that sample and those that train

    @cached_property
    def sequence(self) -> float:
        """Mean tokens of prompt and response."""
        return self.prompt_tokens + self.lengths.mean

    @cached_property
    def tokens(self) -> float:
        return self.responses * self.sequence

    @cached_property
    def response_share(self) -> float:
        return self.lengths.mean / self.sequence

    @cached_property
    def pair_square(self) -> float:
        """Mean square of a sequence's tokens: attention's work."""
        mean = self.lengths.mean
        return self.prompt_tokens**2 + 2 * self.prompt_tokens * mean + self.lengths.square

    def pack_tokens(self, layout: RunLayout) -> float:
        """Tokens of the fullest microbatch."""
        local = self.tokens / layout.data / self.updates
        return min(layout.microbatch, max(local, self.sequence))

    def microbatches(self, layout: RunLayout) -> int:
        """Of one update, on one replica."""
        local = self.tokens / layout.data / self.updates
        return max(1, math.ceil(local / (layout.microbatch * PACKED)))


PACKED = 0.93  # of a microbatch that holds tokens: lengths that do not add up to its size


def workload_of(
    config: Config,
    mean: float | None = None,
    sigma: float | None = None,
    prompt: float | None = None,
    incorrect: float | None = None,
    option: str = "--from-run",
    run: Path | None = None,
) -> Workload:
    """The configuration's step. What is not given comes from ``run``, an output_dir with metrics
    that ``option`` named, and else from assumptions that the result names. Raises ConfigError."""
    rollout = config.rollout
    limit = rollout.max_response_tokens if rollout else config.train.microbatch_tokens
    told = measured(run, option) if run is not None else {}
    responses = config.prompts_per_step * (rollout.group_size if rollout else 1)
    source = "--mean-response" if mean is not None else f"{run}" if told else "assumed"
    mean = mean if mean is not None else told.get("length", ASSUMED_SHARE * limit)
    _inside("--mean-response", mean, 1, limit)
    if sigma is not None:
        _inside("--sigma", sigma, 0, 3)
    prompt = prompt if prompt is not None else told.get("prompt", config.data.max_prompt_tokens / 8)
    _inside("--mean-prompt", prompt, 1, config.data.max_prompt_tokens)
    wrong = incorrect if incorrect is not None else told.get("incorrect", 0.5)
    _inside("--incorrect", wrong, 0, 1)
    student, teacher = _passes(config, wrong)
    spread = ASSUMED_SIGMA if sigma is None else sigma
    return Workload(
        responses=responses,
        prompts=config.prompts_per_step,
        prompt_tokens=prompt,
        lengths=ResponseLengths.lognormal(mean, spread, limit, source, responses),
        limit=limit,
        longest=config.max_sequence_tokens,
        incorrect=wrong,
        samples=config.on_policy,
        student_pass=student,
        teacher_pass=teacher,
        updates=config.train.updates_per_batch,
    )


def _passes(config: Config, incorrect: float) -> tuple[float, float]:
    """Shares of the responses that student and frozen model score before the update."""
    objective, name = config.objective, config.algorithm.name
    student = 0.0
    if config.on_policy and objective.old_logprobs != "rollout":
        again = objective.old_logprobs == "recompute" or config.train.updates_per_batch > 1
        rollout = config.rollout
        whole = rollout is not None and rollout.top_p >= 1 and rollout.top_k <= 0
        if again:
            student = 1.0
        elif name == "scope" and objective.student_weight != "uniform" and not whole:
            student = 1.0 - incorrect
    teacher = {"scope": incorrect, "opd": 1.0, "kd": 0.0}.get(name, 0.0)
    if name == "grpo" and config.algorithm.kl_coef > 0:
        teacher = 1.0
    return student, teacher


def _inside(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or not math.isfinite(value):
        raise ConfigError(f"{option}: is {value:g}; give a number from {low:g} to {high:g}")


def metric_rows(run: Path, setting: str) -> list[dict[str, Any]]:
    """The steps of a run's metrics.jsonl. Raises ConfigError where there are none."""
    path = run / "metrics.jsonl" if run.is_dir() else run
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a kill cut off
            if isinstance(row, dict) and "time/step" in row:
                rows.append(row)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{setting}: {path} cannot be read; give the output_dir of a run"
        ) from None
    if not rows:
        raise ConfigError(f"{setting}: {path} has no steps; give a run that has made some")
    return rows


def measured(run: Path, setting: str) -> dict[str, float]:
    """Mean lengths and the share of incorrect responses of a run's later steps."""
    rows = metric_rows(run, setting)
    rows = rows[len(rows) // 2 :]

    def mean(name: str) -> float | None:
        found = [float(r[name]) for r in rows if isinstance(r.get(name), int | float)]
        return sum(found) / len(found) if found else None

    told: dict[str, float] = {}
    length, total, response = mean("rollout/response_tokens_mean"), None, None
    if length is not None:
        told["length"] = length
        total, response = mean("tokens/total"), mean("tokens/response")
    if length and total and response:
        told["prompt"] = max(1.0, (total - response) / (response / length))
    right, wrong = mean("path/correct"), mean("path/incorrect")
    if right is not None and wrong is not None and right + wrong > 0:
        told["incorrect"] = wrong / (right + wrong)
    return told
