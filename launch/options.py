"""The launcher's command line."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from launch import sites
from launch.plan import LaunchRequest


def parser() -> argparse.ArgumentParser:
    """Options of ``python -m launch.run``; None where the site's own value stays."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.run", description="Launch one run, or a sweep, with nemo-run."
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file, as for scope-megatron train")
    add("overrides", metavar="key=value", nargs="*", help="settings that replace the file's")
    add("--site", default="example", help="file in launch/sites (default example)")
    add("--executor", default="local", metavar="NAME", help="function in it (default local)")
    _add_runs(parser)
    _add_size(parser.add_argument_group("size (slurm)"))
    _add_environment(parser.add_argument_group("environment"))
    return parser


def _add_runs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="key=value,value",
        help="one run per value, in OUTPUT_DIR/KEY-VALUE; several: their product",
    )
    add("--then", choices=("evaluate",), help="after each run, evaluate the student it exports")
    add("--check", action="store_true", help="run the check command instead of training")
    add("--package", action="store_true", help="run a copy of HEAD's code from the job's directory")
    add("--allow-dirty", action="store_true", help="--package: leave out what is not committed")
    add("--follow", action="store_true", help="slurm: show the job's log until the job has ended")
    add("--dryrun", action="store_true", help="print what would run and stop")


def _add_size(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--nodes", type=int, help="number of nodes (default 1)")
    add(
        "--gpus-per-node",
        type=int,
        metavar="M",
        help="GPUs, and ranks, of a node; 0 (default): no GPU, the ranks divided over the nodes",
    )
    add("--gpu", metavar="NAME", help="their kind, as h100: warn of a run that will not fit")
    add(
        "--cpus-per-task",
        type=int,
        metavar="N",
        help="CPU cores of a rank (default: the cluster's, often 1)",
    )
    add("--account", help="account to charge, where the cluster wants one")
    add("--partition", help="partition (default: the cluster's)")
    add("--time", help="time limit, D-HH:MM:SS (default 01:00:00)")
    add(
        "--grace",
        type=int,
        metavar="SECONDS",
        help="ask the ranks to save and stop this long before the time limit; "
        "longer than a step and a save (default 120)",
    )
    add(
        "--max-restarts",
        type=int,
        metavar="N",
        help="how often the job goes back into the queue because a rank died (default 3)",
    )


def _add_environment(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--container", metavar="IMAGE", help="image with the environment, run by pyxis")
    add(
        "--mount",
        action="append",
        default=[],
        metavar="SOURCE:TARGET",
        help="one more mount for the container, beside the current directory",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment variable of the run; no secrets (export those in your shell)",
    )


def request(arguments: argparse.Namespace) -> LaunchRequest:
    """The parsed options as a request. ValueError for an unknown site, executor or pair."""
    cluster = sites.cluster(arguments.site, arguments.executor)
    names = [field.name for field in fields(cluster)]
    given = {n: getattr(arguments, n) for n in names if getattr(arguments, n, None) is not None}
    cluster = replace(
        cluster,
        **given | {"env": cluster.env | environment(arguments.env)},
        mounts=[*cluster.mounts, *arguments.mount],
    )
    rest = [field.name for field in fields(LaunchRequest) if field.name != "cluster"]
    return LaunchRequest(cluster=cluster, **{name: getattr(arguments, name) for name in rest})


def environment(pairs: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping. ValueError for anything else."""
    env = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--env: {pair!r} is not KEY=VALUE")
        env[key] = value
    return env
