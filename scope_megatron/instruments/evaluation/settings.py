"""Everything that one evaluation is asked for, resolved and checked: no None stands for a default
that another file would have to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scope_megatron.config import EngineConfig, VerifierConfig
from scope_megatron.config.sections.data import DataSource
from scope_megatron.instruments.evaluation.source import ModelSource


@dataclass(frozen=True)
class EvaluationSet:
    """A set of problems and the name under which its results stand."""

    name: str
    source: DataSource

    @property
    def path(self) -> Path:
        """Where a set that is no Hub name lies."""
        return self.source.path


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """One evaluation: a model, sets of problems, how responses are drawn and judged."""

    model: str  # as it was given: the name in tables
    source: ModelSource
    tokenizer: Path | None  # None: the model's own
    sets: tuple[EvaluationSet, ...]
    out: Path
    samples: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    max_prompt_tokens: int
    system_prompt: str | None
    limit: int | None  # the first problems of every set, this many
    seed: int
    dtype: str
    device: str  # cpu or cuda
    engine: EngineConfig
    verifier: VerifierConfig
    ranks: int
    restarts: int = 0  # of the ranks, by the launcher, after a lost rank or a failed engine
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None  # of tokenised problems
    draws: int = 10_000  # of the bootstrap over problems
    notes: tuple[str, ...] = ()  # what was decided that the user may not expect
    metrics_line: bool = False  # one JSON line of metrics at the end, for programs

    def sampling(self) -> dict[str, Any]:
        """What decides which tokens are drawn, besides the model and the prompts."""
        return {
            "samples": self.samples,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "dtype": self.dtype,
        }
