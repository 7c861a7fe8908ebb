"""The shell text of a launch: what a rank runs, and what the batch script adds around it.

Slurm starts one task per rank. No torchrun stands in between: it would kill its ranks 30 seconds
after a signal, and a rank that saves a large model needs longer.

A rank's exit code decides what becomes of the job (``RESTART``):

====================================  ==========================================================
0 everywhere                          done
143: asked to stop, and it saved      back into the queue, as often as that happens
ended by a signal, or without a word  back into the queue, at most ``--max-restarts`` times
3 peer lost, 4 hung, 6 engine died    the same
2: a setting is wrong                 the job ends
anything else                         the job ends
====================================  ==========================================================

nemo-run's own ``retries`` puts a job back after every code but 0, a wrong setting included, so it
stays off. A node that fails needs nothing from here: Slurm itself puts the job back.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from scope_megatron import exits
from scope_megatron.outputs import latest_pointer

# Runs in the batch shell, after nemo-run has set head_node. The address is the one by which Slurm
# itself reaches the node: a node's name need not be a host's name. Two jobs on one node get two
# ports; 10000-29999 lies below those that Linux gives to outgoing connections (32768 and up).
# SLURM_UNBUFFEREDIO, which nemo-run sets, gives every rank a terminal: a log with escape codes.
RENDEZVOUS = r"""
set +vx
unset SLURM_UNBUFFEREDIO
MASTER_ADDR=$(scontrol show --oneliner node "$head_node" | sed -n 's/.* NodeAddr=\([^ ]*\) .*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$head_node}
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
""".lstrip()

# nemo-run's script calls srun and then takes $? for the job's exit code: this stands in between.
# Every rank leaves one file with its code, so that the ranks that srun stops because another one
# failed are not taken for ranks that were asked to stop.
RESTART = r"""
job_dir={job_dir}
srun() {{
    local exits=$job_dir/exits/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}} code file word
    local ranks=0 asked='' died='' wrong='' failed=''
    mkdir -p "$exits"
    command srun "$@"
    code=$?
    for file in "$exits"/*; do
        [ -s "$file" ] || continue
        read -r word < "$file"
        ranks=$((ranks + 1))
        case $word in
            0) ;;
            {terminated}) asked=1 ;;
            {usage}) wrong=1 ;;
            {died}) died=1 ;;
            *) failed=1 ;;
        esac
    done
    [ "$ranks" -eq {ranks} ] || died=1
    if [ -n "$wrong" ]; then
        echo "launch: a setting is wrong: not restarted"
        return {usage}
    elif [ -n "$died" ]; then
        echo "$code" >> "$job_dir/exits/$SLURM_JOB_ID.failures"
        if [ "$(wc -l < "$job_dir/exits/$SLURM_JOB_ID.failures")" -gt {max_restarts} ]; then
            echo "launch: a rank died; not restarted: that happened more than {max_restarts} times"
            return $((code ? code : 1))
        fi
        echo "launch: a rank died: the job goes back into the queue"
    elif [ -n "$failed" ]; then
        echo "launch: a rank failed: not restarted"
        return $((code ? code : 1))
    elif [ -n "$asked" ]; then
        echo "launch: asked to stop, and saved: the job goes back into the queue"
    else
        return $code
    fi
    scontrol requeue "$SLURM_JOB_ID" || echo "launch: Slurm refused that; submit it again"
    return {terminated}
}}
""".lstrip()

# One rank. Where Slurm follows processes with cgroups it signals only a task's first process, which
# is this shell: it passes SIGTERM on. Elsewhere Python has it twice, which is no different.
# 143 is reported as 0 to srun, which otherwise would stop the ranks that are still saving.
RANK = r"""
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE={ranks_per_node}
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-1}}
{setup}asked='' again='' python=''
trap 'asked=1 again=1; [ -z "$python" ] || kill -TERM "$python" 2> /dev/null || true' TERM
{command} &
python=$!
[ -z "$asked" ] || kill -TERM "$python" 2> /dev/null || true
while again='' code=0; do
    wait "$python" || code=$?  # a signal ends the wait, not Python
    [ -n "$again" ] || break
done
if [ -n "$asked" ] && [ "$code" != 0 ] && [ "$code" != {usage} ]; then code={terminated}; fi
word=$code
if [ "$code" = {terminated} ]; then
    code=0
    [ -e {latest} ] || word={unsaved}
fi
echo "$word" > {job_dir}/exits/"$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}/$RANK"
exit "$code"
""".lstrip()

# What a rank's file says: its exit code, or NOTHING_SAVED when it was asked to stop before its
# first checkpoint. 134 to 139 are signals that end a process: SIGABRT to SIGSEGV, with SIGKILL.
NOTHING_SAVED = "unsaved"
SIGNALLED = "13[4-9]"
_CODES = sorted(code for code in exits.RESTARTABLE if code < 128)
WORDS = {
    "terminated": exits.TERMINATED,
    "usage": exits.USAGE,
    "unsaved": NOTHING_SAVED,
    "died": " | ".join([NOTHING_SAVED, *map(str, _CODES), SIGNALLED]),
}
IN_CONTAINER = "/nemo_run"  # where pyxis mounts the job's directory


def head() -> str:
    """First lines of every script: stop at errors, in the directory of the submission."""
    return f"set -euo pipefail\ncd {shlex.quote(str(Path.cwd()))}\n"


def batch_setup(job_dir: Path, ranks: int, max_restarts: int) -> str:
    """Lines for the batch script of a job whose ``ranks`` tasks run :func:`rank_script`."""
    return RENDEZVOUS + RESTART.format(
        job_dir=shlex.quote(str(job_dir)), ranks=ranks, max_restarts=max_restarts, **WORDS
    )


def rank_script(
    command: str, *, ranks_per_node: int, job_dir: str, output_dir: Path, setup: str = ""
) -> str:
    """Script of one Slurm task: ``command``, with torch.distributed's variables from Slurm's.

    ``job_dir`` is the job's directory as a rank sees it; ``setup`` is shell text before the
    command.
    """
    latest = shlex.quote(str(latest_pointer(output_dir)))
    return head() + RANK.format(
        command=command,
        ranks_per_node=ranks_per_node,
        job_dir=shlex.quote(job_dir),
        latest=latest,
        setup=setup,
        **WORDS,
    )
