"""Plan of a launch: jobs with their resolved configurations, before any executor."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from launch.cluster import Cluster
from scope_megatron import outputs
from scope_megatron.config import Config, load_config, validating_for
from scope_megatron.config.names import pinned
from scope_megatron.instruments.plan.facts.figures import find_gpu
from scope_megatron.instruments.plan.warning import memory_warning

LAYOUT = ("tensor", "data")  # may be auto, which asks for the student's shape
MOST_JOBS = 200  # of a sweep: more is a slip of the pen


@dataclass(kw_only=True)
class LaunchRequest:
    """Options of a launch, as the user gave them."""

    config: str
    cluster: Cluster
    overrides: list[str] = field(default_factory=list)
    sweep: list[str] = field(default_factory=list)  # key=value,value,...
    then: str | None = None  # "evaluate"
    check: bool = False
    package: bool = False
    allow_dirty: bool = False
    dryrun: bool = False
    follow: bool = False
    gpu: str | None = None  # kind of the nodes' GPUs: warn of runs that will not fit


@dataclass(frozen=True)
class PlannedJob:
    """One `scope-megatron VERB` with its configuration."""

    name: str  # of the job's folder: unique in the experiment
    verb: str  # train, check, evaluate
    config: Config
    after: str | None = None  # the job that has to succeed before


def plan(request: LaunchRequest) -> list[PlannedJob]:
    """The jobs, each after the one that it needs. Raises ConfigError or ValueError.

    Settings are checked, and sizes that are `auto` chosen, for the nodes that are asked for: a
    login node has no GPUs, or others.
    """
    cluster = request.cluster
    if cluster.kind == "local":
        return _plan(request)
    gpus, nodes = max(cluster.gpus_per_node, 0), max(cluster.nodes, 1)  # executors refuses less
    with validating_for(gpus, nodes, packages=cluster.container is None):
        return _plan(request)


def _plan(request: LaunchRequest) -> list[PlannedJob]:
    base = _word(Path(request.config).stem)
    verb = "check" if request.check else "train"
    jobs = []
    for point in points(request.sweep):
        suffix = "_".join(_word(setting.replace("=", "-")) for setting in point)
        overrides = [*request.overrides, *point]
        if point:  # every run of a sweep writes below the directory of all of them
            top = load_config(request.config, overrides, check_files=False).output_dir
            overrides.append(f"output_dir={top / suffix}")
        name = f"{base}.{suffix}" if point else base
        jobs.append(PlannedJob(name, verb, load_config(request.config, overrides)))
        if request.then and not request.check:
            jobs.append(_evaluation(request, jobs[-1], overrides))
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError("--sweep: two of its runs are the same; remove one")
    return jobs


def warnings(request: LaunchRequest, jobs: list[PlannedJob]) -> list[str]:
    """A line for each training that will not fit in the GPUs, where their kind is known."""
    if request.gpu is None:
        return []
    gpu = find_gpu(request.gpu)
    told = [(j.name, memory_warning(j.config, gpu)) for j in jobs if j.verb != "evaluate"]
    return [f"{name}: {warning}" for name, warning in told if warning]


def points(sweep: list[str]) -> list[list[str]]:
    """The product of the sweeps: for each run its key=value overrides; [[]] without a sweep."""
    axes = []
    for text in sweep:
        key, _, values = text.partition("=")
        if not key or not all(values.split(",")):
            raise ValueError(f"--sweep: {text!r} is not key=value,value,...")
        axes.append([f"{key}={value}" for value in values.split(",")])
    keys = [axis[0].partition("=")[0] for axis in axes]
    if len(set(keys)) < len(keys) or "output_dir" in keys:
        raise ValueError("--sweep: give each key once, and not output_dir, which every run gets")
    product = [list(point) for point in itertools.product(*axes)]
    if len(product) > MOST_JOBS:
        raise ValueError(f"--sweep: makes {len(product)} runs, more than {MOST_JOBS}")
    return product


def _evaluation(request: LaunchRequest, train: PlannedJob, overrides: list[str]) -> PlannedJob:
    """Evaluates the student that ``train`` exports, which does not exist yet."""
    if not train.config.checkpoint.export_hf:
        raise ValueError(
            "--then evaluate: needs the exported student; remove checkpoint.export_hf=false"
        )
    student = f"model.student={train.config.output_dir / outputs.HF}"
    names = pinned(train.config)  # the training's own: the hub may move meanwhile
    layout = [f"parallel.{name}={getattr(train.config.parallel, name)}" for name in LAYOUT]
    config = load_config(
        request.config,
        [*overrides, *names, student, *layout],
        check_files=False,
        command="evaluate",
    )
    return PlannedJob(f"{train.name}.evaluate", "evaluate", config, after=train.name)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
