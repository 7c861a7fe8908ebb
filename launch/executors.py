"""Executors of a run, local or Slurm: nemo-run executors with the traps of nemo-run 0.11 closed.

``slurm`` expects to be called on a login node whose file system the compute nodes share. The
traps, each with what closes it:

- ``account=None`` ends in an AttributeError while the script is generated, unless the job's name
  has a prefix: it has one here.
- ``export KEY=value`` is written without quotes, so a value's ``$(...)`` would run: quoted here.
- keys are written in upper case, which would set another variable: refused here.
- the job's log and the script file show every value (``set -x``): names of secrets are refused.
- ``srun`` arguments are written without quotes: a path with a blank is refused.
- without a container every ``/nemo_run`` in a script is rewritten: such paths are refused.
- ``head_node_ip`` comes from ``hostname --ip-address``, which is 127.0.0.1 on many systems, and
  the port is fixed: scripts.RENDEZVOUS takes Slurm's own address and a port from the job id.
- ``retries`` puts a job back after a wrong setting too: off, scripts.RESTART looks at the codes.
- ``srun --wait=60`` would end a rank that still saves a minute after another one: off.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from launch.cluster import Cluster, seconds

if TYPE_CHECKING:
    from nemo_run import LocalExecutor, SlurmExecutor

REWRITTEN = "/nemo_run"  # nemo-run replaces it with the job's directory
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)(API_?)?KEY($|_)")


def import_nemo_run() -> ModuleType:
    """nemo_run, without its dependencies' deprecation warnings. ValueError if it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("nemo_run")
    except ImportError as error:
        raise ValueError(
            f"nemo-run cannot be imported ({error}); run tools/setup_env.sh, or install "
            "requirements/launch.txt and the packages it names"
        ) from error


def local(cluster: Cluster) -> LocalExecutor:
    """Run on this machine, in the current directory."""
    return import_nemo_run().LocalExecutor(env_vars=dict(cluster.env))


def slurm(
    cluster: Cluster, *, ranks_per_node: int, setup: str, mounts: Sequence[str] = ()
) -> SlurmExecutor:
    """Run as one Slurm job with one task per rank: a nemo-run SlurmExecutor.

    ``setup`` is shell text for the batch script (scripts.batch_setup), ``mounts`` are more
    SOURCE:TARGET pairs for the container. The submitting shell's environment reaches the job by
    Slurm's own default, which is the way for secrets. Raises ValueError naming option and fix.
    """
    _check_size(cluster)
    exports = {key: shlex.quote(value) for key, value in cluster.env.items() if _allowed(key)}
    if cluster.container is not None:
        for text in (cluster.container, *mounts, *cluster.mounts):
            _refuse_blank("--container and --mount", text)
    nemo_run = import_nemo_run()
    home = nemo_run.config.get_nemorun_home()
    _refuse_blank("NEMORUN_HOME", home)
    if cluster.container is None:
        refuse_rewritten("NEMORUN_HOME", home)
    cpus = cluster.cpus_per_task
    settings: dict[str, Any] = {
        "account": cluster.account,
        "partition": cluster.partition,
        "job_name_prefix": "scope-megatron.",
        "nodes": cluster.nodes,
        "ntasks_per_node": ranks_per_node,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cpus,
        "time": cluster.time,
        "signal": f"TERM@{cluster.grace}",
        # a job whose predecessor failed must not wait for ever
        "additional_parameters": {"requeue": True, "kill_on_invalid_dep": "yes"},
        # srun does not inherit the second one
        "srun_args": ["--wait=0"] + ([f"--cpus-per-task={cpus}"] if cpus else []),
        "container_image": cluster.container,
        "container_mounts": [*mounts, *cluster.mounts] if cluster.container else [],
        "env_vars": exports,
        "setup_lines": setup,
        "packager": nemo_run.Packager(),  # copies nothing
        "tunnel": nemo_run.LocalTunnel(job_dir=""),  # "": NEMORUN_HOME/experiments, in place
        "poll_estimated_start_time": False,  # a thread that would outlive the submission
    }
    return nemo_run.SlurmExecutor(**settings | cluster.extra)


def _check_size(cluster: Cluster) -> None:
    if cluster.nodes < 1:
        raise ValueError(f"--nodes: is {cluster.nodes}, must be 1 or more")
    if cluster.gpus_per_node < 0:
        raise ValueError(f"--gpus-per-node: is {cluster.gpus_per_node}, must be 0 (none) or more")
    if cluster.cpus_per_task is not None and cluster.cpus_per_task < 1:
        raise ValueError(f"--cpus-per-task: is {cluster.cpus_per_task}, must be 1 or more")
    if cluster.max_restarts < 0:
        raise ValueError(f"--max-restarts: is {cluster.max_restarts}, must be 0 or more")
    limit = min(seconds(cluster.time), 65536)  # Slurm keeps the second one in 16 bits
    if not 1 <= cluster.grace < limit:
        raise ValueError(
            f"--grace: is {cluster.grace} s, must be 1 or more and less than {limit} s (--time)"
        )


def refuse_rewritten(name: str, text: str) -> None:
    """ValueError if nemo-run would rewrite a path of ``text`` (only without a container)."""
    if REWRITTEN in text:
        raise ValueError(
            f"{name}: a path holds '{REWRITTEN}', which nemo-run rewrites; rename that directory"
        )


def _refuse_blank(name: str, text: str) -> None:
    if re.search(r"\s", text):
        raise ValueError(f"{name}: {text!r} holds a blank, which breaks srun; use another path")


def _allowed(key: str) -> bool:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key):
        raise ValueError(f"--env: {key!r} must be upper case; nemo-run would export {key.upper()}")
    if SECRET.search(key):
        raise ValueError(
            f"--env: {key} looks like a secret and would stand in the job's log; "
            "export it in the shell you submit from: Slurm passes that on"
        )
    return True
