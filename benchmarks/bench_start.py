"""Where the time to the first step and a rank's memory go.

    python -m benchmarks.bench_start [KEY=VALUE ...]

Starts the quickstart's ranks, and in each notes the seconds and the resident memory after every
part of the start. Prints the slowest rank's; KEY=VALUE are settings of the run.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rounds import ROOT, Contestant, Figures, serve

CONFIG = str(ROOT / "configs/quickstart.yaml")


def main() -> None:
    from scope_megatron.config import load_config

    overrides = [*sys.argv[1:], "evaluation.before=false", "evaluation.after=false"]
    ranks = load_config(CONFIG, overrides).world_size
    with tempfile.TemporaryDirectory(prefix="bench-start-") as name:
        arguments = ["worker", f"output_dir={name}/run", *overrides]
        module = "benchmarks.bench_start"
        one = Contestant("start", module, arguments, ranks, Path(name))
        try:
            one.ready()
            found = one.step()
        except SystemExit:
            print((Path(name) / "start-0.log").read_text()[-3000:])
            raise
        finally:
            one.stop()
    parts = [part.removesuffix(" s") for part in found if part.endswith(" s")]
    for part in parts:
        print(f"{part:24} {found[f'{part} s']:6.2f} s {found[f'{part} GiB']:6.2f} GiB")
    total = sum(found[f"{part} s"] for part in parts)
    print(json.dumps({"first step's end, s": round(total, 2), "peak GiB": found["peak GiB"]}))


class Marks:
    """Seconds since the mark before, and the resident memory, by name."""

    def __init__(self) -> None:
        self.found: Figures = {}
        self._last = _started()

    def __call__(self, part: str) -> None:
        now = time.time()
        self.found[f"{part} s"] = self.found.get(f"{part} s", 0.0) + now - self._last
        self.found[f"{part} GiB"] = _resident()
        self._last = now


def _started() -> float:
    """When this process began, seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / 100


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def worker(overrides: list[str]) -> None:
    marks = Marks()
    import torch  # noqa: F401

    marks("import torch")
    from scope_megatron.train import setup, trainer

    marks("import megatron-core")
    from scope_megatron.config import load_config

    config = load_config(CONFIG, overrides)
    _mark_after(trainer.setup, "start_process", marks, "settings, process groups")
    _mark_after(trainer, "identity", marks, "data", name="require_agreement")
    _mark_after(trainer, "Learner", marks, "student and teacher")
    _mark_before_engine(setup, marks)
    built = trainer.Trainer(config)
    marks("vLLM's engine")
    built.prepare_engine()
    marks("parameters to the engine")
    built.step(1)
    marks("first step")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def step() -> Figures:
        return {**marks.found, "peak GiB": round(peak, 2)}

    serve(step)


def _mark_after(owner: Any, attribute: str, marks: Marks, part: str, name: str = "") -> None:
    """Mark ``part`` whenever ``owner.attribute`` (or its function ``name``) has returned."""
    if name:
        owner, attribute = getattr(owner, attribute), name
    original = getattr(owner, attribute)

    def marked(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        marks(part)
        return result

    setattr(owner, attribute, marked)


def _mark_before_engine(setup: Any, marks: Marks) -> None:
    """The import of vLLM apart from the engine's building."""
    build = setup.build_engine

    def marked(*args: Any, **kwargs: Any) -> Any:
        from vllm import LLM  # noqa: F401

        marks("import vLLM")
        return build(*args, **kwargs)

    setup.build_engine = marked


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2:])
    else:
        main()
