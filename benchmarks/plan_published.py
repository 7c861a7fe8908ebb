"""The planner against rows that others measured on GPUs, misses included.

Megatron-LM's golden values come with their whole configuration (its repository,
tests/functional_tests, gpt3_7b_tp4_pp1_memory_speed and its sibling with a pipeline): 32 layers of
hidden size 4096, a GELU MLP four times as wide, biases, learned positions, dropout of 0.1, 8 groups
of keys for 32 heads, 131,073 tokens untied, Transformer Engine, the distributed optimizer, 8 H100.
Steps of reinforcement learning are published with fewer facts; what had to be assumed is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from scope_megatron.family import ModelShape
from scope_megatron.plan.activations import Build, build_for
from scope_megatron.plan.estimate import RunPlan
from scope_megatron.plan.facts.figures import Efficiencies, find_gpu
from scope_megatron.plan.facts.known import KNOWN
from scope_megatron.plan.layout import RunLayout
from scope_megatron.plan.memory import Models, activation_bytes
from scope_megatron.plan.timing import step_time
from scope_megatron.plan.workload import ResponseLengths, Workload

SEQUENCE, WIDTH = 8192, 16384
GPT = Build(gated=False, rotary=False, dropout=True, head_chunk=0)
HF = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 131073,
    "max_position_embeddings": SEQUENCE,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Golden:
    """A row of Megatron-LM's golden values: bytes as it prints them, seconds of an iteration."""

    name: str
    layout: RunLayout
    allocated: float
    most: float
    seconds: float


GOLDEN = (
    Golden(
        "tensor 4 x data 2, microbatch 2",
        RunLayout(tensor=4, data=2, distributed=True, microbatch=2 * SEQUENCE),
        20.66e9,
        57.14e9,
        1.116,
    ),
    Golden(
        "pipeline 4 (virtual 8) x data 2, microbatch 1",
        RunLayout(pipeline=4, virtual=8, data=2, distributed=True, microbatch=SEQUENCE),
        24.81e9,
        60.72e9,
        1.151,
    ),
)


def held_parameters(layout: RunLayout) -> int:
    """Of the first stage's rank: two matrices an MLP, biases, two norms with biases, positions."""
    hidden, tensor = HF["hidden_size"], layout.tensor
    assert isinstance(hidden, int)
    layer = hidden * (hidden + 2 * 1024) + hidden * hidden + 2 * hidden * WIDTH
    biases = (hidden + 2 * 1024 + WIDTH) // tensor + 2 * hidden + 4 * hidden
    layers = 32 // layout.pipeline
    padded = -(-131074 // (128 * tensor)) * 128 * tensor
    ends = padded * hidden // tensor * (2 if layout.pipeline == 1 else 1)
    return layers * (layer // tensor + biases) + ends + SEQUENCE * hidden


def golden_plan(row: Golden, reached: Efficiencies) -> tuple[float, float, float]:
    """(bytes held, most bytes, seconds) as planned."""
    shape = ModelShape.of(HF)
    work = Workload(
        responses=8,
        prompts=8,
        prompt_tokens=1,
        lengths=ResponseLengths((SEQUENCE - 1.0,), "given"),
        limit=SEQUENCE,
        longest=SEQUENCE,
        samples=False,
        teacher_pass=0.0,
    )
    held = held_parameters(row.layout) * (2 + 4 + 12 / row.layout.data)
    full = replace(work, responses=8)
    models = Models(shape, None, GPT)
    layers, head = activation_bytes(models, row.layout, full, 0)
    # a plain MLP of this width has the arithmetic of a gated one of two thirds
    timed = ModelShape.of(HF | {"intermediate_size": WIDTH * 2 // 3})
    time = step_time(Models(timed, None, GPT), row.layout, full, find_gpu("h100"), reached)
    return held, held + layers + head, time.total - reached.step_s


@dataclass(frozen=True)
class Step:
    """A published step of reinforcement learning: seconds by phase."""

    name: str
    student: str
    gpu: str
    layout: dict[str, Any]
    work: Workload
    seconds: dict[str, float]
    assumed: str
    teacher: str | None = None


def _work(prompts: int, group: int, mean: float, limit: int, **rest: Any) -> Workload:
    lengths = ResponseLengths.lognormal(mean, 0.8, limit, "assumed")
    return Workload(prompts * group, prompts, 200, lengths, limit, limit + 2048, **rest)


STEPS = (
    Step(
        "verl, Qwen3-30B-A3B, 128 H20, 512 x 16, limit 8k",
        "Qwen/Qwen3-30B-A3B",
        "h20",
        {"tensor": 2, "data": 64, "expert": 8, "sequence": True, "engine_tensor": 2},
        _work(512, 16, 4000, 8192, student_pass=1.0),
        {"rollout": 348.1, "score": 28.7 + 20.9, "train": 86.3},
        "mean length 4,000; tensor 2, expert 8, engine tensor 2",
        teacher="Qwen/Qwen3-30B-A3B",
    ),
    Step(
        "NeMo-RL, Qwen3-30B-A3B, 32 H100, mean length 3,203",
        "Qwen/Qwen3-30B-A3B",
        "h100",
        {"tensor": 2, "data": 16, "expert": 8, "sequence": True, "engine_tensor": 2},
        _work(64, 32, 3203, 4096, student_pass=1.0, teacher_pass=1.0),
        {"all": 192.0},
        "64 x 32 responses; tensor 2, expert 8, engine tensor 2; a reference is scored",
        teacher="Qwen/Qwen3-30B-A3B",
    ),
    Step(
        "NeMo-RL, Qwen3-235B-A22B, 128 H100, mean length 5,698",
        "Qwen/Qwen3-235B-A22B",
        "h100",
        {"tensor": 4, "data": 16, "pipeline": 2, "expert": 16, "sequence": True}
        | {"recompute": "full", "engine_tensor": 16, "engine_share": 0.85},
        _work(16, 32, 5698, 8192, student_pass=1.0, teacher_pass=1.0),
        {"all": 395.0},
        "16 x 32 responses; tensor 4, pipeline 2, expert 16, engine tensor 16; a reference scores",
        teacher="Qwen/Qwen3-235B-A22B",
    ),
)
PAPER = {"rollout": 247.7, "score": 31.4 + 200.0, "train": 154.1}
PAPER_GRPO = {"rollout": 247.7, "score": 31.4, "train": 154.1}


def planned_step(step: Step, reached: Efficiencies) -> dict[str, float]:
    """Seconds by phase."""
    shapes = [ModelShape.of(KNOWN[n]) if n else None for n in (step.student, step.teacher)]
    assert shapes[0] is not None
    models = Models(shapes[0], shapes[1], build_for(True, True, shapes[0]))
    layout = RunLayout(
        microbatch=step.work.longest, **({"distributed": True, "engine_share": 0.7} | step.layout)
    )
    plan = RunPlan(models, layout, step.work, find_gpu(step.gpu), reached)
    return plan.time.phases | {"all": plan.time.total}


def paper_step(reached: Efficiencies) -> dict[str, float]:
    """The paper's setting on 8 H100, which the paper does not say, at a mean of 5,000 tokens."""
    shapes = [
        ModelShape.of(KNOWN[f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{n}"]) for n in ("1.5B", "7B")
    ]
    models = Models(shapes[0], shapes[1], build_for(True, True, shapes[0]))
    layout = RunLayout(tensor=2, data=4, sequence=True, distributed=True, microbatch=16384)
    work = _work(256, 8, 5000, 12288, student_pass=1.0, teacher_pass=1.0)
    return RunPlan(models, layout, work, find_gpu("h100"), reached).time.phases


def published_rows() -> Iterator[str]:
    """Markdown."""
    reached = Efficiencies()
    yield "| Megatron-LM, 8 H100 | held GB | error | most GB | error | seconds | error |"
    yield "|---|---|---|---|---|---|---|"
    for row in GOLDEN:
        held, most, seconds = golden_plan(row, reached)
        yield (
            f"| {row.name} | {held / 1e9:.2f} ({row.allocated / 1e9:.2f}) | "
            f"{held / row.allocated - 1:+.1%} | {most / 1e9:.2f} ({row.most / 1e9:.2f}) | "
            f"{most / row.most - 1:+.1%} | {seconds:.3f} ({row.seconds}) | "
            f"{seconds / row.seconds - 1:+.1%} |"
        )
    yield ""
    yield "| step | phase | planned s | published s | error | assumed |"
    yield "|---|---|---|---|---|---|"
    for step in STEPS:
        planned = planned_step(step, reached)
        for phase, seconds in step.seconds.items():
            error = planned[phase] / seconds - 1
            yield (
                f"| {step.name} | {phase} | {planned[phase]:.1f} | {seconds:.1f} | {error:+.0%} | "
                f"{step.assumed} |"
            )
    planned = paper_step(reached)
    for phase, seconds in PAPER.items():
        mine, theirs = planned[phase] / planned["train"], seconds / PAPER["train"]
        if phase != "train":
            yield (
                f"| the paper, {phase} over update | ratio | {mine:.2f} | {theirs:.2f} | "
                f"{mine / theirs - 1:+.0%} | 8 H100, mean length 5,000; teacher scores all |"
            )
