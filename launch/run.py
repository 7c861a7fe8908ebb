"""Launch a run or a sweep: python -m launch.run CONFIG --executor NAME [options] [key=value ...]

The configuration is validated here, before anything is submitted: a typo must not wait in a
queue. ``--dryrun`` prints what would run. ``--check`` runs `scope-megatron check` there instead
of training: is the environment, the data and the model where the job looks for them?

Every job has a directory, NEMORUN_HOME/experiments/scope-megatron/ID/NAME, with its script, its
logs and config.yaml, the resolved configuration that it runs with.

Exit status: 0 done (slurm: submitted), 1 the run failed or Slurm refused the job, 2 wrong usage.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import code, executors, hub, options, scripts, status
from launch.plan import LaunchRequest, PlannedJob, plan, warnings
from scope_megatron.config import ConfigError
from scope_megatron.outputs import latest_pointer

if TYPE_CHECKING:
    from nemo_run import Experiment

EXPERIMENT = "scope-megatron"  # of the experiments' folder under NEMORUN_HOME
CONFIG_NAME = "config.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options.parser().parse_intermixed_args(argv)
    return reported(lambda: launch(options.request(arguments)))


def reported(action: Callable[[], int]) -> int:
    """``action``'s exit status; 2 and one line for what the user has to correct."""
    try:
        return action()
    except ConfigError as error:
        message = error.one_line
    except ValueError as error:
        message = str(error)
    print(f"launch: error: {message}", file=sys.stderr)
    return 2


def launch(request: LaunchRequest) -> int:
    """Validate, build scripts and executors, hand both to nemo-run; the exit status."""
    slurm = request.cluster.kind == "slurm"
    jobs = plan(request)
    for warning in warnings(request, jobs):
        print(f"launch: warning: {warning}", file=sys.stderr)
    request = replace(
        request, cluster=hub.with_caches(request.cluster, [job.config for job in jobs])
    )
    for job in jobs:
        request.cluster.ranks_per_node(job.config.world_size, job.config.sampling_ranks)
    commit_and_tar = code.archive(request.allow_dirty) if request.package else None
    if slurm and not request.dryrun and shutil.which("sbatch") is None:
        raise ValueError(
            "--executor: there is no sbatch here; run this on a login node of the cluster, or add "
            "--dryrun"
        )
    nemo_run = executors.import_nemo_run()
    name = f"{EXPERIMENT}_{time.time_ns()}"
    directory = Path(nemo_run.config.get_nemorun_home()) / "experiments" / EXPERIMENT / name
    tasks = [make_task(request, job, directory / job.name) for job in jobs]
    with nemo_run.Experiment(
        EXPERIMENT,
        id=name,
        executor=tasks[0][1],
        log_level="WARN",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,  # asks sacct, which not every cluster has
    ) as experiment:
        for job, (text, executor) in zip(jobs, tasks, strict=True):
            experiment.add(
                nemo_run.Script(inline=text),
                executor=executor,
                name=job.name,
                tail_logs=not slurm,
                dependencies=[job.after] if job.after and slurm else None,
            )
        add_files(experiment, jobs, directory, commit_and_tar)
        if request.dryrun:
            print(dry_script(experiment, directory, jobs), end="")
            return 0
        if slurm:
            return submit(experiment, request)
        experiment.run(tail_logs=True, sequential=True)
    return report_runs(experiment)  # leaving the block waited for the runs


def make_task(request: LaunchRequest, job: PlannedJob, directory: Path) -> tuple[str, Any]:
    """The script of a rank (slurm) or of the run (local), and the executor for it."""
    cluster = request.cluster
    inside = Path(scripts.IN_CONTAINER) if cluster.container else directory  # as a rank sees it
    setup = code.use(shlex.quote(str(inside))) if request.package else ""
    if cluster.kind == "local":
        # On one machine the command starts its ranks on its own.
        run = f"exec {shlex.quote(sys.executable)} {command(job, directory)}\n"
        return scripts.head() + setup + run, executors.local(cluster)
    ranks = cluster.ranks_per_node(job.config.world_size, job.config.sampling_ranks)
    python = "python3" if cluster.container else shlex.quote(sys.executable)
    # A job that went back into the queue goes on from its last checkpoint, once there is one.
    latest = shlex.quote(str(latest_pointer(job.config.output_dir)))
    again = f"${{SLURM_RESTART_COUNT:+$([ ! -e {latest} ] || echo resume=auto)}}"
    resume = f" {again}" if job.verb == "train" else ""
    text = scripts.rank_script(
        f"{python} {command(job, inside)}{resume}",
        ranks_per_node=ranks,
        job_dir=str(inside),
        output_dir=job.config.output_dir,
        setup=setup,
    )
    if not cluster.container:
        executors.refuse_rewritten("CONFIG, the current directory or Python", text)
    return text, executors.slurm(
        cluster,
        ranks_per_node=ranks,
        setup=scripts.batch_setup(directory, cluster.nodes * ranks, cluster.max_restarts),
        mounts=[f"{Path.cwd()}:{Path.cwd()}"],
    )


def command(job: PlannedJob, directory: Path) -> str:
    """`-m scope_megatron VERB CONFIG`, quoted for a shell."""
    return shlex.join(["-m", "scope_megatron", job.verb, str(directory / CONFIG_NAME)])


def add_files(
    experiment: Experiment,
    jobs: list[PlannedJob],
    directory: Path,
    commit_and_tar: tuple[str, bytes] | None,
) -> None:
    """Have our files written once nemo-run has made its directories, before a job starts.

    It refuses directories that exist, and calls its own dryrun() between the two.
    """
    prepare = experiment.dryrun

    def dryrun(**options: bool) -> None:
        prepare(**options)
        for job in jobs:
            (directory / job.name / CONFIG_NAME).write_text(job.config.to_yaml())
            if commit_and_tar:
                code.unpack(*commit_and_tar, directory / job.name)

    experiment.dryrun = dryrun


def dry_script(experiment: Experiment, directory: Path, jobs: list[PlannedJob]) -> str:
    """Text of a dry run: the batch scripts (slurm), then the scripts of a rank."""
    order = "".join(f"# {job.name}: once {job.after} has succeeded\n" for job in jobs if job.after)
    experiment.dryrun(log=False, delete_exp_dir=False)
    files = [*sorted(directory.glob("*_sbatch.sh")), *sorted(directory.glob("*/scripts/*.sh"))]
    text = "".join(f"# ==> {file}\n{file.read_text().rstrip()}\n\n" for file in files)
    shutil.rmtree(directory)
    return order + text


def report_runs(experiment: Experiment) -> int:
    """Say how the runs on this machine ended."""
    for job in experiment.jobs:
        print(f"launch: {job.id}: {job.state.name}; logs in {job.executor.job_dir}")
    return 0 if all(job.state.name == "SUCCEEDED" for job in experiment.jobs) else 1


def submit(experiment: Experiment, request: LaunchRequest) -> int:
    """Hand the jobs to Slurm; print their numbers and how to follow, cancel and resume them."""
    from invoke.exceptions import UnexpectedExit

    refused = 0
    try:
        experiment.run(detach=True)
    except UnexpectedExit as error:  # of a sweep, other jobs may have been taken
        refused = 1
        reason = (error.result.stderr.strip() or str(error)).splitlines()[-1]
        hint = "" if request.cluster.account else "; does this cluster want --account?"
        print(f"launch: Slurm refused the job: {reason}{hint}", file=sys.stderr)
    numbers = []
    for job in experiment.jobs:
        if job.handle:
            numbers.append(job.handle.rpartition("/")[2])
            status.remember(Path(job.executor.job_dir), numbers[-1])
            print(f"launch: submitted job {numbers[-1]}: {job.id} in {job.executor.job_dir}")
    if not numbers:
        return 1
    print(f"launch: status:  python -m launch.status {' '.join(numbers)}")
    print(f"launch: follow:  python -m launch.status --follow {numbers[0]}")
    print(f"launch: save and stop, it goes on by itself:  scancel --signal=TERM {numbers[0]}")
    print(f"launch: cancel:  scancel {' '.join(numbers)}")
    print("launch: resume a run that was cancelled: this command again, with resume=auto")
    sys.stdout.flush()
    if request.follow and not refused:
        return status.follow(numbers[0])
    return refused


if __name__ == "__main__":
    sys.exit(main())
