"""An evaluation from its first to its last sample: load, sample what is missing, judge, report."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from scope_megatron.data.tokenizer import Tokenizer, load_tokenizer
from scope_megatron.engine.interface import Sampling
from scope_megatron.engine.vllm import VLLMEngine
from scope_megatron.exits import TERMINATED
from scope_megatron.instruments.evaluation.grader import Grader
from scope_megatron.instruments.evaluation.output.report import report_results
from scope_megatron.instruments.evaluation.problems import ProblemSet, load_problems
from scope_megatron.instruments.evaluation.ranks import Ranks, join
from scope_megatron.instruments.evaluation.samples import SampleStore, SampleWriter
from scope_megatron.instruments.evaluation.settings import EvaluationSettings
from scope_megatron.job.lock import locked
from scope_megatron.parallel import platform
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Prompt

_FORMAT = 1
MOST_SKIPPED = 5  # rows that cannot be asked are all counted; so many are named
_TELL_S = 10.0
WantedSample = tuple[str, Prompt, int]  # set, problem, sample


def run_evaluation(settings: EvaluationSettings) -> int:
    """Evaluate, or go on; returns 0. Collective over all ranks."""
    signal.signal(signal.SIGTERM, _terminated)
    ranks = join(settings.engine.tensor)
    settings.out.mkdir(parents=True, exist_ok=True)
    with locked(settings.out, enabled=ranks.is_main):
        try:
            _run(settings, ranks)
        finally:
            ranks.leave()
    return 0


def _run(settings: EvaluationSettings, ranks: Ranks) -> None:
    tokenizer = load_tokenizer(
        settings.tokenizer or settings.source.base, settings.chat_template_kwargs
    )
    sets = load_problems(settings, tokenizer)
    store = SampleStore(settings.out)
    done = ranks.from_main(lambda: _begin(settings, store, sets))
    wanted = [
        (entry.name, prompt, k)
        for entry in sets
        for prompt in entry.prompts
        for k in range(settings.samples)
        if (entry.name, prompt.index, k) not in done
    ]
    if ranks.is_main:
        _tell_begin(settings, sets, len(wanted), len(done), ranks.engines)
    if wanted:
        model = ranks.from_main(lambda: weights_for_engine(settings))
        _sample(settings, tokenizer, model, wanted[ranks.engine :: ranks.engines], ranks)
        ranks.wait()
    if ranks.is_main:
        store.finish(entry.name for entry in sets)
        shutil.rmtree(_converted(settings), ignore_errors=True)
        report_results(settings.out, settings.draws, metrics_line=settings.metrics_line)


def _begin(
    settings: EvaluationSettings, store: SampleStore, sets: Sequence[ProblemSet]
) -> set[tuple[str, int, int]]:
    """Open the store; which samples are there already."""
    identity = {
        "format": _FORMAT,
        "model": settings.model,
        "fingerprint": settings.source.fingerprint(),
        "sampling": settings.sampling(),
        "limit": settings.limit,
        "verifier": settings.verifier.name,
        "sets": [
            {
                "name": entry.name,
                "problems": len(entry.prompts),
                "skipped": len(entry.skipped),
                "fingerprint": entry.fingerprint,
            }
            for entry in sets
        ],
    }
    store.begin(identity, {entry.name: entry.prompts for entry in sets})
    return set(store.outcomes())


def weights_for_engine(settings: EvaluationSettings) -> Path:
    """The directory that vLLM loads; a Megatron checkpoint is converted for it first.

    By a process of its own, one parameter in memory at a time. Raises ValueError when it fails.
    """
    if not settings.source.is_checkpoint:
        return settings.source.weights
    out = _converted(settings)
    if (out / "config.json").is_file():
        return out
    dtype = str(platform.resolve_dtype(settings.dtype)).removeprefix("torch.")
    source = settings.source
    command = [sys.executable, "-m", "scope_megatron.convert.to_hf"]
    paths = [source.weights.absolute(), source.base.absolute(), out.absolute()]
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    print(f"converting {source.weights} for vLLM ...", flush=True)
    done = subprocess.run(
        [*command, *map(str, paths), dtype], env=alone, capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip() or "it was killed").splitlines()[-1]
        raise ValueError(f"--model: {reason.removeprefix('error: ')}")
    return out


def _converted(settings: EvaluationSettings) -> Path:
    return settings.out / "converted"


def _sample(
    settings: EvaluationSettings,
    tokenizer: Tokenizer,
    model: Path,
    wanted: Sequence[WantedSample],
    ranks: Ranks,
) -> None:
    """This engine's share, each sample graded and written as soon as it is finished."""
    sampling = Sampling(
        samples=settings.samples,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
        logprobs=False,
    )
    judges = Verifiers(settings.verifier, [prompt for _, prompt, _ in wanted])
    engine = VLLMEngine(
        model,
        settings.engine,
        max_model_len=settings.max_prompt_tokens + settings.max_tokens,
        dtype=platform.resolve_dtype(settings.dtype),
        eos_ids=tokenizer.eos_ids,
        seed=settings.seed,
        own_weights=True,
    )
    names = {(id(prompt), k): name for name, prompt, k in wanted}
    rollouts = engine.stream([(prompt, k) for _, prompt, k in wanted], sampling)
    with judges, closing(engine):
        if not ranks.is_leader:
            for _ in rollouts:  # every rank of an engine takes every step
                pass
            return
        with closing(SampleWriter(settings.out, ranks.rank)) as writer:
            grader = Grader(judges, tokenizer, writer)
            progress = SampleProgress(len(wanted), enabled=ranks.is_main)
            for rollout in rollouts:
                grader.put(names[id(rollout.prompt), rollout.sample], rollout)
                progress.add(len(rollout.token_ids))
            grader.finish()
            progress.close()


class SampleProgress:
    """How far rank 0's engine is, in lines; the other engines have as much to do."""

    def __init__(self, total: int, enabled: bool) -> None:
        self.total, self.enabled = total, enabled
        self.done = self.tokens = 0
        self._started = self._told = time.monotonic()

    def add(self, tokens: int) -> None:
        self.done += 1
        self.tokens += tokens
        if time.monotonic() - self._told >= _TELL_S:
            self._tell()

    def close(self) -> None:
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self.enabled:
            seconds = max(self._told - self._started, 1e-9)
            left = seconds / max(self.done, 1) * (self.total - self.done)
            print(
                f"{self.done:,} of {self.total:,} samples, {self.tokens / seconds:,.0f} tokens/s, "
                f"about {left:,.0f} s left",
                flush=True,
            )


def _tell_begin(
    settings: EvaluationSettings,
    sets: Sequence[ProblemSet],
    wanted: int,
    done: int,
    engines: int,
) -> None:
    for entry in sets:
        for reason in entry.skipped[:MOST_SKIPPED]:
            print(f"skipped {reason}")
    for note in settings.notes:
        print(f"note: {note}")
    names = ", ".join(f"{entry.name} ({len(entry.prompts):,})" for entry in sets)
    print(f"evaluating {settings.model} on {names}, {settings.samples} samples each")
    if done:
        print(f"{done:,} samples are there already")
    if wanted:
        print(f"{wanted:,} samples to draw with {engines} engine{'s' * (engines != 1)}", flush=True)


def _terminated(signum: int, frame: Any) -> NoReturn:
    """Samples are on the disk as they finish: nothing is left to save."""
    print("terminated; the same command goes on", file=sys.stderr, flush=True)
    os._exit(TERMINATED)
