"""Convert a model between a Hugging Face directory and Megatron's distributed checkpoint.

    python tools/convert_hf_checkpoint.py --hf MODEL --out CKPT --to megatron
    python tools/convert_hf_checkpoint.py --megatron CKPT --out MODEL --to hf

One process does it, with one parameter in memory at a time, in both directions.

The checkpoint loads at any tensor, pipeline and expert size: --tp, --pp and --ep say for which one
it is meant. They are checked against the model and shown in the plan; --tp decides how far the
vocabulary is padded.

--megatron also takes a checkpoint that training wrote (output_dir/checkpoints/step_...); its
optimizer is not read. It has no config.json: name the model's directory with --hf. Its index is a
pickle: convert only checkpoints that you trust.

The output appears under its name only when it is complete. Until then it grows in .NAME.tmp beside
it. After an interruption the same command goes on where it was, in both directions: finished files
are checked and kept, a half-written one is redone. Another source or other options start over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
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
    from scope_megatron.convert.megatron_read import LazyCheckpoint
    from scope_megatron.convert.workspace import Workspace

# Of what lies in an unfinished output: raised when files would come out differently.
OUTPUT_FORMAT = 1


class CheckpointKind(StrEnum):
    MEGATRON = "megatron"
    HF = "hf"


@dataclass(frozen=True)
class Conversion:
    """One conversion: where from, where to, and of which model."""

    to: CheckpointKind
    source: Path
    config_dir: Path  # config.json and the tokenizer
    out: Path
    config: dict[str, Any]
    dtype: torch.dtype
    sizes: tuple[int, int, int]  # tensor, pipeline, expert
    shard_bytes: int
    allow_pickle: bool

    def identity(self) -> dict[str, Any]:
        """Source and options: an unfinished output goes on only if it was begun with the same."""
        files = [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(self.source.iterdir())
            if path.is_file()
        ]
        return {
            "format": OUTPUT_FORMAT,
            "to": str(self.to),
            "source": str(self.source.resolve()),
            "files": files,
            "config": hashlib.sha256(json.dumps(self.config).encode()).hexdigest(),
            "dtype": str(self.dtype),
            "tensor": self.sizes[0],
            "shard_bytes": self.shard_bytes,
        }


def main(
    to: Annotated[CheckpointKind, typer.Option(help="the layout to write")],
    out: Annotated[Path, typer.Option(help="directory to write; must not exist or be empty")],
    hf: Annotated[
        Path | None,
        typer.Option(help="Hugging Face directory; with --to hf: of config.json and tokenizer"),
    ] = None,
    megatron: Annotated[
        Path | None, typer.Option(help="distributed checkpoint to read (--to hf)")
    ] = None,
    tp: Annotated[int, typer.Option(help="tensor-parallel size it is meant for", min=1)] = 1,
    pp: Annotated[int, typer.Option(help="pipeline-parallel size it is meant for", min=1)] = 1,
    ep: Annotated[int, typer.Option(help="expert-parallel size it is meant for", min=1)] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; default: as in config.json")
    ] = None,
    shard_size: Annotated[
        str, typer.Option(help="largest weight file to write, as 500MB or 2GB")
    ] = "2GB",
    allow_pickle: Annotated[
        bool,
        typer.Option(help="read pytorch_model*.bin, with torch's weights-only loader"),
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="print what would be written, and stop")] = False,
    verify: Annotated[
        bool, typer.Option(help="read the output back and compare every tensor with the source")
    ] = False,
) -> None:
    try:
        source = hf if to is CheckpointKind.MEGATRON else megatron
        job = _job(to, source, hf, out, dtype, (tp, pp, ep), _bytes(shard_size), allow_pickle)
        if dry_run:
            _print_plan(job)
        else:
            _convert(job, verify)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None


# typer keeps line breaks; paragraphs read better, and the commands keep theirs
main.__doc__ = re.sub(r"(\w|[,:.;])\n(?=\S)", r"\1 ", __doc__)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*(MB|GB)", text.strip().upper())
    if match is None or int(match[1]) < 1:
        raise ValueError(f"--shard-size {text}: give a size as 500MB or 2GB")
    return int(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2]]


def _job(
    to: CheckpointKind,
    source: Path | None,
    hf: Path | None,
    out: Path,
    dtype: str | None,
    sizes: tuple[int, int, int],
    shard_bytes: int,
    allow_pickle: bool,
) -> Conversion:
    if source is None:
        needed = "--hf" if to is CheckpointKind.MEGATRON else "--megatron"
        raise ValueError(f"--to {to} reads from {needed}: give it a directory")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("one process converts for any layout; start it without torchrun")
    config_dir = hf or source
    if not (config_dir / "config.json").is_file():
        fix = "" if hf else "; name the Hugging Face model's directory with --hf"
        raise ValueError(f"{config_dir}: there is no config.json{fix}")
    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype {dtype}: give float32 or bfloat16")
    from scope_megatron.config.modeldir import read_shape
    from scope_megatron.disk import is_occupied

    if is_occupied(out):
        raise ValueError(f"{out} is not empty; choose another directory")
    shape = read_shape(config_dir)  # refuses what is not implemented
    config = json.loads((config_dir / "config.json").read_text())
    stored = config.get("dtype") or config.get("torch_dtype")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # files to files: a device would only hold the model
    import torch

    from scope_megatron.convert.estimate import check_layout

    check_layout(shape, *sizes)
    bfloat16 = (dtype or stored) == "bfloat16"
    kind = torch.bfloat16 if bfloat16 else torch.float32
    return Conversion(to, source, config_dir, out, config, kind, sizes, shard_bytes, allow_pickle)


def _print_plan(job: Conversion) -> None:
    from scope_megatron.convert.estimate import describe, rank_bytes
    from scope_megatron.convert.mapping import Mapping

    typer.echo(f"{job.out} would hold, as {job.to}:")
    mapping = Mapping(job.config)
    for line in describe(mapping, job.dtype, job.to is CheckpointKind.MEGATRON):
        typer.echo(line)
    if max(job.sizes) > 1:
        size = rank_bytes(mapping, job.dtype, *job.sizes) / 2**30
        tensor, pipeline, expert = job.sizes
        typer.echo(
            f"about {size:.2f} GiB of it per rank at tensor {tensor} x pipeline {pipeline}, "
            f"experts over {expert}"
        )


def _convert(job: Conversion, verify: bool) -> None:
    _refuse_damage(job)
    from scope_megatron.parallel import platform

    platform.initialize()  # before megatron-core's own imports
    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.convert.mapping import Mapping
    from scope_megatron.convert.megatron_read import LazyCheckpoint
    from scope_megatron.model.build import build_model, padded_vocab_size
    from scope_megatron.parallel import topology

    source: ShardReader | LazyCheckpoint
    if job.to is CheckpointKind.MEGATRON:
        source = ShardReader(job.source, job.config, job.allow_pickle)
    topology.initialize_distributed()
    try:
        model = build_model(
            job.config,
            topology.create_topology(),
            job.dtype,
            trainable=False,
            padded_vocab=padded_vocab_size(job.config["vocab_size"], job.sizes[0]),
            materialize=False,
        )
        if job.to is CheckpointKind.HF:
            source = LazyCheckpoint(model, Mapping(job.config), job.source)
        _fill(job, model, source, verify)
    finally:
        topology.destroy()


def _refuse_damage(job: Conversion) -> None:
    """Checksums of the checkpoint to read, where it has them."""
    from scope_megatron.checkpoint.manifest import MANIFEST, find_damage

    if job.to is CheckpointKind.HF and (job.source / MANIFEST).exists():
        damage = find_damage(job.source)
        if damage is not None:
            raise ValueError(f"{job.source} is damaged: {damage}; copy it again")


def _fill(
    job: Conversion, model: GPTModel, source: ShardReader | LazyCheckpoint, verify: bool
) -> None:
    """Write, verify and name the output; what an error of the disk leaves can be gone on with."""
    from scope_megatron.convert.workspace import Workspace

    started = time.monotonic()
    workspace = Workspace(job.out, job.identity())
    try:
        if workspace.restarted:
            typer.echo("an unfinished conversion of another source or options is thrown away")
        elif workspace.finished_bytes:
            size = workspace.finished_bytes / 1e6
            typer.echo(f"going on: {size:.1f} MB of an interrupted conversion are kept")
        _require_space(job, workspace.finished_bytes)
        _write(job, model, source, workspace, verify)
        files = [path.stat().st_size for path in workspace.files.iterdir()]
        workspace.commit()
    except ValueError:
        workspace.discard()
        raise
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        if workspace.finished_bytes:
            reason += f"; repeat the command to go on, or remove {workspace.root}"
        else:
            workspace.discard()
        raise OSError(f"cannot write {job.out}: {reason}") from error
    finally:
        workspace.close()
    seconds, size = time.monotonic() - started, sum(files) / 1e6
    typer.echo(f"wrote {job.out}: {len(files)} files, {size:.1f} MB in {seconds:.1f} s")


def _require_space(job: Conversion, finished: int) -> None:
    from scope_megatron.convert.estimate import total_bytes
    from scope_megatron.convert.mapping import Mapping

    parent = job.out.absolute().parent  # exists: the temporary directory lies in it
    needed = total_bytes(Mapping(job.config), job.dtype) - finished
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OSError(f"{needed / 1e6:.1f} MB are needed but {parent} has {free / 1e6:.1f} MB free")


@contextmanager
def _progress(job: Conversion, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error, over the bytes of the model."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from scope_megatron.convert.estimate import total_bytes
    from scope_megatron.convert.mapping import Mapping

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    hidden = not console.is_terminal
    total = total_bytes(Mapping(job.config), job.dtype)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(what, total=total)
        yield lambda nbytes: progress.update(task, advance=nbytes)


def _write(
    job: Conversion,
    model: GPTModel,
    source: Any,
    workspace: Workspace,
    verify: bool,
) -> None:
    from scope_megatron.checkpoint.manifest import write_manifest
    from scope_megatron.convert import hf as hf_files
    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.convert.hf_write import compare_checkpoints, export_streamed
    from scope_megatron.convert.megatron_read import LazyCheckpoint
    from scope_megatron.convert.megatron_write import save_streamed

    to_megatron = job.to is CheckpointKind.MEGATRON
    with _progress(job, f"to {job.to}") as advance:
        if to_megatron:
            save_streamed(model, source, workspace, job.dtype, job.shard_bytes, advance)
        else:
            export_streamed(source, workspace, job.dtype, job.shard_bytes, advance)
    hf_files.copy_companions(job.config_dir, workspace.files)
    hf_files.write_config(job.config, job.dtype, workspace.files)
    if verify:
        with _progress(job, "verify") as advance:
            if to_megatron:
                megatron, hf = LazyCheckpoint(model, source.mapping, workspace.files), source
            else:
                megatron, hf = source, ShardReader(workspace.files, job.config)
            try:
                count, digest = compare_checkpoints(megatron, hf, job.dtype, advance)
            except ValueError as error:
                raise ValueError(f"{job.out}: {error}") from error
        typer.echo(f"verified {count} tensors, sha256 {digest}")
    if to_megatron:
        write_manifest(workspace.files)


if __name__ == "__main__":
    typer.run(main)
