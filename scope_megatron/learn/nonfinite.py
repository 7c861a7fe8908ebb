"""Losses and gradients that are not finite: seen before the optimizer, which then does not step.

An update is skipped on every rank or on none, so parameters, optimizer states and schedule stay
what they were. The responses of the batch are written down with the student's log-probability of
each, computed again; look first at responses where it is not finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel

from scope_megatron import outputs
from scope_megatron.exits import NONFINITE, StopRun
from scope_megatron.learn.batch import Batch
from scope_megatron.parallel.agree import any_rank
from scope_megatron.parallel.optimizer import gradients_are_finite


class NonFiniteGuard:
    """Decides with all ranks whether an update may be applied, and counts refused updates."""

    def __init__(self, output_dir: Path, limit: int) -> None:
        self._directory, self._limit = output_dir / outputs.NONFINITE_DIR, limit
        self._in_a_row = 0

    def accepts(
        self, terms: dict[str, float], ddp: DistributedDataParallel, nothing_left: bool
    ) -> bool:
        """Whether loss terms and gradients are finite on every rank (collective over all).

        ``nothing_left``: every response was masked, some for scores that are not finite. Their loss
        is 0, but the student is what is broken.
        """
        bad = nothing_left or not all(map(math.isfinite, terms.values()))
        bad = bad or not gradients_are_finite(ddp)
        refused = any_rank(bad)
        self._in_a_row = self._in_a_row + 1 if refused else 0
        return not refused

    def record(
        self,
        batch: Batch,
        step: int,
        update: int,
        rank: int,
        writes: bool,
        scores: Callable[[], dict[int, torch.Tensor]],
    ) -> None:
        """Write the batch's responses down (``writes``: one rank of each replica), then stop the
        run when this was one skipped update in a row too many.

        The file is named by ``step`` and ``update`` (both from 1), so that a run
        that goes on later leaves it alone.

        ``scores`` gives the student's log-probabilities by response (collective over a replica).
        """
        again = scores()
        name = f"step_{step:08d}_update_{update}_rank_{rank:05d}.jsonl"
        path = self._directory / name
        if writes:
            lines = [json.dumps(_row(batch, index, again)) for index in batch.rollouts]
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"{line}\n" for line in lines))
            except OSError as error:  # a full disk must not end what the skip has saved
                print(f"warning: {path}: {error}", flush=True)
        if rank == 0:
            print(
                f"warning: step {step}: a loss or gradient is not finite: no rank applied the "
                f"update ({self._in_a_row} in a row); its responses are in {self._directory}",
                flush=True,
            )
        if self._in_a_row >= self._limit:
            raise StopRun(
                NONFINITE,
                f"faults.nonfinite_updates: {self._in_a_row} updates in a row had a loss or "
                f"gradient that is not finite; the responses are in {self._directory}. Lower "
                "optimizer.lr, or leave the data rows that they name out",
            )


def _row(batch: Batch, index: int, again: dict[int, torch.Tensor]) -> dict[str, Any]:
    rollout = batch.rollouts[index]
    student = again.get(index)
    routes = {"correct": batch.routes.correct, "incorrect": batch.routes.incorrect}
    path = next((name for name, mask in routes.items() if mask[index]), "masked")
    return {
        "prompt": rollout.prompt.index,
        "source": rollout.prompt.source,
        "sample": rollout.sample,
        "path": path,
        "tokens": len(rollout.token_ids),
        "suspect": student is not None and not bool(student.isfinite().all()),
        "student_mean_logprob": _mean(student),
        "teacher_mean_logprob": _mean(batch.teacher_logprobs.get(index)),
    }


def _mean(values: torch.Tensor | None) -> float | str | None:
    """JSON has no NaN: its name, then."""
    if values is None or not len(values):
        return None
    mean = float(values.mean())
    return mean if math.isfinite(mean) else str(mean)
