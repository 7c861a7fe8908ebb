"""Parts that behave badly, for the tests of the proof's runner."""

from __future__ import annotations

import os
import time

from tools.proof.record import Proof


def good(proof: Proof) -> None:
    proof.check("two", 2, at_most=3)
    proof.figure("size", proof.size("real", "toy"))
    proof.once("thing", lambda: object())


def wrong(proof: Proof) -> None:
    proof.check("error", float("nan"), at_most=1e-3)
    proof.check("other", 0.0, at_most=1e-3)


def slow_target(proof: Proof) -> None:
    proof.target("speed", 0.5, at_least=0.8)


def raises(proof: Proof) -> None:
    proof.once("thing", lambda: 1 / 0)


def asks_again(proof: Proof) -> None:
    proof.once("thing", lambda: 1)


def dies(proof: Proof) -> None:
    print("last words", flush=True)
    os._exit(7)


def hangs(proof: Proof) -> None:
    if os.fork() == 0:  # a process of its own that would outlive it
        (proof.folder / "child").write_text(str(os.getpid()))
    time.sleep(600)
