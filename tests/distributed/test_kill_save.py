"""kill -9 at every boundary of a save, and damage to every file of a real checkpoint.

The test starts this file as a program, which forks one process per boundary: each saves step 2
over a directory with step 1, counts opens, writes, fsyncs, renames, mkdirs and removals, and kills
itself before the n-th (in the middle of it, where it is a write).
"""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
FLIPS = 20  # per file


def test_a_save_that_is_killed_anywhere_leaves_one_whole_step(tmp_path: Path) -> None:
    seen = run_program("kill", tmp_path)
    assert {"open", "write", *COUNTED} <= set(seen["boundaries"])
    assert seen["torn"] == [], "boundaries after which the newest whole checkpoint is no one step"
    assert set(seen["newest"]) == {1, 2}
    assert seen["newest"] == sorted(seen["newest"]), "once committed, step 2 stays"
    assert seen["saves_after_a_kill"] == [3] * len(seen["saves_after_a_kill"]) != []


def test_damage_to_any_file_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    seen = run_program("damage", tmp_path)
    assert {"common.pt", ".metadata", "metadata.json", "manifest.json"} < set(seen["files"])
    assert seen["unnoticed"] == []


def run_program(what: str, directory: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.distributed.test_kill_save", what, str(directory)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- the program


def kill_everywhere(directory: Path) -> dict[str, Any]:
    template = directory / "template"
    in_child(partial(save, template, 1))
    boundaries, newest, torn, after = [], [], [], []
    number = 0
    while True:
        number += 1
        output = directory / f"at_{number}"
        shutil.copytree(template, output)
        status = in_child(partial(killed_save, output, number), may_die=True)
        newest.append(content(output, torn, number))
        if status == 0:
            break
        boundaries.append((output / "boundary").read_text())
        if number % 8 == 0:
            in_child(partial(save, output, 3))
            after.append(content(output, torn, number))
        shutil.rmtree(output)
    return {
        "boundaries": boundaries,
        "newest": newest,
        "torn": torn,
        "saves_after_a_kill": after,
    }


def killed_save(output: Path, number: int) -> None:
    counter = Counter(number, output / "boundary", background=number % 2 == 1)
    save(output, 2, counter)


class Counter:
    """Kills this process at the ``number``-th boundary after :meth:`install`."""

    def __init__(self, number: int, note: Path, background: bool) -> None:
        self.left, self.note, self.background = number, note, background

    def install(self) -> None:
        for name in COUNTED:
            setattr(os, name, self.counting(name, getattr(os, name)))
        self.open, self.file_io = builtins.open, io.FileIO
        builtins.open = io.open = self.opening  # type: ignore[assignment]

    def reached(self, what: str) -> bool:
        self.left -= 1
        if self.left == 0:
            with self.file_io(self.note, "w") as file:
                file.write(what.encode())
        return self.left == 0

    def counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.reached(name):
                die()
            return function(*args, **kwargs)

        return call

    def opening(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" not in mode:
            return self.open(path, mode, *args, **kwargs)
        if self.reached("open"):
            die()
        counter = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if counter.reached("write"):
                    super().write(memoryview(data).cast("B")[: len(data) // 2])
                    die()
                return super().write(data)

        buffered = io.BufferedWriter(Raw(path, "w"), 1 << 16)
        return buffered if "b" in mode else io.TextIOWrapper(buffered)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save(output: Path, step: int, counter: Counter | None = None) -> None:
    """A save of a tiny state whose every number is ``step``."""
    import torch
    import torch.distributed as dist

    from scope_megatron.checkpoint.saver import Saver
    from scope_megatron.config import CheckpointConfig
    from tests.support.training_state import training_state

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    state = training_state(1, layers=1, hidden=64, vocab=128)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.fill_(step)
        for inner in state.optimizer.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                inner[name].fill_(step)
    saver = Saver(state, output, CheckpointConfig(keep=1), print)
    if counter:
        counter.install()
    saver.save(step, {}, float(step), background=counter is not None and counter.background)
    saver.wait()
    assert saver.saved_step == step


def content(output: Path, torn: list[int], number: int) -> int:
    """The one step that the newest whole checkpoint is of; else ``number`` is added to ``torn``."""
    from scope_megatron import outputs
    from scope_megatron.checkpoint import folder

    newest, _ = folder.newest_whole(output)
    assert newest is not None
    step = outputs.step_of(newest)
    values, common = read(newest)
    if values != {float(step)} or common != step:
        torn.append(number)
    return step


def read(directory: Path) -> tuple[set[float], int]:
    """(all numbers in the tensors of a checkpoint, the step that its progress names)."""
    import torch

    from tests.support.checkpoint_tensors import read_tensors

    tensors = read_tensors(directory).values()
    values = {float(value) for tensor in tensors for value in tensor.unique()}
    common = torch.load(directory / "common.pt", weights_only=False)
    return values, common["progress"]["step"]


def damage_everything(directory: Path) -> dict[str, Any]:
    from scope_megatron import outputs
    from scope_megatron.checkpoint import folder

    in_child(partial(save, directory, 1))
    shutil.copytree(outputs.checkpoint_dir(directory, 1), directory / "one")
    in_child(partial(save, directory, 2))
    (directory / "one").rename(outputs.checkpoint_dir(directory, 1))
    newest = outputs.checkpoint_dir(directory, 2)
    files = sorted(path.name for path in newest.iterdir())
    unnoticed = []
    for path in [newest / name for name in files] + [newest.parent / outputs.LATEST]:
        whole = path.read_bytes()
        for kind, changed in damages(whole):
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            if not noticed(directory, path):
                unnoticed.append(f"{path.name}: {kind}")
        path.write_bytes(whole)
    for extra in ("__1_0.distcp", "notes"):
        (newest / extra).write_bytes(b"")
        if not noticed(directory, newest / extra):
            unnoticed.append(f"{extra}: extra")
        (newest / extra).unlink()
    assert folder.newest_whole(directory) == (newest, []), "undone, nothing is wrong"
    return {"files": files, "unnoticed": unnoticed}


def damages(whole: bytes) -> list[tuple[str, bytes | None]]:
    """Flipped bits all over a file, a cut, nothing in it, more in it, no file."""
    chosen = random.Random(len(whole))
    found: list[tuple[str, bytes | None]] = []
    for bit in {chosen.randrange(8 * len(whole)) for _ in range(FLIPS)} | {0, 8 * len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        found.append((f"bit {bit}", bytes(flipped)))
    return [*found, ("cut", whole[:-1]), ("empty", b""), ("longer", whole + b"\n"), ("gone", None)]


def noticed(output: Path, path: Path) -> bool:
    """A damaged file of step 2: step 1 is used. A damaged `latest`: said, and step 2 is used."""
    from scope_megatron import outputs
    from scope_megatron.checkpoint import folder

    found, lines = folder.newest_whole(output)
    is_pointer = path.name == outputs.LATEST
    expected = outputs.checkpoint_dir(output, 2 if is_pointer else 1)
    gone = is_pointer and not path.exists()  # nothing is lost without it
    return found == expected and (gone or any(path.name in line for line in lines))


def in_child(function: Callable[[], None], may_die: bool = False) -> int:
    """Run in a fork: no interpreter start, no imports. Returns the exit code, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in ((0, -signal.SIGKILL) if may_die else (0,)):
        raise RuntimeError(f"a save ended with {code}")
    return code


def program() -> None:
    from scope_megatron.parallel import platform

    platform.initialize()
    # all that a save imports, before the forks: it would be most of what each of them does
    import tests.support.preload  # noqa: F401

    what, directory = sys.argv[1], Path(sys.argv[2])
    result = kill_everywhere(directory) if what == "kill" else damage_everything(directory)
    print(json.dumps(result))


if __name__ == "__main__":
    program()
