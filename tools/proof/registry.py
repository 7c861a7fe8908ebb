"""The parts of the proof, the most telling first."""

from __future__ import annotations

from dataclasses import dataclass

MINUTES = 60.0


@dataclass(frozen=True)
class ProofPart:
    """One thing that only a GPU shows."""

    name: str
    shows: str
    place: str  # module:function, which gets a record.Proof
    needs: tuple[str, ...] = ()  # of machine.NEEDS, on a GPU
    needs_rehearsing: tuple[str, ...] = ()  # and on a CPU
    gpus: int = 1
    limit_s: float = 8 * MINUTES
    process: str = ""  # parts with the same name share a process
    rehearsed_with: tuple[tuple[str, str], ...] = ()  # environment of a rehearsal


def _part(name: str, shows: str, place: str, *needs: str, **more: object) -> ProofPart:
    """A part whose needs are the same on a CPU, but for vLLM's build."""
    real, rehearsing = (
        tuple(f"vllm for {device}" if need == "vllm" else need for need in needs)
        for device in ("GPUs", "CPUs")
    )
    return ProofPart(name, shows, f"tools.proof.parts.{place}", real, rehearsing, **more)  # type: ignore[arg-type]


PARTS = (
    _part(
        "kernels",
        "Triton kernels of the loss against float64, values and gradients",
        "kernels:kernels",
        "triton",
        limit_s=4 * MINUTES,
        rehearsed_with=(("TRITON_INTERPRET", "1"),),
    ),
    _part(
        "scorer",
        "log-probabilities scored 100 times behind a busy stream against the CPU's",
        "scorer:scorer",
        "megatron-core",
        "transformers",
        limit_s=5 * MINUTES,
    ),
    _part(
        "update",
        "one update, float32 and bfloat16, against transformers in float64",
        "update:update",
        "megatron-core",
        "transformers",
        limit_s=6 * MINUTES,
    ),
    _part(
        "engine",
        "two rounds of sleep, wake, transfer, generate; mismatch of engine and trainer",
        "engine:engine",
        "megatron-core",
        "transformers",
        "vllm",
        "math-verify",
        process="trainer",
    ),
    _part(
        "transfer",
        "weights to the engine in GB/s, against a copy of as many bytes",
        "engine:transfer",
        "megatron-core",
        "transformers",
        "vllm",
        "math-verify",
        process="trainer",
        limit_s=2 * MINUTES,
    ),
    _part(
        "step",
        "a step of a 0.5B student with a 1.5B teacher: time by phase, memory by tenant, MFU",
        "step:step",
        "megatron-core",
        "transformers",
        "vllm",
        "math-verify",
        process="trainer",
    ),
    _part(
        "head",
        "the loss head at 16k tokens and a vocabulary of 152k: time, GB/s, chunk sizes, Liger",
        "head:loss_head",
        limit_s=6 * MINUTES,
    ),
    _part(
        "layers",
        "megatron-core's local layers and Transformer Engine's against float32",
        "layers:layers",
        "megatron-core",
        "transformers",
        limit_s=5 * MINUTES,
    ),
    _part(
        "save",
        "an asynchronous save and a resume, with the memory before and after",
        "save:save",
        "megatron-core",
        "transformers",
        limit_s=6 * MINUTES,
    ),
    _part(
        "quickstart",
        "make quickstart's run: it learns, saves and exports",
        "quickstart:quickstart",
        "megatron-core",
        "transformers",
        "vllm",
        "math-verify",
    ),
    _part(
        "layouts",
        "NCCL: updates at every kind of layout, teachers' own included, against transformers",
        "update:layouts",
        "megatron-core",
        "transformers",
        gpus=2,
    ),
)
