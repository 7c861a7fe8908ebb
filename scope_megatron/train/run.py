"""A run from its first to its last step: resume, evaluate, train, save, report."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from scope_megatron import outputs
from scope_megatron.checkpoint import state as checkpoint
from scope_megatron.checkpoint.folder import steps_done
from scope_megatron.checkpoint.saver import Saver
from scope_megatron.config import Config
from scope_megatron.convert.hf import export_hf
from scope_megatron.exits import ENGINE, UNSAVED, StopRun
from scope_megatron.job.interrupt import Interrupt
from scope_megatron.job.lock import locked
from scope_megatron.job.watchdog import Watchdog
from scope_megatron.parallel import platform
from scope_megatron.report.console import Console
from scope_megatron.report.figure import write_report
from scope_megatron.report.metrics import MetricLogger
from scope_megatron.train.trainer import Trainer

MOST_SKIPPED = 5  # rows that cannot be used are all counted; so many are named


def run(config: Config) -> int:
    """Train as configured. Returns 0 when finished, exits.UNSAVED when the last checkpoint could
    not be saved, 128 + signal when asked to stop before."""
    if config.resume == "auto" and (done := steps_done(config.output_dir)):
        if done >= config.train.steps:
            _say_finished(config, done)
            return 0
    with locked(config.output_dir, enabled=os.environ.get("RANK", "0") == "0"):
        return _run(config)


def _run(config: Config) -> int:
    trainer = Trainer(config)
    console = Console(
        enabled=trainer.topology.is_main,
        total_steps=config.train.steps,
        live=config.logging.progress,
    )
    try:
        return Run(config, trainer, console).go()
    except StopRun:
        trainer.abandon()
        raise
    finally:
        console.close()
        trainer.close()


def _say_finished(config: Config, done: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(
            f"{config.output_dir} is finished: {done} of {config.train.steps} steps; "
            "raise train.steps to go on, or give another output_dir to start anew"
        )


class Run:
    """The loop around :meth:`Trainer.step`."""

    def __init__(self, config: Config, trainer: Trainer, console: Console) -> None:
        self.config, self.trainer, self.console = config, trainer, console
        student = trainer.learner.student
        self.state = checkpoint.TrainingState(
            student.model, student.optimizer, student.scheduler, trainer.topology
        )
        self.interrupt = Interrupt()
        self.watchdog = Watchdog(config.faults, config.output_dir, trainer.progress)
        self.evaluations: dict[str, dict[str, float]] = {}
        self.saver = Saver(self.state, config.output_dir, config.checkpoint, console.message)

    def go(self) -> int:
        """Everything, watched: see :func:`run` for the result."""
        self.watchdog.start()
        try:
            return self._go()
        except torch.OutOfMemoryError as error:
            raise StopRun(ENGINE, _out_of_memory(error, self.trainer)) from None
        except RuntimeError as error:
            if lost := self.watchdog.peer_lost(error):
                raise lost from None
            raise
        finally:
            self.watchdog.stop()

    def _go(self) -> int:
        self.console.header("scope_megatron", self._facts())
        for reason in self.trainer.data.skipped[:MOST_SKIPPED]:
            self.console.message(f"skipped {reason}")
        done = self._resume()
        self.saver.saved_step = done if done else -1
        with self._logger(done) as self.logger, closing(self.saver):
            self.trainer.send_weights()
            self.interrupt.install()
            if done == 0 and self.config.evaluation.before:
                self._evaluate(0, "before")
            self.console.start(done)
            for step in range(done, self.config.train.steps):
                if signum := self.interrupt.agreed():
                    return self._stop(step, signum)
                self._step(step)
            return self._finish()

    def _step(self, step: int) -> None:
        metrics = self.trainer.step(step)
        number, every = step + 1, self.config.evaluation.every
        if every and number % every == 0 and number < self.config.train.steps:
            metrics |= self.trainer.evaluate()
        self.logger.log(number, metrics)
        self.console.step(number, metrics)
        self.saver.poll()
        save_every = self.config.checkpoint.every
        if save_every and number % save_every == 0:
            self._save(number, metrics)

    def _resume(self) -> int:
        """Steps done before; loads their state."""
        resume = self.config.resume
        if resume == "never":
            return 0
        if resume == "auto":
            found, damaged = checkpoint.find_valid(self.config.output_dir)
            for line in damaged:
                self.console.message(f"{line}; looking for the newest whole checkpoint")
            if found is None:
                return 0
            directory = found
        else:
            directory = Path(resume).expanduser()
            checkpoint.require_valid(directory)
        progress = checkpoint.load_checkpoint(self.state, directory)
        _require_same(progress["identity"], self._identity(), directory)
        before = progress["evaluations"].get("before")
        self.evaluations = {"before": before} if before else {}  # "after" is still to come
        self.console.message(f"resumed from {directory} after step {progress['step']}")
        return int(progress["step"])

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run."""
        return {
            "seed": self.config.seed,
            "data.train": self.trainer.data.fingerprint(),
            "model.tokenizer": self.trainer.token_map,
        }

    def _evaluate(self, step: int, when: str) -> None:
        self.console.message(f"evaluating the student {when} training ...")
        values = self.trainer.evaluate()
        self.evaluations[when] = values
        self.logger.log(step, values)
        self.console.evaluation(step, values)

    def _save(self, step: int, metrics: dict[str, float], wait: bool = False) -> Path | None:
        """The checkpoint of ``step``; None when it is not on disk (yet)."""
        self.trainer.progress.enter("save")
        self.saver.wait()
        score = metrics.get(f"eval/avg@{self.config.evaluation.samples}")
        if self.saver.saved_step == step and score is not None:
            self.saver.rate(score)
        elif self.saver.saved_step != step:
            progress = {
                "identity": self._identity(),
                "evaluations": self.evaluations,
                "config": self.config.to_yaml(),
                **checkpoint.layout_progress(self.trainer.topology),
            }
            self.saver.save(step, progress, score, background=False if wait else None)
        saved = self.saver.saved_step == step
        return outputs.checkpoint_dir(self.config.output_dir, step) if saved else None

    def _stop(self, step: int, signum: int) -> int:
        path = self._save(step, {}, wait=True) if step else None
        if step:
            self._report()
        self.console.interrupted(path, _resume_command())
        return 128 + signum

    def _finish(self) -> int:
        """What follows the last step. Returns the exit code, by which the student is on disk."""
        steps, code = self.config.train.steps, 0
        if self.config.evaluation.after and "after" not in self.evaluations:
            self._evaluate(steps, "after")
        if self.config.checkpoint.at_end:
            saved = self._save(steps, self.evaluations.get("after", {}), wait=True)
            code = 0 if saved else UNSAVED
        self.saver.wait()
        self.console.close()
        if self.config.checkpoint.export_hf and not self._export():
            code = UNSAVED
        if report := self._report():
            self.console.message(f"report: {report}")
        if self.evaluations:
            self.console.evaluation_table(
                self.evaluations.get("before", {}), self.evaluations.get("after", {})
            )
        return code

    def _export(self) -> bool:
        """Whether the student is there as a Hugging Face directory; a failure is told."""
        trainer, out = self.trainer, self.config.output_dir / outputs.HF
        try:
            export_hf(
                trainer.learner.student.model,
                trainer.learner.student.hf,
                trainer.topology,
                self.config.model.student,
                out,
                overwrite=True,
            )
        except OSError as error:  # raised on all ranks together
            self.console.message(f"the student was not exported: {error}")
            return False
        self.console.message(f"student as Hugging Face directory: {out}")
        return True

    def _report(self) -> Path | None:
        """The picture of the run, drawn by one rank; a disk that is full stops nothing."""
        if not self.trainer.topology.is_main:
            return None
        try:
            return write_report(self.config.output_dir)
        except OSError as error:
            self.console.message(f"the report was not drawn: {error}")
            return None

    def _logger(self, done: int) -> MetricLogger:
        logging = self.config.logging
        return MetricLogger(
            self.config.output_dir,
            logging.tensorboard,
            logging.wandb_project,
            self.config.model_dump(mode="json"),
            enabled=self.trainer.topology.is_main,
            start_step=done if done else -1,
        )

    def _facts(self) -> dict[str, object]:
        config, topo = self.config, self.trainer.topology
        facts: dict[str, object] = {
            "algorithm": config.algorithm.name,
            "student": config.model.student,
        }
        if config.needs_teacher:
            facts["teacher"] = f"{config.model.teacher} (on the same ranks)"
        facts["device"] = platform.device_name()
        layout = (
            f"{topo.world_size} ranks: tensor {topo.tp_size}, pipeline {topo.pp_size}, "
            f"data {topo.dp_size}"
        )
        if topo.ep_size > 1:
            layout += f", expert {topo.ep_size}"
        facts["layout"] = layout
        if config.rollout and config.on_policy:
            rollout = config.rollout
            facts["rollouts"] = (
                f"{rollout.prompts_per_step} prompts x {rollout.group_size} per step, vLLM in the "
                f"same processes (tensor {rollout.engine.tensor})"
            )
        data = self.trainer.data
        facts["data"] = f"{len(data)} prompts, {len(data.skipped)} rows skipped"
        facts["output"] = config.output_dir
        return facts


def _out_of_memory(error: BaseException, trainer: Trainer) -> str:
    return (
        f"the device's memory did not suffice in {trainer.progress.beat(0).where()}: lower "
        "train.microbatch_tokens or rollout.engine.gpu_memory_utilization, or raise "
        f"parallel.tensor ({str(error).splitlines()[0]})"
    )


def _require_same(before: dict[str, Any], now: dict[str, Any], directory: Path) -> None:
    for key, value in before.items():
        if now[key] != value:
            raise ValueError(
                f"{key}: differs from the run that wrote {directory}; a resumed run needs the same "
                "one (or use another output_dir)"
            )


def _resume_command() -> str:
    """What to type to go on: this command, by the path at which it can be found."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("resume=")]
    program = Path(os.path.relpath(Path(sys.executable).parent / "scope-megatron"))
    found = shutil.which("scope-megatron")
    name = "scope-megatron" if found and Path(found).resolve() == program.resolve() else program
    return shlex.join([str(name), *arguments, "resume=auto"])
