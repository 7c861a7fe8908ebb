"""Save at one layout, load at another; damaged checkpoints are stepped over; saves that fail."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts, settings
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

Layouts = dict[str, dict[str, Any]]  # the first one saves, all of them load
LOADS: Layouts = {
    "same": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "virtual": {"pipeline": 2, "virtual_pipeline": 2},
    "data": {},
    "context": {"context": 2},
}
EXPERT_LOADS: Layouts = {
    "same": {"data": 2, "expert": 2},
    "virtual": {"pipeline": 2, "virtual_pipeline": 2},
    "data": {"data": 2},
    "expert-tensor": {"tensor": 2, "sequence": True, "expert": 2},
}


@pytest.mark.parametrize("distributed", [False, True], ids=["optimizer", "distributed-optimizer"])
@pytest.mark.parametrize(
    ("family", "loads"), [("llama-tied", LOADS), ("qwen3-moe", EXPERT_LOADS)], ids=["", "experts"]
)
def test_a_checkpoint_goes_on_at_any_layout(
    tmp_path: Path, family: str, loads: Layouts, distributed: bool
) -> None:
    make_tiny_model(family, tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    results = run_distributed_test(save_and_load, 2, tmp_path, loads, distributed, timeout=240)[0]
    saved, continued = results["saved"], results["continued"]
    for layout in loads:
        loaded, further = results[layout]
        for name, tensor in saved.items():
            assert torch.equal(loaded[name], tensor), (layout, name)
            torch.testing.assert_close(further[name], continued[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(saved[name], continued[name]) for name in saved)
    assert results["skipped"] == ["step_00000002"], "the newest was damaged: the one before is used"


def save_and_load(
    rank: int, world_size: int, root: Path, loads: Layouts, distributed: bool
) -> dict[str, Any]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron import outputs
    from scope_megatron.checkpoint import state as checkpoint

    output, results = root / "out", {}
    learner, topology = learner_at(root, loads["same"], distributed)
    saver = saver_of(learner, topology, output, asynchronous=True)
    update(learner, topology)
    progress = checkpoint.layout_progress(topology)
    trained_on = hold_the_next_write()
    saver.save(1, progress)
    results["saved"] = weights(learner, topology)
    update(learner, topology)  # while the write of what was before it has not begun
    results["continued"] = weights(learner, topology)
    assert not outputs.checkpoint_dir(output, 1).exists()
    trained_on.set()
    saver.save(2, progress)
    saver.wait()
    assert saver.saved_step == 2
    directory = outputs.checkpoint_dir(output, 1)
    dist.barrier()
    if rank == 0:
        damage(outputs.checkpoint_dir(output, 2))
    found, lines = checkpoint.find_valid(output)
    assert found == directory
    results["skipped"] = [Path(line.split(" is damaged")[0]).name for line in lines]
    for layout, parallel in loads.items():
        parallel_state.destroy_model_parallel()
        learner, topology = learner_at(root, parallel, distributed)
        assert checkpoint.load_checkpoint(state_of(learner, topology), directory)["step"] == 1
        loaded = weights(learner, topology)
        update(learner, topology)
        results[layout] = (loaded, weights(learner, topology))
    return results


def test_layers_with_an_extra_state_load_what_layers_without_wrote(tmp_path: Path) -> None:
    """Transformer Engine's layers have one, and a checkpoint may go from and to such layers."""
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    (result,) = run_distributed_test(save_and_load_extra_state, 1, tmp_path, timeout=120)
    assert result["offered"] and not result["saved"]
    assert result["steps"] == {"without": 1, "with": 1}


def save_and_load_extra_state(rank: int, world_size: int, root: Path) -> dict[str, Any]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state
    from torch.distributed.checkpoint import FileSystemReader

    from scope_megatron import outputs
    from scope_megatron.checkpoint import state as checkpoint

    steps, offered, saved = {}, [], []
    for name in ("without", "with"):  # the layers that save; the others load
        parallel_state.destroy_model_parallel()
        output = root / name
        learner, topology = learner_at(root, {}, False)
        if name == "with":
            offered = add_extra_state(learner.student.model)
        update(learner, topology)
        forbid_waiting_for_the_device()
        saver = saver_of(learner, topology, output, asynchronous=False)
        saver.save(1, checkpoint.layout_progress(topology))
        directory = outputs.checkpoint_dir(output, 1)
        entries = FileSystemReader(directory).read_metadata().state_dict_metadata
        saved += [key for key in entries if "_extra_state" in key]
        parallel_state.destroy_model_parallel()
        learner, topology = learner_at(root, {}, False)
        if name == "without":
            add_extra_state(learner.student.model)
        steps[name] = checkpoint.load_checkpoint(state_of(learner, topology), directory)["step"]
    return {"offered": offered, "saved": saved, "steps": steps}


def forbid_waiting_for_the_device() -> None:
    """Writing is for a thread, which would wait for GPU 0 and make a context on it."""
    from scope_megatron.checkpoint.snapshot import PendingWrite

    def fail(device: Any = None) -> None:
        raise AssertionError("writing a checkpoint waited for a device")

    def write(pending: PendingWrite) -> Any:
        before, torch.cuda.synchronize = torch.cuda.synchronize, fail
        try:
            return original(pending)
        finally:
            torch.cuda.synchronize = before

    original, PendingWrite.write = PendingWrite.write, write  # type: ignore[method-assign]


def add_extra_state(model: Any) -> list[str]:
    """What Transformer Engine's linear layers add to a model's sharded state. Returns the names."""
    from io import BytesIO

    from megatron.core.dist_checkpointing.mapping import ShardedObject

    original = model.sharded_state_dict
    names = [
        f"{name.removesuffix('weight')}_extra_state"
        for name in original()
        if name.endswith(("linear_qkv.weight", "linear_fc1.weight"))
    ]

    def with_extra_state(*args: Any, **kwargs: Any) -> dict[str, Any]:
        extra = {name: ShardedObject(name, BytesIO(), (1,), (0,)) for name in names}
        return original(*args, **kwargs) | extra

    model.sharded_state_dict = with_extra_state
    return names


def hold_the_next_write() -> threading.Event:
    """The next write begins when this event is set."""
    from scope_megatron.checkpoint.snapshot import PendingWrite

    event, plan = threading.Event(), PendingWrite.plan

    def wait_and_plan(pending: PendingWrite, group: Any) -> None:
        assert event.wait(60)
        plan(pending, group)

    PendingWrite.plan = wait_and_plan  # type: ignore[method-assign]
    return event


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_or_read_only_disk_costs_a_checkpoint_and_no_run(
    tmp_path: Path, small_disk: Path
) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    ranks = run_distributed_test(save_on_a_full_disk, 2, tmp_path, small_disk, timeout=120)
    assert [rank["saved"] for rank in ranks] == [[1, 1, 1, 4]] * 2, "the ranks agree every time"
    lines = ranks[0]["lines"]
    assert [line.split(" was not saved: ")[0] for line in lines] == [
        "the checkpoint of step 2",
        "the checkpoint of step 3",
    ]
    for line in lines:
        assert f"{small_disk / 'checkpoints'}" in line and "\n" not in line
    assert "No space left on device (ENOSPC)" in lines[0] and "MiB free" in lines[0]
    assert "Read-only file system (EROFS)" in lines[1]
    assert ranks[0]["valid"] == ["step_00000001"] * 3 + ["step_00000004"]
    assert ranks[0]["left"] == ["latest", "step_00000001", "step_00000004"], (
        "no debris, and nothing of the save that was given up"
    )


def save_on_a_full_disk(rank: int, world_size: int, root: Path, disk: Path) -> dict[str, Any]:
    """Steps 1 and 4 find room; 2 (in the background) and 3 (read-only, waited for) do not."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.checkpoint import state as checkpoint

    lines: list[str] = []
    learner, topology = learner_at(root, {"tensor": 2}, False)
    saver = saver_of(learner, topology, disk, asynchronous=True, say=lines.append)
    saved, valid = [], []
    filler = disk / "filler"
    for step in range(1, 5):
        dist.barrier()
        if rank == 0 and step == 2:
            fill(filler)
        if rank == 0 and step == 3:
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        if rank == 0 and step == 4:
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        dist.barrier()
        saver.save(step, checkpoint.layout_progress(topology), background=step != 3)
        saver.wait()
        saved.append(saver.saved_step)
        found, _ = checkpoint.find_valid(disk)
        valid.append(found.name if found else None)
    go = hold_the_next_write()
    saver.save(5, checkpoint.layout_progress(topology))
    threading.Timer(0.5, go.set).start()
    saver.close()  # as a run that ends by an error does
    dist.barrier()
    left = sorted(path.name for path in (disk / "checkpoints").iterdir())
    return {"saved": saved, "valid": valid, "lines": lines, "left": left}


def fill(path: Path) -> None:
    """Leave 200 kB of the disk."""
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(bytes(free - 200_000))


def learner_at(root: Path, parallel: dict[str, Any], distributed: bool) -> Any:
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel.topology import create_topology

    changes = {
        "optimizer.distributed": distributed,
        "optimizer.lr": 1e-2,
        "optimizer.eps": 1e-3,
    }
    changes |= {f"parallel.{name}": value for name, value in parallel.items()}
    of_topology = ("tensor", "pipeline", "sequence", "expert", "context")
    sizes = {name: value for name, value in parallel.items() if name in of_topology}
    topology = create_topology(**sizes)
    return Learner(settings(root, changes), topology), topology


def state_of(learner: Any, topology: Any) -> Any:
    from scope_megatron.checkpoint.state import TrainingState

    student = learner.student
    return TrainingState(student.model, student.optimizer, student.scheduler, topology)


def saver_of(
    learner: Any,
    topology: Any,
    output: Path,
    asynchronous: bool,
    say: Callable[[str], None] = print,
) -> Any:
    from scope_megatron.checkpoint.saver import Saver
    from scope_megatron.config import CheckpointConfig

    settings = CheckpointConfig(keep=2, asynchronous=asynchronous)
    return Saver(state_of(learner, topology), output, settings, say)


def update(learner: Any, topology: Any) -> None:
    groups = [rollouts()[g * SIZE : (g + 1) * SIZE] for g in range(GROUPS)]
    mine = [r for g in groups[topology.dp_rank :: topology.dp_size] for r in g]
    one_step(learner, mine)


def weights(learner: Any, topology: Any) -> dict[str, torch.Tensor]:
    from scope_megatron.convert.gather import iter_full_tensors

    student = learner.student
    full = iter_full_tensors(student.model, student.hf, topology, 1 << 20)
    return {name: tensor.clone() for name, tensor in full}


def damage(directory: Path) -> None:
    shard = max(directory.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
