"""Rules on output_dir: another run's checkpoints are never lost, and a checkpoint must fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from scope_megatron import outputs
from scope_megatron.config.modeldir import ModelDirError, count_parameters
from scope_megatron.config.schema import Config

ROOM = 1.2  # free space asked for, in sizes of a checkpoint


def checkpoint_bytes(config: Config, parameters: int, cuda: bool) -> int:
    """Expected size of a checkpoint: weights, and Adam's two moments in float32.

    bfloat16 weights have a float32 copy besides, which is saved as well.
    """
    half = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and cuda)
    return parameters * (8 + (2 + 4 if half else 4))


def output_problems(config: Config) -> Iterator[str]:
    """Reasons not to start training in ``output_dir``, which may not exist yet."""
    directory = config.output_dir
    held = outputs.checkpoints(directory)
    if config.resume == "never":
        if held or outputs.latest_pointer(directory).exists():
            yield (
                f"output_dir: {directory} holds checkpoints of a run; "
                "set resume=auto to go on with it, or another output_dir"
            )
    elif config.resume != "auto" and held:
        newest = held[0]
        if Path(config.resume).expanduser().resolve() != newest.resolve():
            yield (
                f"resume: goes on from {config.resume} but {directory} holds {newest.name}, which "
                "would be replaced; set resume=auto, or another output_dir"
            )


def room_problems(config: Config, existing: Path, cuda: bool) -> Iterator[str]:
    """Too little free space for a single checkpoint. ``existing`` is a directory above it."""
    if not (config.checkpoint.every or config.checkpoint.at_end):
        return
    try:
        parameters = count_parameters(config.model.student)
    except (ModelDirError, OSError):
        return  # the model's own rules say what is wrong
    needed = math.ceil(ROOM * checkpoint_bytes(config, parameters, cuda))
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield (
            f"output_dir: {config.output_dir} has {free / 2**20:,.0f} MiB free but a checkpoint "
            f"needs {needed / 2**20:,.0f} MiB; free some, give another output_dir, or set "
            "checkpoint.every=0 and checkpoint.at_end=false"
        )
