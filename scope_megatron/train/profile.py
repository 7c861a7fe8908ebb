"""torch's profiler around single steps, as profile.steps asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scope_megatron import outputs
from scope_megatron.config import Config
from scope_megatron.parallel import platform


@contextmanager
def profiled(config: Config, step: int, rank: int) -> Iterator[None]:
    """Write the trace of ``step`` (from 1) if it is asked for: one file per rank.

    A disk that is full stops nothing: one line says so.
    """
    if step not in config.profile.steps:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if platform.has_cuda():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        yield
    path = trace_path(config.output_dir, step, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:
        print(f"warning: profile.steps: {path} was not written: {error}", flush=True)


def trace_path(output_dir: Path, step: int, rank: int) -> Path:
    """Where the trace of a step (from 1) of a rank lies."""
    return output_dir / outputs.PROFILE_DIR / f"step_{step:08d}_rank_{rank:05d}.json"
