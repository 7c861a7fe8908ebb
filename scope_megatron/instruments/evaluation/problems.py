"""The problems of an evaluation: every set tokenised for the model, by name."""

from __future__ import annotations

from dataclasses import dataclass

from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.instruments.evaluation.settings import EvaluationSettings
from scope_megatron.types import Prompt


@dataclass(frozen=True)
class ProblemSet:
    """The problems of one set that are asked."""

    name: str
    path: str
    prompts: list[Prompt]
    skipped: list[str]  # FILE:LINE: reason
    fingerprint: str  # of the whole file's usable rows, as tokens


def load_problems(settings: EvaluationSettings, tokenizer: Tokenizer) -> list[ProblemSet]:
    """Raises ValueError naming the set for a file without a usable row."""
    sets = []
    for entry in settings.sets:
        dataset = PromptDataset(
            entry.source,
            tokenizer,
            settings.max_prompt_tokens,
            settings.system_prompt,
            setting=f"--data {entry.name}",
            cache_dir=settings.cache_dir,
            verifier=settings.verifier.name,
        )
        asked = len(dataset) if settings.limit is None else min(settings.limit, len(dataset))
        prompts = [dataset[i] for i in range(asked)]
        sets.append(
            ProblemSet(
                entry.name, str(entry.source), prompts, dataset.skipped, dataset.fingerprint()
            )
        )
    return sets
