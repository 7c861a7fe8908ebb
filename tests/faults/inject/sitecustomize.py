"""Faults inside the ranks of a real run. Python imports this file by its name at its start.

`SCOPE_FAULT` holds JSON: ``rank`` (null: every one), ``steps`` (from 1), ``phase``, ``action``,
``marker``. At each of the steps the action is taken once: it leaves the file MARKER.RANK.STEP with
the time, so that a run that goes on is not hit again. Phases are those of the watchdog's Progress,
and "manifest": inside a save, when the files are there and their manifest is not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Fault:
    """What is to go wrong in this rank, and where the rank is."""

    def __init__(self, settings: dict[str, Any], rank: int) -> None:
        self.action, self.phase = settings["action"], settings["phase"]
        self._steps, self._marker = settings["steps"], settings["marker"]
        self._mine, self._rank = settings["rank"] in (None, rank), rank
        self._step, self._now = 0, "start"

    def enter(self, step: int, phase: str) -> None:
        self._step, self._now = step, phase

    def due(self, phase: str | None = None) -> bool:
        """Whether it is time; says so once for each of the steps."""
        if not self._mine or (phase or self._now) != self.phase or self._step not in self._steps:
            return False
        try:
            path = f"{self._marker}.{self._rank}.{self._step}"
            marker = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        os.write(marker, str(time.time()).encode())
        os.close(marker)
        return True

    def act(self) -> None:
        """Faults of the whole process."""
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.action == "hang":
            time.sleep(1e6)
        elif self.action == "raise":
            raise RuntimeError("injected: a defect")


PROCESS_ACTIONS = ("kill", "stop", "hang", "raise")


def on_enter(fault: Fault, module: ModuleType) -> None:
    """Progress.enter: tells where the rank is; faults of the process happen here."""
    original = module.Progress.enter

    def enter(progress: Any, phase: str, waits: bool = False) -> None:
        original(progress, phase, waits)
        fault.enter(progress.step, phase)
        if fault.action in PROCESS_ACTIONS and fault.due():
            fault.act()

    module.Progress.enter = enter


def on_manifest(fault: Fault, module: ModuleType) -> None:
    original = module.write_manifest

    def write_manifest(*args: Any, **kwargs: Any) -> Any:
        if fault.due("manifest"):
            fault.act()
        return original(*args, **kwargs)

    module.write_manifest = write_manifest


def on_gradients(fault: Fault, module: ModuleType) -> None:
    """One element of the gradient becomes NaN."""
    original = module.pipeline.forward_backward

    def forward_backward(student: Any, *args: Any, **kwargs: Any) -> Any:
        told = original(student, *args, **kwargs)
        if fault.due():
            next(iter(student.parameters())).main_grad.view(-1)[0] = float("nan")
        return told

    module.pipeline.forward_backward = forward_backward


def on_scores(fault: Fault, module: ModuleType) -> None:
    """The frozen model's scores of one response become NaN."""
    original = module.Learner._score_frozen

    def score_frozen(learner: Any, batch: Any) -> None:
        scorer = learner.scorer
        if not fault.due():
            return original(learner, batch)
        learner.scorer = _Poisoned(scorer)
        try:
            return original(learner, batch)
        finally:
            learner.scorer = scorer

    module.Learner._score_frozen = score_frozen


class _Poisoned:
    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    def score(self, *args: Any, **kwargs: Any) -> Any:
        scored = self._scorer.score(*args, **kwargs)
        scored.logprobs[min(scored.logprobs)] *= float("nan")
        return scored


def on_engine(fault: Fault, module: ModuleType) -> None:
    """vLLM raises in the middle of a rollout: once, or from then on."""
    original = module.VLLMEngine.generate

    def generate(engine: Any, *args: Any, **kwargs: Any) -> Any:
        if fault.due():
            core = engine._llm.llm_engine
            calls = iter(range(10**9))

            def faulty() -> Any:
                if next(calls) < 5:
                    return type(core).step(core)
                if fault.action == "engine once":
                    del core.step
                raise RuntimeError("injected: no memory for blocks")

            core.step = faulty
        return original(engine, *args, **kwargs)

    module.VLLMEngine.generate = generate


def on_verifier(fault: Fault, module: ModuleType) -> None:
    """A verifier process is killed or stopped while it works. Every response needs one."""
    from scope_megatron.rollout.verify.children import Child

    original = Child.send
    signum = signal.SIGKILL if fault.action == "verifier kill" else signal.SIGSTOP

    def send(child: Any, *args: Any) -> bool:
        sent = original(child, *args)
        if sent and fault.due():
            os.kill(child.pid, signum)
        return sent

    Child.send = send
    module.equal_as_text = lambda *texts: None


Patch = Callable[[Fault, ModuleType], None]
PATCHES: dict[str, tuple[str, Patch]] = {  # by action, besides the two that every fault needs
    "nan gradient": ("scope_megatron.learn.learner", on_gradients),
    "nan teacher": ("scope_megatron.learn.learner", on_scores),
    "engine once": ("scope_megatron.engine.vllm", on_engine),
    "engine always": ("scope_megatron.engine.vllm", on_engine),
    "verifier kill": ("scope_megatron.rollout.verify.mathematics", on_verifier),
    "verifier stop": ("scope_megatron.rollout.verify.mathematics", on_verifier),
}


EVERY_FAULT: dict[str, Patch] = {
    "scope_megatron.job.watchdog": on_enter,
    "scope_megatron.checkpoint.manifest": on_manifest,
}


class UnknownModule(Exception):
    """A patch names a module that does not exist: nothing would be injected."""


def require_module(name: str) -> None:
    """Raise UnknownModule unless ``name`` is a file of its package. Imports nothing."""
    package, *parts = name.split(".")
    spec = PathFinder.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not any(os.path.isfile(f"{os.path.join(place, *parts)}.py") for place in places):
        raise UnknownModule(f"injected faults: there is no module {name} to patch")


class Patcher:
    """An import hook: patches a module as soon as it was executed, before anyone uses it."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._patches = dict(EVERY_FAULT)
        if fault.action in PATCHES:
            name, patch = PATCHES[fault.action]
            self._patches[name] = patch
        for name in self._patches:
            require_module(name)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._patches:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute, patch = spec.loader.exec_module, self._patches[name]

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(self._fault, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "SCOPE_FAULT" in os.environ and "RANK" in os.environ:
    settings = json.loads(os.environ["SCOPE_FAULT"])
    try:
        patcher = Patcher(Fault(settings, int(os.environ["RANK"])))
    except UnknownModule as error:  # Python would only print what a sitecustomize raises
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(70)
    sys.meta_path.insert(0, patcher)  # type: ignore[arg-type]
