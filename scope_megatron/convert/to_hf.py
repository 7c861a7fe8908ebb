"""A distributed checkpoint as a Hugging Face directory: python -m scope_megatron.convert.to_hf

For a program that serves the model and must not hold megatron-core's state: a process of its own,
one parameter in memory at a time, on the CPU. tools/convert_hf_checkpoint.py is for people.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scope_megatron.machine import settle

_SHARD_BYTES = 2 * 10**9


def convert(checkpoint: Path, base: Path, out: Path, dtype_name: str) -> None:
    """Write ``out``, complete or absent; an interrupted conversion goes on.

    ``base`` is the Hugging Face directory with config.json and the tokenizer. Raises ValueError
    for a checkpoint that is damaged or of another model.
    """
    from scope_megatron.checkpoint.manifest import MANIFEST, find_damage

    if (checkpoint / MANIFEST).exists() and (damage := find_damage(checkpoint)):
        raise ValueError(f"{checkpoint} is damaged: {damage}; copy it again")
    from scope_megatron.parallel import platform

    platform.initialize()  # before megatron-core's own imports
    from scope_megatron.convert import hf as hf_files
    from scope_megatron.convert.hf_write import export_streamed
    from scope_megatron.convert.mapping import Mapping
    from scope_megatron.convert.megatron_read import LazyCheckpoint
    from scope_megatron.convert.workspace import Workspace
    from scope_megatron.model.build import build_model, padded_vocab_size, read_hf_config
    from scope_megatron.parallel import topology

    config, dtype = read_hf_config(base), platform.resolve_dtype(dtype_name)
    topology.initialize_distributed()
    try:
        width = padded_vocab_size(config["vocab_size"], 1)
        place = topology.create_topology()
        model = build_model(
            config, place, dtype, trainable=False, padded_vocab=width, materialize=False
        )
        source = LazyCheckpoint(model, Mapping(config), checkpoint)
        identity = {"source": str(checkpoint), "dtype": dtype_name, "config": json.dumps(config)}
        workspace = Workspace(out, identity)
        try:
            export_streamed(source, workspace, dtype, _SHARD_BYTES, lambda nbytes: None)
            hf_files.copy_companions(base, workspace.files)
            hf_files.write_config(config, dtype, workspace.files)
            workspace.commit()
        finally:
            workspace.close()
    finally:
        topology.destroy()


def main(arguments: list[str]) -> int:
    """CHECKPOINT BASE OUT DTYPE; one line on stderr and exit code 2 when it cannot be done."""
    settle("cpu", 1)  # files to files
    checkpoint, base, out, dtype_name = arguments
    try:
        convert(Path(checkpoint), Path(base), Path(out), dtype_name)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
