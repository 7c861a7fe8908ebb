"""Convert a model between a Hugging Face directory and Megatron's distributed checkpoint.

    python tools/convert_hf_checkpoint.py --hf MODEL --out CKPT --to megatron
    python tools/convert_hf_checkpoint.py --megatron CKPT --out MODEL --to hf

A distributed checkpoint written by one process loads at any tensor and pipeline size, so one
process is enough. For a model that does not fit into one, start ``--tp`` x ``--pp`` of them:

    torchrun --nproc-per-node 4 tools/convert_hf_checkpoint.py --tp 2 --pp 2 ...

Writing a checkpoint holds one parameter in memory; writing Hugging Face files holds the model.
``--dry-run`` prints what would be written and needs no weights; ``--verify`` reads the output
back and compares every tensor with the source.

The checkpoint holds the model's sharded state dict under the key ``model``; config.json and the
tokenizer lie beside it. The output appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from megatron.core.models.gpt import GPTModel

    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.parallel.topology import Topology


class Layout(StrEnum):
    MEGATRON = "megatron"
    HF = "hf"


@dataclass(frozen=True)
class Job:
    """One conversion: where from, where to, and of which model."""

    to: Layout
    source: Path
    config_dir: Path  # config.json and the tokenizer
    out: Path
    config: dict[str, Any]
    dtype: torch.dtype


def main(
    to: Annotated[Layout, typer.Option(help="the layout to write")],
    out: Annotated[Path, typer.Option(help="directory to write; must not exist or be empty")],
    hf: Annotated[
        Path | None,
        typer.Option(help="Hugging Face directory; with --to hf: of config.json and tokenizer"),
    ] = None,
    megatron: Annotated[
        Path | None, typer.Option(help="distributed checkpoint to read (--to hf)")
    ] = None,
    tp: Annotated[int, typer.Option(help="tensor-parallel size of this conversion", min=1)] = 1,
    pp: Annotated[int, typer.Option(help="pipeline-parallel size of this conversion", min=1)] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; default: as in config.json")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print what would be written, and stop")] = False,
    verify: Annotated[
        bool, typer.Option(help="read the output back and compare every tensor with the source")
    ] = False,
) -> None:
    """Convert a model between a Hugging Face directory and Megatron's distributed checkpoint."""
    try:
        job = _job(to, hf, megatron, out, dtype)
        if dry_run:
            _print_plan(job)
        else:
            _convert(job, (tp, pp), verify)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _job(to: Layout, hf: Path | None, megatron: Path | None, out: Path, dtype: str | None) -> Job:
    source = hf if to is Layout.MEGATRON else megatron
    if source is None:
        needed = "--hf" if to is Layout.MEGATRON else "--megatron"
        raise ValueError(f"--to {to} reads from {needed}: give it a directory")
    config_dir = hf or source
    if not (config_dir / "config.json").is_file():
        raise ValueError(f"{config_dir}: there is no config.json")
    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype {dtype}: give float32 or bfloat16")
    from scope_megatron.config.modeldir import read_shape
    from scope_megatron.convert.directory import is_occupied

    if is_occupied(out):
        raise ValueError(f"{out} is not empty; choose another directory")
    read_shape(config_dir)  # refuses what is not implemented
    config = json.loads((config_dir / "config.json").read_text())
    stored = config.get("dtype") or config.get("torch_dtype")
    import torch

    bfloat16 = (dtype or stored) == "bfloat16"
    kind = torch.bfloat16 if bfloat16 else torch.float32
    return Job(to, source, config_dir, out, config, kind)


def _print_plan(job: Job) -> None:
    from scope_megatron.convert.mapping import Mapping
    from scope_megatron.convert.plan import describe

    typer.echo(f"{job.out} would hold, as {job.to}:")
    for line in describe(Mapping(job.config), job.dtype, job.to is Layout.MEGATRON):
        typer.echo(line)


def _convert(job: Job, sizes: tuple[int, int], verify: bool) -> None:
    _require_space(job)
    from scope_megatron.parallel import platform

    platform.initialize()  # before megatron-core's own imports
    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.parallel import topology
    from scope_megatron.parallel.model import build_model

    reader = ShardReader(job.source, job.config) if job.to is Layout.MEGATRON else None
    topology.initialize_distributed()
    try:
        layout = topology.create_topology(*sizes)
        filled = job.to is Layout.HF or verify
        model = build_model(job.config, layout, job.dtype, trainable=False, materialize=filled)
        with _progress(job, layout) as advance:
            if reader:
                _write_megatron(job, model, reader, layout, advance, verify)
            else:
                _write_hf(job, model, layout, advance, verify)
    finally:
        topology.destroy()
    if layout.is_main:
        typer.echo(f"wrote {job.out}")


def _require_space(job: Job) -> None:
    from scope_megatron.convert.mapping import Mapping
    from scope_megatron.convert.plan import total_bytes

    parent = job.out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    needed, free = total_bytes(Mapping(job.config), job.dtype), shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"{job.out} needs {needed / 2**30:.1f} GiB but {parent} has {free / 2**30:.1f} GiB "
            "free; choose another disk"
        )


@contextmanager
def _progress(job: Job, layout: Topology) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error, over the bytes of this rank's share of the model."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from scope_megatron.convert.mapping import Mapping
    from scope_megatron.convert.plan import total_bytes

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    hidden = not (console.is_terminal and layout.is_main)
    share = layout.tp_size * layout.pp_size if job.to is Layout.MEGATRON else 1
    total = total_bytes(Mapping(job.config), job.dtype) // share
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(f"to {job.to}", total=total)
        yield lambda nbytes: progress.update(task, advance=nbytes)


def _write_megatron(
    job: Job,
    model: GPTModel,
    reader: ShardReader,
    layout: Topology,
    advance: Callable[[int], None],
    verify: bool,
) -> None:
    import torch.distributed as dist

    from scope_megatron.convert import directory
    from scope_megatron.convert import hf as hf_files
    from scope_megatron.convert.megatron import save_streamed

    temporary = directory.temporary_path(job.out)
    try:
        if layout.is_main:
            directory.make_temporary(job.out)
        dist.barrier()
        save_streamed(model, reader, layout, job.dtype, temporary, advance)
        dist.barrier()
        if verify:
            _load_megatron(model, temporary)
            _verify(job, model, layout, job.source)
        if layout.is_main:
            hf_files.copy_companions(job.config_dir, temporary)
            hf_files.write_config(job.config, job.dtype, temporary)
            directory.commit_directory(temporary, job.out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, ValueError) or not isinstance(error, Exception):
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise OSError(f"cannot write {job.out}: {reason}") from error
    dist.barrier()


def _write_hf(
    job: Job, model: GPTModel, layout: Topology, advance: Callable[[int], None], verify: bool
) -> None:
    from scope_megatron.convert.hf import export_hf

    _load_megatron(model, job.source)
    export_hf(model, job.config, layout, job.config_dir, job.out, advance=advance)
    if verify:
        try:
            _verify(job, model, layout, job.out)
        except ValueError:
            shutil.rmtree(job.out, ignore_errors=True)
            raise


def _verify(job: Job, model: GPTModel, layout: Topology, directory: Path) -> None:
    """Every tensor of the model is, bit for bit, the one in the directory of safetensors."""
    from scope_megatron.convert.gather import iter_full_tensors
    from scope_megatron.convert.hf import ShardReader

    reader = ShardReader(directory, job.config)
    total, count = hashlib.sha256(), 0
    for name, tensor in iter_full_tensors(model, job.config, layout, 64 * 2**20):
        expected = reader.tensor(name).to(job.dtype)
        found = _digest(tensor)
        if found != _digest(expected):
            raise ValueError(f"{job.out}: tensor {name!r} does not read back as {directory} has it")
        total.update(found)
        count += 1
    if layout.is_main:
        typer.echo(f"verified {count} tensors, sha256 {total.hexdigest()}")


def _digest(tensor: torch.Tensor) -> bytes:
    import torch

    view = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(view.numpy()).digest()


def _load_megatron(model: GPTModel, source: Path) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException

    try:
        state = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(source))
    except (CheckpointingException, OSError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise ValueError(f"{source}: not a checkpoint of this model ({reason})") from error
    model.load_state_dict(state["model"])


if __name__ == "__main__":  # loading can start a process that imports this file again
    typer.run(main)
