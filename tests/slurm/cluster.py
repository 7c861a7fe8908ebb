"""A Slurm cluster of two nodes on this machine, for one test session.

munged, slurmctld and two slurmd run with configuration, state, sockets and ports of their own in
a directory of their own: a system's Slurm is neither used nor touched. Every daemon stays in the
foreground as a child of the test, so that it is stopped by its process id. No accounting.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")  # not this host's name: Debian's slurmd then ends at its start
START_S = 30.0

# cred_expire: a requeued job waits that long; less than 5 s means Slurm's default, 120 s.
CONFIG = """
ClusterName=scope-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why there can be no cluster here, or ""."""
    absent = [name for name in DAEMONS if _found(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed; apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "the daemons need root here"
    return ""


class Cluster:
    """``start`` it, submit with ``environment``, ``stop`` it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {"SLURM_CONF": str(directory / "slurm.conf")}

    def start(self) -> None:
        directory = self.directory
        directory.chmod(0o755)
        (directory / "state").mkdir()
        key = directory / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        config = CONFIG.format(host=socket.gethostname(), directory=directory, ports=_ports(3))
        (directory / "slurm.conf").write_text(config)
        self._daemon(
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={directory}/munge.socket", f"--pid-file={directory}/munged.pid"),
            *(f"--seed-file={directory}/munge.seed", f"--log-file={directory}/munged.log"),
        )
        self._until(lambda: (directory / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self._until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "two nodes")

    def ask(self, *command: str) -> str:
        """Output of a Slurm command; "" when it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def logs(self) -> str:
        """The ends of the daemons' logs, for a failed test."""
        files = sorted(self.directory.glob("*.log"))
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-15:])
            for file in files
        )

    def stop(self) -> None:
        """Cancel what still runs, then end the daemons, the last started one first."""
        jobs = self.ask("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.ask("scancel", "--signal=KILL", "--full", *jobs)
            self.ask("scancel", *jobs)
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and self.ask("squeue", "-h", "-o", "%A"):
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()

    def _daemon(self, name: str, *arguments: str) -> None:
        log = self.directory / f"{name}.{len(self.daemons)}.log"
        with log.open("wb") as output:
            self.daemons.append(
                subprocess.Popen(
                    [str(_found(name)), *arguments],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the tests, which stop the daemons
                )
            )

    def _until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            ended = [d for d in self.daemons if d.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come up\n{self.logs()}")
            time.sleep(0.1)


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _ports(count: int) -> list[int]:
    """Free ports. Between here and the daemon's bind another process could take one: rare."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
