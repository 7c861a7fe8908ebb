"""When the local launcher starts its ranks again."""

from __future__ import annotations

import signal

import pytest

from scope_megatron.exits import ABORTED, KILLED, LOST_RANK, USAGE
from scope_megatron.job import launcher


@pytest.mark.parametrize(
    ("codes", "signals", "starts", "result"),
    [
        ([KILLED, LOST_RANK, 0], 0, 3, 0),
        ([KILLED, KILLED, KILLED], 0, 3, KILLED),
        ([ABORTED, 0], 0, 2, 0),
        ([USAGE], 0, 1, USAGE),
        ([KILLED], 1, 1, KILLED),  # it was asked to end, and a rank did not live to do so
    ],
)
def test_restarts(
    monkeypatch: pytest.MonkeyPatch, codes: list[int], signals: int, starts: int, result: int
) -> None:
    begun: list[list[str]] = []

    def run(arguments: list[str], nproc: int, attempt: int, asked: list[int]) -> int:
        begun.append(arguments)
        asked += [signal.SIGTERM] * signals
        return codes[attempt]

    monkeypatch.setattr(launcher, "_run", run)
    assert launcher.start_ranks(["train", "x.yaml", "resume=never"], 2, restarts=2) == result
    assert len(begun) == starts
    assert begun[0][-1] == "resume=never"
    assert all(arguments == ["train", "x.yaml", "resume=auto"] for arguments in begun[1:])
