"""Slurm, as far as this machine is part of a cluster. Nothing here is needed to train locally."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator

from scope_megatron.instruments.doctor.finding import Finding, Level, last_line, output_of

ANSWER_S = 15.0


def check_cluster() -> Iterator[Finding]:
    """sbatch, the controller, munge, the partitions, accounting, containers."""
    path = shutil.which("sbatch")
    if path is None:
        yield Finding("sbatch", Level.NOTE, "not here; only --executor slurm needs it")
        return
    version = output_of(["sbatch", "--version"], ANSWER_S)[1]  # silent without a slurm.conf
    yield Finding("sbatch", Level.OK, version or path)
    yield _munge()
    controller = _controller()
    yield controller
    if controller.level is Level.OK:
        yield _partitions()
        yield _accounting()
        yield _containers()


def _munge() -> Finding:
    status, out, err = output_of(["munge", "-n"], ANSWER_S)
    if status == 0:
        status, out, err = output_of(["sh", "-c", "munge -n | unmunge"], ANSWER_S)
    if status == 0 and "Success" in out:
        return Finding("munge", Level.OK, "a credential was made and read back")
    fix = (
        "start munged, with the cluster's /etc/munge/munge.key (unless Slurm uses another AuthType)"
    )
    return Finding("munge", Level.WARNING, last_line(err or out), fix)


def _controller() -> Finding:
    status, out, err = output_of(["scontrol", "ping"], ANSWER_S)
    if status == 0 and "UP" in out:
        return Finding("controller", Level.OK, last_line(out))
    fix = "ask for slurm.conf and a running slurmctld; jobs cannot be submitted from here"
    return Finding("controller", Level.WARNING, last_line(out or err), fix)


def _partitions() -> Finding:
    status, out, err = output_of(["sinfo", "-h", "-o", "%P %D %t"], ANSWER_S)
    if status != 0:
        return Finding("partitions", Level.WARNING, last_line(err))
    counts: Counter[str] = Counter()
    for line in out.splitlines():
        partition, nodes, state = line.split()
        counts[f"{partition} {state}"] += int(nodes)
    if not counts:
        return Finding("partitions", Level.WARNING, "none that you may use")
    return Finding("partitions", Level.OK, ", ".join(f"{key} {n}" for key, n in counts.items()))


def _accounting() -> Finding:
    status, _, err = output_of(["sacct", "-X", "-n"], ANSWER_S)
    if status == 0:
        return Finding("accounting", Level.OK, "sacct answers")
    return Finding("accounting", Level.NOTE, f"{last_line(err)}; status comes from squeue then")


def _containers() -> Finding:
    _, out, err = output_of(["srun", "--help"], ANSWER_S)
    if "--container-image" in out + err:
        return Finding("pyxis", Level.OK, "srun takes --container-image")
    return Finding(
        "pyxis", Level.NOTE, "not there; jobs run in this environment, without --container"
    )
