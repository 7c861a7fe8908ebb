"""Names of everything in a run's ``output_dir``.

metrics.jsonl, metrics.N.jsonl   one line per step; those of earlier attempts
report.png, report.html          the run's curves; those with settings and some responses
recovery.json                    what tools/recovery_study.py found, where it was pointed here
config.yaml                      the resolved configuration, as the run's last start had it
events.jsonl                     what happened when: starts, resumptions, evaluations, ends
carried.jsonl                    groups that each step left for the next one (rollout.carry_over)
rollouts/, rollouts.N/           responses: a Parquet file per step, index/; of earlier attempts
checkpoints/                     step_00000040/ per checkpoint, `latest`, `best`
hf/                              the trained student as a Hugging Face directory
tensorboard/, wandb_run_id       what the two loggers keep
evaluations/                     of `scope-megatron evaluate` with the run's configuration
nonfinite/                       responses of updates with a loss that is not finite
profile/                         torch profiler's traces of the steps in profile.steps
trace/, trace.N/                 what each rank did when (logging.trace), and all in trace.json; of
                                 earlier attempts
timeline.png                     one step of that, drawn
stacks/                          stacks of all threads of a rank, where a rank hung
run.lock                         names the process of the live run
"""

from __future__ import annotations

import re
from pathlib import Path

METRICS = "metrics.jsonl"
REPORT = "report.png"
REPORT_HTML = "report.html"
RECOVERY = "recovery.json"
CONFIG = "config.yaml"
EVENTS = "events.jsonl"
CARRIED = "carried.jsonl"
ROLLOUTS = "rollouts"
ROLLOUTS_INDEX = "index"  # inside rollouts/
HF = "hf"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_run_id"
NONFINITE_DIR = "nonfinite"
PROFILE_DIR = "profile"
TRACE = "trace"
TIMELINE = "timeline.png"
STACKS = "stacks"
EVALUATIONS = "evaluations"
LOCK = "run.lock"
CHECKPOINTS = "checkpoints"
LATEST = "latest"  # inside checkpoints, as BEST
BEST = "best"
_STEP = re.compile(r"step_\d{8,}")


def checkpoints_dir(output_dir: Path) -> Path:
    return output_dir / CHECKPOINTS


def latest_pointer(output_dir: Path) -> Path:
    """The text file that names the newest checkpoint; there once a run has saved."""
    return checkpoints_dir(output_dir) / LATEST


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def is_checkpoint_name(name: str) -> bool:
    return _STEP.fullmatch(name) is not None


def checkpoint_dir(output_dir: Path, step: int) -> Path:
    """Directory of the checkpoint after ``step`` steps."""
    return checkpoints_dir(output_dir) / checkpoint_name(step)


def step_of(checkpoint: Path) -> int:
    """Steps done when that checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def rollouts_dir(output_dir: Path) -> Path:
    return output_dir / ROLLOUTS


def checkpoints(output_dir: Path) -> list[Path]:
    """The run's checkpoints, whole or damaged, newest first."""
    found = checkpoints_dir(output_dir).glob("step_*")
    return sorted((path for path in found if is_checkpoint_name(path.name)), key=step_of)[::-1]
