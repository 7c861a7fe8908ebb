"""The launcher's command line."""

from __future__ import annotations

import argparse
import re

TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parser() -> argparse.ArgumentParser:
    """Options of ``python -m launch.run``."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.run", description="Launch one run, or a sweep, with nemo-run."
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file, as for scope-megatron train")
    add("overrides", metavar="key=value", nargs="*", help="settings that replace the file's")
    add("--executor", choices=("local", "slurm"), default="local", help="default: local")
    _add_size(parser)
    _add_environment(parser)
    add("--check", action="store_true", help="run the check command instead of training")
    add("--follow", action="store_true", help="slurm: show the job's log until the job has ended")
    add("--dryrun", action="store_true", help="print what would run and stop")
    return parser


def _add_size(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nodes", type=int, default=1, help="slurm: number of nodes (default 1)")
    add(
        "--gpus-per-node",
        type=int,
        default=0,
        metavar="M",
        help="GPUs, and ranks, of a node; 0 (default): no GPU, the ranks divided over the nodes",
    )
    add(
        "--cpus-per-task",
        type=int,
        metavar="N",
        help="slurm: CPU cores of a rank (default: the cluster's, often 1)",
    )
    add("--account", help="slurm: account to charge, where the cluster wants one")
    add("--partition", help="slurm: partition (default: the cluster's)")
    add("--time", default="01:00:00", help="slurm: time limit, D-HH:MM:SS (default 01:00:00)")
    add(
        "--grace",
        type=int,
        default=120,
        metavar="SECONDS",
        help="slurm: ask the ranks to save and stop this long before the time limit; "
        "longer than a step and a save (default 120)",
    )
    add(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="slurm: how often the job goes back into the queue because a rank died (default 3)",
    )


def _add_environment(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--container", metavar="IMAGE", help="slurm: image with the environment, run by pyxis")
    add(
        "--mount",
        action="append",
        default=[],
        metavar="SOURCE:TARGET",
        help="slurm: one more mount for the container, beside the current directory",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment variable of the run; no secrets (export those in your shell)",
    )


def environment(pairs: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping. ValueError for anything else."""
    env = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--env: {pair!r} is not KEY=VALUE")
        env[key] = value
    return env


def seconds(time: str) -> int:
    """Slurm's M, M:S, H:M:S, D-H, D-H:M or D-H:M:S in seconds. ValueError naming --time."""
    found = TIME.fullmatch(time)
    if found is None:
        raise ValueError(f"--time: {time!r} is not a time; write D-HH:MM:SS, as 04:00:00")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    parts = [part for part in rest if part is not None]
    if days is not None:
        hours, minutes, secs = (parts + [0, 0])[:3]
        return ((days * 24 + hours) * 60 + minutes) * 60 + secs
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
