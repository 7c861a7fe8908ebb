"""A save in the background while training goes on, and a resume from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tools.proof import measure, models, trainer
from tools.proof.record import Proof

MIB = 2**20


def save(proof: Proof) -> None:
    """An update, a save, an update beside it; a fresh trainer repeats the last one."""
    from megatron.core import parallel_state

    from scope_megatron.checkpoint.saver import Saver

    shape = proof.size(models.HALF_B, models.TOY)
    student = models.make_model(shape, proof.folder / "student", "float32")
    config = models.settings(
        proof.folder,
        student,
        student,
        train__microbatch_tokens=proof.size(4096, 128),
        objective__head="fused",
    )
    learner = trainer.build_learner(config)
    topology = learner.topology
    _update(learner, proof, 0)
    before = measure.allocated()
    said: list[str] = []
    saver = Saver(_state(learner), config.output_dir, config.checkpoint, said.append)
    progress = _progress(topology)
    start = time.perf_counter()
    saver.save(1, progress, background=True)
    in_step = time.perf_counter() - start
    during = measure.allocated()
    expected = _update(learner, proof, 1)
    saver.wait()
    total = time.perf_counter() - start
    after = measure.allocated()
    proof.check("checkpoints on disk", float(saver.saved_step == 1 and not said), at_least=1)
    proof.figure("a step pays", in_step, "s")
    proof.figure("save from first to last", total, "s")
    proof.figure("memory before", before / MIB, "MiB")
    proof.check("memory more while saving", (during - before) / MIB, at_most=64, unit="MiB")
    proof.check("memory more afterwards", (after - before) / MIB, at_most=64, unit="MiB")
    folder = _checkpoint(config.output_dir)
    proof.figure("checkpoint", sum(f.stat().st_size for f in folder.rglob("*")) / MIB, "MiB")
    saver.close()
    del learner, saver
    parallel_state.destroy_model_parallel()
    measure.synchronize()
    resumed = _resume(proof, config, folder)
    # attention's backward on a GPU adds in any order: the norm's last digits may differ
    for name, limit in (("loss", 1e-5), ("grad_norm", 1e-3)):
        off = abs(resumed[name] / expected[name] - 1)
        proof.check(f"next update after resuming: {name}, relative error", off, at_most=limit)


def _resume(proof: Proof, config: Any, folder: Path) -> dict[str, float]:
    """The second update of a fresh trainer that has read the checkpoint."""
    from scope_megatron.checkpoint import state

    learner = trainer.build_learner(config)
    start = time.perf_counter()
    state.require_valid(folder)
    state.load_checkpoint(_state(learner), folder)
    proof.figure("read, checked", time.perf_counter() - start, "s")
    return _update(learner, proof, 1)


def _state(learner: Any) -> Any:
    from scope_megatron.checkpoint.state import TrainingState

    student = learner.student
    return TrainingState(student.model, student.optimizer, student.scheduler, learner.topology)


def _progress(topology: Any) -> dict[str, Any]:
    from scope_megatron.checkpoint.state import layout_progress

    return {"identity": {}, "evaluations": {}, "config": "", **layout_progress(topology)}


def _checkpoint(output: Path) -> Path:
    from scope_megatron import outputs

    return outputs.checkpoint_dir(output, 1)


def _update(learner: Any, proof: Proof, number: int) -> dict[str, float]:
    """One update on given rollouts; its loss and gradient norm."""
    groups = proof.size((4, 4, 512), (4, 4, 24))
    rollouts = models.random_rollouts(learner.student.vocab_size, *groups, seed=number)
    return trainer.one_update(learner, rollouts)
