"""Where a run executes: nemo-run executors with the traps of nemo-run 0.11 closed.

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
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from launch.options import seconds

if TYPE_CHECKING:
    from nemo_run import LocalExecutor, SlurmExecutor

REWRITTEN = "/nemo_run"  # nemo-run replaces it with the job's directory
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)(API_?)?KEY($|_)")


def import_nemo_run() -> ModuleType:
    """nemo_run, without its dependencies' deprecation warnings. ValueError if it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nemo_run
    except ImportError as error:
        raise ValueError(
            f"nemo-run cannot be imported ({error}); run tools/setup_env.sh, or install "
            "requirements/launch.txt and the packages it names"
        ) from error
    return nemo_run


def local(env: Mapping[str, str] | None = None) -> LocalExecutor:
    """Run on this machine, in the current directory. ``env`` is added to the environment."""
    return import_nemo_run().LocalExecutor(env_vars=dict(env or {}))


def slurm(
    *,
    setup: str,
    account: str | None = None,
    partition: str | None = None,
    nodes: int = 1,
    ranks_per_node: int = 1,
    gpus_per_node: int = 0,
    cpus_per_task: int | None = None,
    time: str = "01:00:00",
    grace: int = 120,
    container: str | None = None,
    mounts: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> SlurmExecutor:
    """Run as one Slurm job with one task per rank.

    ``setup`` is shell text for the batch script (scripts.batch_setup). ``gpus_per_node`` 0 asks
    Slurm for none (a CPU cluster). ``time`` is Slurm's D-HH:MM:SS; ``grace`` seconds before it
    every rank gets SIGTERM. ``container`` is an image for pyxis, ``mounts`` are its SOURCE:TARGET
    pairs. ``env`` is exported in the job; the submitting shell's environment reaches it by
    Slurm's own default, which is the way for secrets. ``extra`` are more of SlurmExecutor's
    fields (qos, constraint, exclusive, ...). Raises ValueError naming the option and the fix.
    """
    _check_size(nodes, gpus_per_node, cpus_per_task, time, grace)
    exports = {key: shlex.quote(value) for key, value in (env or {}).items() if _allowed(key)}
    if container is not None:
        for text in (container, *mounts):
            _refuse_blank("--container and --mount", text)
    nemo_run = import_nemo_run()
    home = nemo_run.config.get_nemorun_home()
    _refuse_blank("NEMORUN_HOME", home)
    if container is None:
        refuse_rewritten("NEMORUN_HOME", home)
    settings: dict[str, Any] = {
        "account": account,
        "partition": partition,
        "job_name_prefix": "scope-megatron.",
        "nodes": nodes,
        "ntasks_per_node": ranks_per_node,
        "gpus_per_node": gpus_per_node or None,
        "cpus_per_task": cpus_per_task,
        "time": time,
        "signal": f"TERM@{grace}",
        "additional_parameters": {"requeue": True},
        "srun_args": ["--wait=0"]
        + ([f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []),  # not inherited
        "container_image": container,
        "container_mounts": list(mounts),
        "env_vars": exports,
        "setup_lines": setup,
        "packager": nemo_run.Packager(),  # copies nothing
        "tunnel": nemo_run.LocalTunnel(job_dir=""),  # "": NEMORUN_HOME/experiments, in place
        "poll_estimated_start_time": False,  # a thread that would outlive the submission
    }
    return nemo_run.SlurmExecutor(**settings | dict(extra or {}))


def _check_size(nodes: int, gpus: int, cpus: int | None, time: str, grace: int) -> None:
    if nodes < 1:
        raise ValueError(f"--nodes: is {nodes}, must be 1 or more")
    if gpus < 0:
        raise ValueError(f"--gpus-per-node: is {gpus}, must be 0 (no GPU) or more")
    if cpus is not None and cpus < 1:
        raise ValueError(f"--cpus-per-task: is {cpus}, must be 1 or more")
    limit = seconds(time)
    if not 1 <= grace < min(limit, 65536):  # Slurm keeps it in 16 bits
        raise ValueError(
            f"--grace: is {grace} s, must be 1 or more and less than --time ({limit} s) and 65536"
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
