"""A grader of the user's own: ``module:function``, called in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scope_megatron.rollout.verify.children import GraderProcesses
from scope_megatron.types import Answer, Verdict, accepted

WORKER = Path(__file__).with_name("custom_worker.py")


class CustomVerifier:
    """Calls ``function(response, answer)`` for each response and each of its accepted answers.

    True (or a number of at least 1) is CORRECT, False (or a smaller number) INCORRECT, None is
    REFUSED: the function will not judge. An exception is a CRASH, more than ``timeout_s`` seconds
    a TIMEOUT; both cost their own response and no other. The function is the user's: it sees this
    process's environment and module path, and may keep state between calls in its process.
    """

    def __init__(self, function: str, timeout_s: float = 5.0, workers: int = 1) -> None:
        search_path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        self.processes = GraderProcesses(
            [sys.executable, "-P", str(WORKER), function, search_path],
            timeout_s,
            workers,
            os.environ,
            cannot_start=f"verifier.custom: {function} cannot be loaded ({{reason}}); give "
            "module:function of an importable module",
        )

    def start(self) -> None:
        """Load the function. Raises RuntimeError when it cannot be loaded."""
        self.processes.start()

    def grade(self, items: list[tuple[str, Answer]]) -> list[Verdict]:
        """One verdict per (response text, reference answer or accepted answers), in order.

        Raises RuntimeError when the function cannot be loaded.
        """
        requests = {
            i: {"response": response, "answers": accepted(answer)}
            for i, (response, answer) in enumerate(items)
        }
        verdicts = self.processes.grade(requests)
        return [verdicts[i] for i in range(len(items))]

    def close(self) -> None:
        """End the processes."""
        self.processes.close()
