"""Commands of `scope-megatron` in processes forked from one that has imported what they need.

Importing torch, Megatron-core and vLLM takes as long as ten steps of a tiny model. Each command
still has a process of its own, with one thread. A fork has no threads of its parent and must not
know a GPU: nothing in imported.py may start the one or look at the other.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from benchmarks.rounds import ROOT


def run_command(arguments: list[str], log: Path, longest_s: float, device: str = "cpu") -> int:
    """The exit code of `scope-megatron *arguments`, its output appended to ``log``; raises
    TimeoutError after ``longest_s`` seconds."""
    os.environ |= {  # for the server of forks
        "OMP_NUM_THREADS": "1",
        "SCOPE_DEVICE": device,
        "TORCH_WARM_POOL": "0",  # importing torch's compiler would start processes
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # and pyarrow's allocator a thread
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.imported"])
    child = context.Process(target=_command, args=(arguments, log))
    child.start()
    child.join(longest_s)
    if child.exitcode is None:
        child.kill()
        raise TimeoutError(f"not done after {longest_s:.0f} s: {' '.join(arguments)}")
    return child.exitcode


def _command(arguments: list[str], log: Path) -> None:
    """In the child: as if the shell had started it in the repository, with its output in a file."""
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(ROOT)
    sys.argv = ["scope-megatron", *arguments]
    from scope_megatron.cli import main

    main()
