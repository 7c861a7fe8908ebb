"""A run from its first to its last step: resume, evaluate, train, save, report."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from scope_megatron.checkpoint.folder import steps_done
from scope_megatron.config import Config
from scope_megatron.exits import ENGINE, UNSAVED, StopRun
from scope_megatron.job.interrupt import Interrupt
from scope_megatron.job.lock import locked
from scope_megatron.job.watchdog import Watchdog
from scope_megatron.logging.console import Console
from scope_megatron.logging.events import EventLog
from scope_megatron.logging.header import run_facts
from scope_megatron.logging.health import HealthWatch
from scope_megatron.logging.logger import MetricLogger
from scope_megatron.trace import spans
from scope_megatron.trace.files import begin_trace
from scope_megatron.train.finish import export_student
from scope_megatron.train.profile import profiled
from scope_megatron.train.resume import Evaluations, RunCheckpoints, resume_command
from scope_megatron.train.sampler import serve_samples
from scope_megatron.train.trainer import Trainer

# Draws what there is of a run in its directory, and says through the function what it could not
# draw; the picture's path, or None. On one rank. Whoever starts the run brings it: see cli.py.
Draw = Callable[[Path, Callable[[str], None]], Path | None]
MOST_SKIPPED = 5  # rows that cannot be used are all counted; so many are named


def run(config: Config, draw: Draw) -> int:
    """Train as configured, and ``draw`` at the end. Returns 0 when finished, exits.UNSAVED when
    the last checkpoint could not be saved, 128 + signal when asked to stop before."""
    if config.resume == "auto" and (done := steps_done(config.output_dir)):
        if done >= config.train.steps:
            _say_finished(config, done)
            return 0
    if int(os.environ.get("RANK", "0")) >= config.training_ranks:  # with rollout.placement separate
        return serve_samples(config)
    with locked(config.output_dir, enabled=os.environ.get("RANK", "0") == "0"):
        return _run(config, draw)


def _run(config: Config, draw: Draw) -> int:
    trainer = Trainer(config)
    console = Console(
        enabled=trainer.topology.is_main,
        total_steps=config.train.steps,
        live=config.logging.progress,
    )
    try:
        return Run(config, trainer, console, draw).go()
    except StopRun:
        trainer.abandon()
        raise
    finally:
        console.close()
        trainer.close()
        spans.stop()


def _say_finished(config: Config, done: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(
            f"{config.output_dir} is finished: {done} of {config.train.steps} steps; "
            "raise train.steps to go on, or give another output_dir to start anew"
        )


class Run:
    """The loop around :meth:`Trainer.step`."""

    def __init__(self, config: Config, trainer: Trainer, console: Console, draw: Draw) -> None:
        self.config, self.trainer, self.console, self.draw = config, trainer, console, draw
        self.interrupt = Interrupt()
        self.watchdog = Watchdog(config.faults, config.output_dir, trainer.progress)
        self.checkpoints = RunCheckpoints(config, trainer, console.message)
        self.evaluations: Evaluations = {}
        self.events = EventLog(config.output_dir, trainer.topology.is_main)
        self.done = 0
        self.health = HealthWatch()

    def go(self) -> int:
        """Everything, watched: see :func:`run` for the result."""
        self.watchdog.start()
        try:
            return self._go()
        except torch.OutOfMemoryError as error:
            self.events.add("fail", self.done, "out of memory")
            raise StopRun(ENGINE, _out_of_memory(error, self.trainer)) from None
        except StopRun as stop:
            self.events.add("fail", self.done, str(stop))
            raise
        except RuntimeError as error:
            self.events.add("fail", self.done, f"{type(error).__name__}: {error}")
            if lost := self.watchdog.peer_lost(error):
                raise lost from None
            raise
        finally:
            self.watchdog.stop()

    def _go(self) -> int:
        data = self.trainer.data
        facts = run_facts(self.config, self.trainer.topology, len(data), data.skipped_count)
        self.console.header("scope_megatron", facts)
        for reason in data.first_skipped(MOST_SKIPPED):
            self.console.message(f"skipped {reason}")
        done, self.evaluations = self.checkpoints.resume()
        self.done = done
        self.events.begin(done, self.config.to_yaml())
        if self.trainer.topology.is_main:
            begin_trace(self.config.output_dir, done)
        self.trainer.responses.begin(done)
        with self._logger(done) as self.logger, closing(self.checkpoints):
            self.trainer.prepare_engine()
            self.interrupt.install()
            if done == 0 and self.config.evaluation.before:
                self._evaluate(0, "before")
            self.console.start(done)
            for step in range(done + 1, self.config.train.steps + 1):
                self.interrupt.told(self.trainer.signum)
                if signum := self.interrupt.agreed():
                    return self._stop(step - 1, signum)
                with spans.traced_step(step):
                    self._step(step)
            return self._finish()

    def _step(self, step: int) -> None:
        with profiled(self.config, step, self.trainer.topology.rank):
            metrics = self.trainer.step(step)
        self.done = step
        every, save_every = self.config.evaluation.every, self.config.checkpoint.every
        if every and step % every == 0 and step < self.config.train.steps:
            metrics |= self.trainer.evaluate(step)
        self.logger.log(step, metrics)
        self.logger.show_responses(step, self.trainer.responses.shown)
        self.console.step(step, metrics)
        for advice in self.health.add(step, metrics):
            self.console.message(f"step {step}: {advice.line()}")
        self.checkpoints.poll()
        if save_every and step % save_every == 0:
            self._save(step, metrics)

    def _evaluate(self, step: int, when: str) -> None:
        self.console.message(f"evaluating the student {when} training ...")
        values = self.trainer.evaluate(step)
        self.evaluations[when] = values
        self.logger.log(step, values)
        self.console.evaluation(step, values)

    def _save(self, step: int, metrics: dict[str, float], wait: bool = False) -> Path | None:
        self.trainer.progress.enter("save")
        rating = metrics.get(f"eval/avg@{self.config.evaluation.samples}")
        with spans.span("save"):
            return self.checkpoints.save(step, self.evaluations, rating, wait)

    def _stop(self, done: int, signum: int) -> int:
        path = self._save(done, {}, wait=True) if done else None
        self.events.add("stop", done, signal.Signals(signum).name)
        if done:
            self._report()
        self.console.interrupted(path, resume_command())
        return 128 + signum

    def _finish(self) -> int:
        """Evaluate, save, export and report after the last step; returns the exit code."""
        steps, code = self.config.train.steps, 0
        if self.config.evaluation.after and "after" not in self.evaluations:
            self._evaluate(steps, "after")
        if self.config.checkpoint.at_end:
            saved = self._save(steps, self.evaluations.get("after", {}), wait=True)
            code = 0 if saved else UNSAVED
        self.checkpoints.wait()
        self.console.close()
        if self.config.checkpoint.export_hf:
            if not export_student(self.config, self.trainer, self.console.message):
                code = UNSAVED
        if self.trainer.memory.peak is not None:
            most = self.trainer.memory.describe_peak()
            self.console.message(f"most memory of tensors: {most}")
        self.events.add("finish", steps)
        if report := self._report():
            self.console.message(f"report: {report}")
        if self.evaluations:
            self.console.evaluation_table(
                self.evaluations.get("before", {}), self.evaluations.get("after", {})
            )
        return code

    def _report(self) -> Path | None:
        spans.flush()
        if not self.trainer.topology.is_main:
            return None
        return self.draw(self.config.output_dir, self.console.message)

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


def _out_of_memory(error: BaseException, trainer: Trainer) -> str:
    return (
        f"the device's memory did not suffice in {trainer.progress.beat(0).where()}: lower "
        "train.microbatch_tokens or rollout.engine.gpu_memory_utilization, or raise "
        f"parallel.tensor; most so far: {trainer.memory.describe_peak()} "
        f"({str(error).splitlines()[0]})"
    )
