"""Launching: the same training command on this machine or on a Slurm cluster, with nemo-run.

    run.py        python -m launch.run CONFIG --executor NAME ...: validate, then launch
    nemo.py       python -m launch.nemo config=CONFIG cluster=NAME ...: the same in nemo-run's style
    status.py     python -m launch.status JOB: state and log, without an accounting database
    sites/        where runs can execute: one file per site, to be edited
    cluster.py    such a place as plain values
    options.py    the command line of run.py
    plan.py       the jobs of a launch: runs of a sweep, evaluations after them
    scripts.py    shell text: a rank's, and what the batch script does when ranks end
    executors.py  nemo-run's executors, with their traps closed
    hub.py        caches and settings of the hub, for jobs that use its names
    code.py       a copy of the code in the job's directory

Nothing outside this package imports nemo_run, and this package imports it only when it launches:
a wrong command line is refused before that. Left out on purpose: SSH tunnels (run it on a login
node) and nemo-run's serialised Python tasks (the task is a shell script, the same that a person
would write).
"""

from __future__ import annotations
