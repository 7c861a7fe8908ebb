"""Launch one run: python -m launch.run CONFIG --executor local|slurm [options] [key=value ...]

The configuration is validated here, before anything is submitted: a typo must not wait in a
queue. ``--dryrun`` prints what would run. ``--check`` runs `scope-megatron check` there instead
of training: is the environment, the data and the model where the job looks for them?

Exit status: 0 done (slurm: submitted), 1 the run failed or Slurm refused the job, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import executors
from scope_megatron.config import ConfigError, load_config

if TYPE_CHECKING:
    from nemo_run import Experiment

TITLE = "scope-megatron"  # of the experiments' folder under NEMORUN_HOME


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.run", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file, as for scope-megatron train")
    add("overrides", metavar="key=value", nargs="*", help="settings that replace the file's")
    add("--executor", choices=("local", "slurm"), default="local", help="default: local")
    add("--nodes", type=int, default=1, help="slurm: number of nodes (default 1)")
    add(
        "--gpus-per-node",
        type=int,
        default=0,
        metavar="M",
        help="GPUs, and ranks, of a node; 0 (default): no GPU, the ranks divided over the nodes",
    )
    add("--account", help="slurm: account to charge (required there)")
    add("--partition", help="slurm: partition (default: the cluster's)")
    add("--time", default="01:00:00", help="slurm: time limit, D-HH:MM:SS (default 01:00:00)")
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
    add("--check", action="store_true", help="run the check command instead of training")
    add("--dryrun", action="store_true", help="print what would run and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_intermixed_args(argv)
    try:
        return launch(arguments)
    except ConfigError as error:
        message = error.one_line
    except ValueError as error:
        message = str(error)
    print(f"launch: error: {message}", file=sys.stderr)
    return 2


def launch(arguments: argparse.Namespace) -> int:
    """Validate, build the script and the executor, hand both to nemo-run."""
    slurm = arguments.executor == "slurm"
    config = load_config(arguments.config, arguments.overrides)
    ranks = ranks_per_node(config.world_size, arguments)
    text = slurm_script(arguments, ranks) if slurm else local_script(arguments)
    executor = make_executor(arguments, text)
    if slurm and not arguments.dryrun and shutil.which("sbatch") is None:
        raise ValueError(
            "--executor slurm: there is no sbatch here; run this on a login node of the cluster, "
            "or add --dryrun"
        )
    nemo_run = executors.import_nemo_run()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(arguments.config).stem)
    with nemo_run.Experiment(
        TITLE,
        executor=executor,
        log_level="WARN",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,  # asks sacct, which not every cluster has
    ) as experiment:
        experiment.add(nemo_run.Script(inline=text), name=name, tail_logs=not slurm)
        if arguments.dryrun:
            print(dry_script(experiment), end="")
            return 0
        if slurm:
            return submit(experiment)
        experiment.run(tail_logs=True)
    state = experiment.jobs[0].state.name
    print(f"launch: {name}: {state}; logs in {experiment.jobs[0].executor.job_dir}")
    return 0 if state == "SUCCEEDED" else 1


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


def make_executor(arguments: argparse.Namespace, script: str) -> Any:
    """The nemo-run executor that the options ask for."""
    env = {}
    for pair in arguments.env:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--env: {pair!r} is not KEY=VALUE")
        env[key] = value
    if arguments.executor == "local":
        return executors.local(env)
    mounts = []
    if arguments.container:
        mounts = [f"{Path.cwd()}:{Path.cwd()}", *arguments.mount]
    else:
        executors.refuse_rewritten("CONFIG, the current directory or Python", script)
    return executors.slurm(
        account=arguments.account,
        partition=arguments.partition,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        time=arguments.time,
        container=arguments.container,
        mounts=mounts,
        env=env,
    )


def command(arguments: argparse.Namespace) -> str:
    """`-m scope_megatron train CONFIG key=value ...`, quoted for a shell."""
    verb = "check" if arguments.check else "train"
    config = str(Path(arguments.config).resolve())
    return shlex.join(["-m", "scope_megatron", verb, config, *arguments.overrides])


def local_script(arguments: argparse.Namespace) -> str:
    """The command itself: on one machine it starts its ranks on its own."""
    return script_head() + f"exec {shlex.quote(sys.executable)} {command(arguments)}\n"


def slurm_script(arguments: argparse.Namespace, ranks: int) -> str:
    """One torchrun per node. srun runs this on every node, so SLURM_NODEID is the node's own.

    A job that Slurm puts back into its queue (a node died) goes on from its last checkpoint.
    """
    python = "python3" if arguments.container else shlex.quote(sys.executable)
    resume = "" if arguments.check else " ${SLURM_RESTART_COUNT:+resume=auto}"
    return script_head() + (
        f"exec {python} -m torch.distributed.run \\\n"
        f'    --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" --nproc-per-node={ranks} \\\n'
        '    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" \\\n'
        f"    {command(arguments)}{resume}\n"
    )


def script_head() -> str:
    return f"set -euo pipefail\ncd {shlex.quote(str(Path.cwd()))}\n"


def dry_script(experiment: Experiment) -> str:
    """What a real launch would run: the batch script (slurm), then the script of a node."""
    experiment.dryrun(log=False, delete_exp_dir=False)
    job = experiment.jobs[0]
    directory = Path(job.executor.experiment_dir)
    files = [*directory.glob("*_sbatch.sh"), *Path(job.executor.job_dir).glob("scripts/*.sh")]
    text = "".join(f"# ==> {file}\n{file.read_text().rstrip()}\n\n" for file in files)
    shutil.rmtree(directory)
    return text


def submit(experiment: Experiment) -> int:
    """Hand the job to Slurm and return; print its number and how to follow it."""
    from invoke.exceptions import UnexpectedExit

    try:
        experiment.run(detach=True)
    except UnexpectedExit as error:
        reason = (error.result.stderr.strip() or str(error)).splitlines()[-1]
        print(f"launch: Slurm refused the job: {reason}", file=sys.stderr)
        return 1
    job = experiment.jobs[0]
    number = job.handle.rpartition("/")[2] if job.handle else "?"
    print(f"launch: submitted job {number}; squeue -j {number}; scancel {number}")
    print(f"launch: logs: {job.executor.job_dir}/log-*_{number}_*.out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
