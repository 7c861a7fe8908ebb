"""Checkpoints of a run: saving and resuming."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from scope_megatron.checkpoint.saver import Saver
from scope_megatron.checkpoint.state import (
    TrainingState,
    find_valid,
    layout_progress,
    load_checkpoint,
    require_valid,
)
from scope_megatron.config import Config
from scope_megatron.outputs import checkpoint_dir
from scope_megatron.train.identity import require_same
from scope_megatron.train.trainer import Trainer

IN_FLIGHT = "in_flight"  # responses of the next step, where it is sampled ahead
Evaluations = dict[str, dict[str, float]]  # "before" and "after" the training


class RunCheckpoints:
    """The checkpoints of one run. Every method is for all ranks together."""

    def __init__(self, config: Config, trainer: Trainer, say: Callable[[str], None]) -> None:
        self._config, self._trainer, self._say = config, trainer, say
        student = trainer.learner.student
        self._state = TrainingState(
            student.model, student.optimizer, student.scheduler, trainer.topology
        )
        self._saver = Saver(self._state, config.output_dir, config.checkpoint, say)

    def resume(self) -> tuple[int, Evaluations]:
        """Load what ``resume`` asks for: the steps done before, and the evaluation before them.

        Raises ValueError when a checkpoint is damaged or was written by another run.
        """
        directory = self._chosen()
        if directory is None:
            return 0, {}
        with self._trainer.optimizer_place.resident():
            progress = load_checkpoint(self._state, directory)
        require_same(progress["identity"], self._trainer.identity, directory)
        self._say(f"resumed from {directory} after step {progress['step']}")
        if (saved := progress.get(IN_FLIGHT)) is not None:
            self._trainer.resume_in_flight(int(progress["step"]), saved)
        done = self._saver.saved_step = int(progress["step"])
        before = progress["evaluations"].get("before")
        return done, {"before": before} if before else {}  # "after" is still to come

    def _chosen(self) -> Path | None:
        """The checkpoint to go on from, None to start anew."""
        resume = self._config.resume
        if resume == "never":
            return None
        if resume == "auto":
            found, damaged = find_valid(self._config.output_dir)
            for line in damaged:
                self._say(f"{line}; looking for the newest whole checkpoint")
            return found
        directory = Path(resume).expanduser()
        require_valid(directory)
        return directory

    def save(
        self, step: int, evaluations: Evaluations, rating: float | None, wait: bool
    ) -> Path | None:
        """The checkpoint of ``step``; None when it is not on disk (yet).

        ``rating`` is the Avg@k of an evaluation at that step; ``wait``: until it is written.
        """
        self._saver.wait()
        if self._saver.saved_step == step and rating is not None:
            self._saver.rate(rating)
        elif self._saver.saved_step != step:
            progress = {
                "identity": self._trainer.identity,
                "evaluations": evaluations,
                "config": self._config.to_yaml(),
                **layout_progress(self._trainer.topology),
            }
            if (ahead := self._trainer.in_flight(step)) is not None:
                progress[IN_FLIGHT] = ahead
            with self._trainer.optimizer_place.resident():
                self._saver.save(step, progress, rating, background=False if wait else None)
        saved = self._saver.saved_step == step
        return checkpoint_dir(self._config.output_dir, step) if saved else None

    def poll(self) -> None:
        """Tell of a save that has failed in the meantime; never waits."""
        self._saver.poll()

    def wait(self) -> None:
        """Until no save is in flight."""
        self._saver.wait()

    def close(self) -> None:
        """Give up a save in flight, as the run ends by an error."""
        self._saver.close()


def resume_command() -> str:
    """Command line that resumes this run: this one's, by the path at which it can be found."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("resume=")]
    program = Path(os.path.relpath(Path(sys.executable).parent / "scope-megatron"))
    found = shutil.which("scope-megatron")
    name = "scope-megatron" if found and Path(found).resolve() == program.resolve() else program
    return shlex.join([str(name), *arguments, "resume=auto"])
