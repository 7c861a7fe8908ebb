"""The responses of a step: how many, how long, how many of them a teacher scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

from scope_megatron.config import Config
from scope_megatron.config.errors import ConfigError
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.outputs import ROLLOUTS_INDEX, rollouts_dir

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
    def of(cls, lengths: list[float], source: str) -> ResponseLengths:
        """Of lengths that were measured."""
        ordered = sorted(lengths)
        places = (int((i + 0.5) * len(ordered) / QUANTILES) for i in range(QUANTILES))
        return cls(tuple(ordered[place] for place in places), source, ordered[-1])

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
    given: Path | None = None,
) -> Workload:
    """The configuration's step. What is not given comes from ``given``, a file of lengths, from
    ``run``, an output_dir with metrics that ``option`` named, and else from assumptions that the
    result names. Raises ConfigError."""
    rollout = config.rollout
    limit = rollout.max_response_tokens if rollout else config.train.microbatch_tokens
    told = measured(run, option) if run is not None else {}
    responses = config.prompts_per_step * (rollout.group_size if rollout else 1)
    lengths = _lengths(mean, sigma, limit, responses, told, run, given)
    prompt = prompt if prompt is not None else told.get("prompt", config.data.max_prompt_tokens / 8)
    _inside("--mean-prompt", prompt, 1, config.data.max_prompt_tokens)
    wrong = incorrect if incorrect is not None else told.get("incorrect", 0.5)
    _inside("--incorrect", wrong, 0, 1)
    student, teacher = _passes(config, wrong)
    return Workload(
        responses=responses,
        prompts=config.prompts_per_step,
        prompt_tokens=prompt,
        lengths=lengths,
        limit=limit,
        longest=config.max_sequence_tokens,
        incorrect=wrong,
        samples=config.on_policy,
        student_pass=student,
        teacher_pass=teacher,
        updates=config.train.updates_per_batch,
    )


def _lengths(
    mean: float | None,
    sigma: float | None,
    limit: int,
    responses: int,
    told: dict[str, float],
    run: Path | None,
    given: Path | None,
) -> ResponseLengths:
    """A file's, else a log-normal of what is given, else a run's own where it wrote them down."""
    if given is not None:
        if mean is not None or sigma is not None:
            other = "--mean-response" if mean is not None else "--sigma"
            raise ConfigError(f"--lengths: is given beside {other}; leave one of them out")
        return ResponseLengths.of(_given_lengths(given, limit), str(given))
    if mean is None and sigma is None and run is not None and (own := run_lengths(run)):
        return ResponseLengths.of([min(length, float(limit)) for length in own], f"{run}")
    source = "--mean-response" if mean is not None else f"{run}" if told else "assumed"
    mean = mean if mean is not None else told.get("length", ASSUMED_SHARE * limit)
    _inside("--mean-response", mean, 1, limit)
    if sigma is not None:
        _inside("--sigma", sigma, 0, 3)
    spread = ASSUMED_SIGMA if sigma is None else sigma
    return ResponseLengths.lognormal(mean, spread, limit, source, responses)


def _given_lengths(path: Path, limit: int) -> list[float]:
    """A number a line."""
    try:
        lengths = [float(text) for text in path.read_text(encoding="utf-8").split()]
    except OSError as error:
        raise ConfigError(
            f"--lengths: {path} cannot be read ({error.strerror}); give a file of numbers"
        ) from None
    except ValueError:
        raise ConfigError(
            f"--lengths: {path} holds something else than numbers; give tokens of responses, one a "
            "line"
        ) from None
    if not lengths:
        raise ConfigError(f"--lengths: {path} is empty; give tokens of responses, one a line")
    for length in lengths:
        if not 1 <= length <= limit:
            raise ConfigError(
                f"--lengths: {path} has {length:g}; give numbers from 1 to "
                f"rollout.max_response_tokens {limit}"
            )
    return lengths


def run_lengths(run: Path) -> list[float]:
    """Response lengths that a run wrote down in the later half of such steps; none without
    logging.rollouts."""
    by_step: dict[int, list[float]] = {}
    for path in sorted((rollouts_dir(run) / ROLLOUTS_INDEX).glob("*.jsonl")):
        for row in _rows(path):
            if row.get("kind") == "train" and isinstance(row.get("tokens"), int):
                by_step.setdefault(row.get("step", 0), []).append(float(row["tokens"]))
    later = sorted(by_step)[len(by_step) // 2 :]
    return [length for step in later for length in by_step[step] if length >= 1]


def _passes(config: Config, incorrect: float) -> tuple[float, float]:
    """Shares of the responses that student and frozen model score before the update."""
    objective, name, rollout = config.objective, config.algorithm.name, config.rollout
    whole = rollout is not None and rollout.top_p >= 1 and rollout.top_k <= 0
    by_token = name in ("rlsd", "sdar") or objective.iw_gamma > 0
    by_token = by_token or (
        objective.incorrect == "constant" and objective.constant_below is not None
    )
    student = 0.0
    if config.on_policy and objective.old_logprobs != "rollout":
        if objective.old_logprobs == "recompute" or config.train.updates_per_batch > 1:
            student = 1.0
        elif whole:  # the engine has said what is needed
            student = 0.0
        elif by_token:
            student = 1.0
        elif name == "scope" and objective.student_weight != "uniform":
            student = 1.0 - incorrect
    teacher = 0.0
    if config.needs_teacher:
        teacher = incorrect if name in ("scope", "srpo") else 1.0
    elif name == "grpo" and config.algorithm.kl_coef > 0:
        teacher = 1.0
    return student, teacher


def _inside(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or not math.isfinite(value):
        raise ConfigError(f"{option}: is {value:g}; give a number from {low:g} to {high:g}")


def metric_rows(run: Path, setting: str) -> list[dict[str, Any]]:
    """The steps of a run's metrics.jsonl. Raises ConfigError where there are none."""
    path = run / "metrics.jsonl" if run.is_dir() else run
    try:
        rows = [row for row in _rows(path) if "time/step" in row]
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{setting}: {path} cannot be read; give the output_dir of a run"
        ) from None
    if not rows:
        raise ConfigError(f"{setting}: {path} has no steps; give a run that has made some")
    return rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that a kill cut off
        if isinstance(row, dict):
            yield row


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
