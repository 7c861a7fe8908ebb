"""Launching: the same training command on this machine or on a Slurm cluster, with nemo-run.

    executors.py  where a run executes: small factories local(), slurm()
    run.py        python -m launch.run CONFIG --executor local|slurm ...: validate, then launch

Nothing outside this package imports nemo_run, and this package imports it only when it launches:
a wrong command line is refused before that. Left out on purpose: SSH tunnels (run it on a login
node), nemo-run's packagers (the cluster's shared file system or a mount carries the code) and its
serialised Python tasks (the task is a shell script, the same that a person would write).
"""

from __future__ import annotations
