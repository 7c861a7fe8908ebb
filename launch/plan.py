"""What a launch consists of: jobs with their resolved configurations, before any executor."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from scope_megatron.config import Config, load_config


@dataclass(frozen=True)
class Job:
    """One `scope-megatron VERB` with its configuration."""

    name: str  # of the job's folder: unique in the experiment
    verb: str  # train, check, evaluate
    config: Config
    after: str | None = None  # the job that has to succeed before


def plan(arguments: argparse.Namespace) -> list[Job]:
    """The jobs that the command line asks for. Raises ConfigError for a wrong setting."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(arguments.config).stem)
    verb = "check" if arguments.check else "train"
    return [Job(name, verb, load_config(arguments.config, arguments.overrides))]


def ranks_per_node(world_size: int, arguments: argparse.Namespace) -> int:
    """Ranks that each node starts. ValueError unless nodes and GPUs give ``world_size`` ranks."""
    nodes, gpus = arguments.nodes, arguments.gpus_per_node
    if arguments.executor == "local" and nodes != 1:
        raise ValueError(f"--nodes: is {nodes} but --executor local has one; use --executor slurm")
    ranks = gpus or world_size // max(nodes, 1)
    if nodes * ranks != world_size:
        asked = f"--nodes {nodes}" + (f" x --gpus-per-node {gpus}" if gpus else "")
        raise ValueError(
            f"parallel: tensor x pipeline x data is {world_size} ranks, which {asked} does not "
            "give; change either"
        )
    return ranks
