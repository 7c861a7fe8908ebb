"""End of a run: export of the student to Hugging Face's format."""

from __future__ import annotations

from collections.abc import Callable

from scope_megatron import outputs
from scope_megatron.config import Config
from scope_megatron.convert.hf import export_hf
from scope_megatron.train.trainer import Trainer


def export_student(config: Config, trainer: Trainer, say: Callable[[str], None]) -> bool:
    """Write ``output_dir/hf``, a Hugging Face directory (collective over all ranks).

    Returns whether it is there; a failure is told through ``say`` and raises nothing.
    """
    student, out = trainer.learner.student, config.output_dir / outputs.HF
    try:
        export_hf(
            student.model,
            student.hf,
            trainer.topology,
            config.model.student,
            out,
            overwrite=True,
        )
    except OSError as error:  # raised on all ranks together
        say(f"the student was not exported: {error}")
        return False
    say(f"student as Hugging Face directory: {out}")
    return True
