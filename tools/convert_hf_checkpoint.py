"""Convert a model between a Hugging Face directory and Megatron's distributed checkpoint.

    python tools/convert_hf_checkpoint.py --hf MODEL --out CKPT --to megatron
    python tools/convert_hf_checkpoint.py --megatron CKPT --out MODEL --to hf

A distributed checkpoint written by one process loads at any tensor and pipeline size, so one
process is enough. For a model that does not fit into one, start ``--tp`` x ``--pp`` of them:

    torchrun --nproc-per-node 4 tools/convert_hf_checkpoint.py --tp 2 --pp 2 ...

The checkpoint holds the model's sharded state dict under the key ``model``; config.json and the
tokenizer lie beside it. The output appears under its name only when it is complete.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from megatron.core.models.gpt import GPTModel

    from scope_megatron.parallel.topology import Topology


class Layout(StrEnum):
    MEGATRON = "megatron"
    HF = "hf"


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
) -> None:
    """Convert a model between a Hugging Face directory and Megatron's distributed checkpoint."""
    try:
        source, config_dir = _inputs(to, hf, megatron)
        _convert(to, source, config_dir, out, (tp, pp), dtype)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _inputs(to: Layout, hf: Path | None, megatron: Path | None) -> tuple[Path, Path]:
    """The directory to read weights from, and the one with config.json and the tokenizer."""
    source = hf if to is Layout.MEGATRON else megatron
    if source is None:
        needed = "--hf" if to is Layout.MEGATRON else "--megatron"
        raise ValueError(f"--to {to} reads from {needed}: give it a directory")
    config_dir = hf or source
    if not (config_dir / "config.json").is_file():
        raise ValueError(f"{config_dir}: there is no config.json")
    return source, config_dir


def _convert(
    to: Layout,
    source: Path,
    config_dir: Path,
    out: Path,
    sizes: tuple[int, int],
    dtype: str | None,
) -> None:
    from scope_megatron.parallel import platform

    platform.initialize()  # before megatron-core's own imports
    from scope_megatron.convert import hf as hf_files
    from scope_megatron.parallel import topology
    from scope_megatron.parallel.model import build_model, read_hf_config

    if hf_files.is_occupied(out):
        raise ValueError(f"{out} is not empty; choose another directory")
    config = read_hf_config(config_dir)
    stored = config.get("dtype") or config.get("torch_dtype")
    kind = platform.resolve_dtype(dtype or ("bfloat16" if stored == "bfloat16" else "float32"))
    topology.initialize_distributed()
    try:
        layout = topology.create_topology(*sizes)
        model = build_model(config, layout, kind, trainable=False)
        if to is Layout.MEGATRON:
            hf_files.load_hf_weights(model, source, config, layout)
            _save_megatron(model, config, kind, layout, config_dir, out)
        else:
            _load_megatron(model, source)
            hf_files.export_hf(model, config, layout, config_dir, out)
    finally:
        topology.destroy()
    if layout.is_main:
        typer.echo(f"wrote {out}")


def _save_megatron(
    model: GPTModel,
    config: dict[str, Any],
    dtype: torch.dtype,
    layout: Topology,
    config_dir: Path,
    out: Path,
) -> None:
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from scope_megatron.convert import hf as hf_files

    temporary = hf_files.temporary_path(out)
    if layout.is_main:
        hf_files.make_temporary(out)
    dist.barrier()
    dist_checkpointing.save({"model": model.sharded_state_dict()}, str(temporary))
    dist.barrier()
    if layout.is_main:
        hf_files.copy_companions(config_dir, temporary)
        hf_files.write_config(config, dtype, temporary)
        hf_files.commit_directory(temporary, out)
    dist.barrier()


def _load_megatron(model: GPTModel, source: Path) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException

    try:
        state = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(source))
    except CheckpointingException as error:
        raise ValueError(f"{source}: not a checkpoint of this model ({error})") from error
    model.load_state_dict(state["model"])


if __name__ == "__main__":  # saving starts a process that imports this file again
    typer.run(main)
