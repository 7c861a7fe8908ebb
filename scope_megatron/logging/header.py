"""The header of a run: what trains what, on which ranks, with which data."""

from __future__ import annotations

from scope_megatron.config import Config
from scope_megatron.hub import shown_path
from scope_megatron.parallel import platform
from scope_megatron.parallel.topology import Topology


def run_facts(config: Config, topology: Topology, prompts: int, skipped: int) -> dict[str, object]:
    """Label and value of each line; ``skipped`` rows of the data could not be used."""
    facts: dict[str, object] = {
        "algorithm": config.algorithm.name,
        "student": shown_path(config.model.student),
    }
    for tag, entry in config.teachers.items():
        name = f"teacher of {tag}" if tag else "teacher"
        facts[name] = f"{shown_path(entry.path)} (on the same ranks)"
    if config.needs_teacher and not config.loads_teacher:
        facts["teacher"] = "the student itself, on the privileged prompt"
    facts["device"] = platform.device_name()
    facts["layout"] = _layout(topology)
    if config.rollout and config.on_policy:
        rollout, ranks = config.rollout, config.sampling_ranks
        where = f"on {ranks} ranks of its own" if ranks else "in the same processes"
        facts["rollouts"] = (
            f"{rollout.prompts_per_step} prompts x {rollout.group_size} per step, vLLM "
            f"{where} (tensor {rollout.engine.tensor})"
        )
    facts["data"] = f"{prompts} prompts, {skipped} rows skipped"
    facts["output"] = config.output_dir
    return facts


def _layout(topology: Topology) -> str:
    layout = (
        f"{topology.world_size} ranks: tensor {topology.tp_size}, pipeline {topology.pp_size}, "
        f"data {topology.dp_size}"
    )
    if topology.cp_size > 1:
        layout += f", context {topology.cp_size}"
    return f"{layout}, expert {topology.ep_size}" if topology.ep_size > 1 else layout
