"""The prompts of one or more sets, tokenised."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from scope_megatron.config import Config
from scope_megatron.config.sections.data import Columns, DataSource
from scope_megatron.data.columns import RowShape
from scope_megatron.data.contents import prompt_cache_directory
from scope_megatron.data.store import open_store
from scope_megatron.data.tokenise import PromptRecipe
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.types import Prompt

Sources = str | Path | DataSource | Sequence[str | Path | DataSource]


class PromptDataset:
    """The usable rows of one or more sets, tokenised; read from disk as they are needed.

    Rows that cannot be used are left out and named in ``skipped``. Raises ValueError, naming
    ``setting``, for a set that is missing, of an unknown kind, without a required column or
    without a single usable row. ``Prompt.index`` is the position in this dataset.
    """

    def __init__(
        self,
        sources: Sources,
        tokenizer: Tokenizer,
        max_prompt_tokens: int,
        system_prompt: str | None = None,
        need_response: bool = False,
        setting: str = "data.train",
        columns: Columns | None = None,
        cache_dir: str | None = None,
        suffix: str | None = None,
        cut: bool = False,
        privileged: str | None = None,
        verifier: str = "auto",
    ) -> None:
        """``system_prompt`` opens every conversation that has no system message of its own,
        ``suffix`` ends its last message. ``columns`` holds for every source without its own.
        ``cut``: longer prompts lose their end. ``privileged``: as teacher.privileged.
        ``verifier``: verifier.name; rows that the code verifier grades need tests that test."""
        self.sources = _as_sources(sources, setting)
        shapes = [
            RowShape(
                columns if source.columns is None else source.columns,
                source.filter,
                source.teacher or "",
            )
            for source in self.sources
        ]
        self.store = open_store(
            self.sources,
            shapes,
            PromptRecipe(
                max_prompt_tokens, system_prompt, need_response, suffix, cut, verifier, privileged
            ),
            tokenizer,
            setting,
            prompt_cache_directory(cache_dir),
        )

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Prompt:
        row = self.store.row(index)
        return Prompt(
            index=index,
            token_ids=tuple(row["token_ids"]),
            answer=row["answers"][0] if len(row["answers"]) == 1 else tuple(row["answers"]),
            text=row["text"],
            source=row["source"],
            verifier=row["verifier"],
            response_ids=tuple(row["response_ids"]),
            teacher=row["teacher"],
            privileged_ids=tuple(row["privileged_ids"]),
        )

    @property
    def skipped(self) -> list[str]:
        """`FILE:LINE: reason` of every row that cannot be used."""
        return self.store.skipped_lines()

    def first_skipped(self, count: int) -> list[str]:
        """The first of them; the rest is not read."""
        return self.store.skipped_lines(count)

    @property
    def skipped_count(self) -> int:
        return sum(one["skipped"] for one in self.store.info.sets)

    @property
    def sizes(self) -> list[int]:
        """Prompts of each set, which lie one after another."""
        return [one["rows"] for one in self.store.info.sets]

    def kinds(self) -> Iterator[Prompt]:
        """A prompt without contents for each pair of verifier and data_source that rows have: by
        these the verifiers are chosen."""
        for verifier, source in self.store.info.kinds:
            yield Prompt(index=0, token_ids=(), answer="", source=source, verifier=verifier)

    def require_teachers(self, tags: Collection[str], setting: str) -> None:
        """Raise ValueError, naming rows, unless each has one of ``tags``."""
        untaught = {tag: row for tag, row in self.store.info.tags.items() if tag not in tags}
        if untaught:
            shown = ", ".join(
                f"{tag or 'no tag'} ({row})" for tag, row in itertools.islice(untaught.items(), 3)
            )
            more = f" and {len(untaught) - 3} more" if len(untaught) > 3 else ""
            raise ValueError(
                f"{setting}: has rows that no teacher is for: {shown}{more}; model.teachers has "
                f"{', '.join(tags)}. Add one, give the set a teacher, map the column `teacher`, or "
                "leave such rows out with a filter"
            )

    @property
    def description(self) -> dict[str, Any]:
        """What the prompts were made of, part by part."""
        return self.store.info.description

    def fingerprint(self) -> str:
        """SHA-256 of the contents as trained on: tokens, answers, responses, sources, in order."""
        return self.store.info.fingerprint


def open_dataset(
    config: Config, setting: str, sources: tuple[DataSource, ...], tokenizer: Tokenizer
) -> PromptDataset:
    """The prompts of ``data.train`` or of one of the sets of ``data.eval``, as configured."""
    data = config.data
    dataset = PromptDataset(
        sources,
        tokenizer,
        data.max_prompt_tokens,
        data.system_prompt,
        need_response=setting == "data.train" and config.algorithm.name == "kd",
        setting=setting,
        columns=data.columns,
        cache_dir=data.cache_dir,
        suffix=data.suffix,
        cut=data.overlong == "cut",
        privileged=config.teacher.privileged if setting == "data.train" else None,
        verifier=config.verifier.name,
    )
    if setting == "data.train" and config.teacher_tags:
        dataset.require_teachers(config.teacher_tags, setting)
    return dataset


def _as_sources(sources: Sources, setting: str) -> tuple[DataSource, ...]:
    several = [sources] if isinstance(sources, str | Path | DataSource) else list(sources)
    if not several:
        raise ValueError(f"{setting}: no file is named")
    return tuple(s if isinstance(s, DataSource) else DataSource(name=str(s)) for s in several)
