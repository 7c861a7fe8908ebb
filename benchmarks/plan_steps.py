"""The planner against steps of reinforcement learning that others measured, misses included.

NeMo-RL: rows of docs/about/performance-summary.md (tags v0.5.0 and v0.6.0), with the recipes of
examples/configs/recipes/llm/performance at these tags: whole configurations. Mean lengths are told;
those of prompts follow from the tokens a second that are. Responses are scored by the student and a
reference, in packs of the longest sequence. The rows with phases are of the blog post on NeMo-RL
0.3 (as quoted in its issue 959, with a second run of the same), recipes grpo_math_8B_megatron and
grpo_math_70B_megatron. From the 8B row two efficiencies were taken, from 235B-A22B on 128 H100 one.

verl: docs/advance/fully_async.md, Qwen3-30B-A3B-Base, GRPO; the layout from its script for the
asynchronous mode, where engines run without CUDA graphs. Lengths are not published.

The paper: 1.5B with a teacher of 7B, its published script (FSDP over all GPUs, engines on one GPU
each, everything recomputed). GPUs and lengths are not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.plan_published import beside
from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import build_for
from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.facts.figures import Efficiencies, find_gpu
from scope_megatron.instruments.plan.facts.known import KNOWN
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.models import Models
from scope_megatron.instruments.plan.workload import ResponseLengths, Workload

LLAMA, LLAMA_70B = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"
QWEN_32B, QWEN_30B = "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B"
QWEN_235B = "Qwen/Qwen3-235B-A22B"
DISTILLED = "deepseek-ai/DeepSeek-R1-Distill-Qwen-"


@dataclass(frozen=True)
class Step:
    """A published step: seconds by phase, or of all together."""

    name: str
    model: str
    gpu: str
    gpus: int
    prompts: int
    group: int
    mean: float  # tokens of a response
    prompt: float
    limit: int  # of prompt and response
    cut: tuple[int, int, int, int]  # tensor, context, expert, pipeline
    engine: int  # its tensor size
    seconds: dict[str, float]
    updates: int = 1
    scored: int = 1  # longest sequences of a pack of the scoring passes; of training: one
    rest: dict[str, Any] = field(default_factory=dict)


def _nemo(
    version: str,
    model: str,
    gpu: str,
    gpus: int,
    lengths: tuple[float, float],
    *more: Any,
    **rest: Any,
) -> Step:
    """A row of NeMo-RL's table: (mean response, mean prompt), cut, engine, seconds."""
    cut, engine, seconds = more
    large = model == QWEN_235B
    limit, prompts, updates = (8192, 16, 1) if large else (4096, 64, 4)
    if large or model == LLAMA:
        rest = {"recompute": "full"} | rest
    lag = "one step ahead" if rest.get("sampling") else "in turn"
    name = f"{model.rpartition('/')[2]}, {gpus} {gpu}, {lag} ({version})"
    told = seconds if isinstance(seconds, dict) else {"all": float(seconds)}
    numbers = (limit, cut, engine, told, updates, SCORED.get((version, model, gpu), 1))
    return Step(name, model, gpu, gpus, prompts, 32, *lengths, *numbers, rest)


# their logprob_batch_size, where it is not train_micro_batch_size
SCORED = {
    ("0.3", LLAMA, "h100"): 4,
    ("0.3", LLAMA_70B, "h100"): 4,
    ("0.5", LLAMA, "h100"): 2,
    ("0.5", LLAMA, "gb200"): 2,
    ("0.6", QWEN_30B, "h100"): 4,
    ("0.6", QWEN_30B, "gb200"): 2,
}
LOW = {"engine_share": 0.4}
PHASES_8B = {"rollout": 58.0, "score": 18.0, "train": 28.0, "sync": 5.0}
PHASES_70B = {"rollout": 84.0, "score": 18.0, "train": 28.0, "sync": 14.0}
AHEAD = {"engine_share": 0.8, "lag": 1}
NEMO = (
    _nemo("0.3", LLAMA, "h100", 8, (795, 127), (1, 1, 1, 2), 1, PHASES_8B, recompute="none"),
    _nemo("0.3", LLAMA_70B, "h100", 64, (398, 127), (4, 1, 1, 4), 4, PHASES_70B, sequence=False),
    _nemo("0.5", LLAMA, "h100", 16, (1019, 127), (1, 1, 1, 2), 1, 92.8),
    _nemo("0.5", LLAMA, "h100", 16, (1123, 127), (1, 1, 1, 1), 1, 64.8, sampling=8, **AHEAD),
    _nemo("0.5", LLAMA, "gb200", 8, (1066, 127), (1, 1, 1, 1), 1, 91.0),
    _nemo("0.5", QWEN_32B, "h100", 32, (3251, 104), (4, 1, 1, 4), 4, 376),
    _nemo("0.5", QWEN_32B, "h100", 64, (3252, 104), (4, 1, 1, 4), 4, 200, sampling=32, **AHEAD),
    _nemo("0.5", QWEN_32B, "gb200", 16, (3253, 104), (2, 1, 1, 1), 1, 381),
    _nemo("0.6", QWEN_30B, "h100", 32, (3203, 103), (1, 1, 8, 1), 2, 192),
    _nemo("0.6", QWEN_30B, "h100", 32, (3201, 103), (1, 1, 8, 2), 2, 152, sampling=16, **AHEAD),
    _nemo("0.6", QWEN_30B, "gb200", 16, (3199, 103), (1, 1, 16, 1), 1, 221),
    _nemo("0.6", QWEN_235B, "h100", 128, (5698, 118), (2, 2, 16, 8), 16, 395),
    _nemo("0.6", QWEN_235B, "h100", 256, (5713, 118), (2, 2, 16, 8), 16, 312),
    _nemo("0.6", QWEN_235B, "h100", 256, (5721, 118), (4, 1, 16, 8), 8, 231, sampling=128, **AHEAD),
    _nemo("0.6", QWEN_235B, "gb200", 64, (5709, 118), (2, 2, 16, 4), 8, 286, **LOW),
    _nemo("0.6", QWEN_235B, "gb200", 128, (5693, 118), (2, 2, 16, 4), 8, 345),
)
VERL = Step(
    "verl, Qwen3-30B-A3B, 128 h20",
    QWEN_30B,
    "h20",
    128,
    512,
    16,
    0,
    150,
    10240,
    (2, 2, 8, 1),
    4,
    {"rollout": 348.1, "score": 28.7 + 20.9, "train": 86.3},
    updates=4,
    rest={"engine_share": 0.7, "max_num_seqs": 256},
)
PAPER = {"rollout": 247.7, "student": 31.4, "teacher": 200.0, "train": 154.1}
PAPER_WHOLE = {"all": 641.9, "all of GRPO's": 459.0}  # GRPO's has no teacher
PAPER_GPUS = (("h100", 8), ("a100", 8), ("a100", 16))  # what agrees with its passes at any length


def planned_step(step: Step, reached: Efficiencies) -> RunPlan:
    """The step as this planner has it; a reference of the student's size scores everything."""
    shape, rest = ModelShape.of(KNOWN[step.model]), dict(step.rest)
    tensor, context, expert, pipeline = step.cut
    training = step.gpus - rest.get("sampling", 0)
    layout = RunLayout(
        **{"sequence": tensor > 1, "engine_share": 0.6, "max_num_seqs": 1024} | rest,
        tensor=tensor,
        context=context,
        expert=expert,
        pipeline=pipeline,
        data=training // (tensor * context * pipeline),
        distributed=True,
        microbatch=step.limit,
        engine_tensor=step.engine,
    )
    models = Models(shape, shape, build_for(True, True, shape))
    work = _work(step.prompts, step.group, step.mean, step.prompt, step.limit, step.updates)
    return RunPlan(models, layout, work, find_gpu(step.gpu), reached)


def planned_phases(step: Step, reached: Efficiencies) -> dict[str, float]:
    """Seconds by phase and of all, the scoring passes in packs of their own size."""
    plan = planned_step(step, reached)
    packs = replace(plan.layout, microbatch=step.scored * step.limit)
    phases = dict(plan.time.phases) | {"score": replace(plan, layout=packs).time.phases["score"]}
    whole, sampling = sum(phases.values()), phases["rollout"]
    return phases | {"all": max(sampling, whole - sampling) if plan.time.ahead else whole}


def _work(
    prompts: int, group: int, mean: float, prompt: float, limit: int, updates: int = 1
) -> Workload:
    longest = int(limit - prompt)
    lengths = ResponseLengths.lognormal(mean, 0.8, longest, "assumed", prompts * group)
    passes = {"student_pass": 1.0, "teacher_pass": 1.0, "updates": updates}
    return Workload(prompts * group, prompts, prompt, lengths, longest, limit, **passes)


def paper_step(gpu: str, gpus: int, mean: float, reached: Efficiencies) -> dict[str, float]:
    """Seconds by the paper's phases: the student's scores and the teacher's apart."""
    student, teacher = (ModelShape.of(KNOWN[f"{DISTILLED}{size}"]) for size in ("1.5B", "7B"))
    layout = RunLayout(
        data=gpus,
        distributed=True,
        microbatch=16384,
        recompute="full",
        engine_share=0.7,
        teacher_tensor=8,  # its server's: all GPUs of a node
    )
    models = Models(student, teacher, build_for(True, True, student))
    work = _work(256, 8, mean, 150, 14336)
    work = replace(work, limit=12288)
    time = RunPlan(models, layout, work, find_gpu(gpu), reached).time
    told = {name: time.parts[f"score/{name}"] for name in ("student", "teacher")}
    told["teacher"] += time.parts.get("score/tensor", 0.0)
    return told | {name: time.phases[name] for name in ("rollout", "train")}


def implied(seconds: Any, wanted: float, most: float) -> float:
    """The mean length at which ``seconds(mean)`` is what was published, as far as it can be."""
    low, high = 50.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(middle) < wanted else (low, middle)
    return high


def step_rows() -> Iterator[str]:
    """Markdown."""
    reached = Efficiencies()
    yield "| NeMo-RL | phase | seconds | error |\n|---|---|---|---|"
    for step in NEMO:
        planned = planned_phases(step, reached)
        for phase, seconds in step.seconds.items():
            yield f"| {step.name} | {phase} | {beside(planned[phase], seconds, '.1f')} |"
    yield "\n| lengths implied by a scoring pass | phase | seconds | error |\n|---|---|---|---|"
    scored = VERL.seconds["score"]

    def verl(mean: float) -> RunPlan:
        return planned_step(replace(VERL, mean=mean), reached)

    mean = implied(lambda mean: verl(mean).time.phases["score"], scored, 7000)
    for phase in ("rollout", "train"):
        planned, told = verl(mean).time.phases[phase], VERL.seconds[phase]
        yield f"| {VERL.name}, mean {mean:,.0f} | {phase} | {beside(planned, told, '.1f')} |"
    for gpu, gpus in PAPER_GPUS:

        def paper(mean: float, gpu: str = gpu, gpus: int = gpus) -> dict[str, float]:
            return paper_step(gpu, gpus, mean, reached)

        mean = implied(lambda mean: paper(mean)["student"], PAPER["student"], 12000)
        planned = paper(mean)
        whole = sum(planned.values()) + reached.step_s
        planned |= {"all": whole, "all of GRPO's": whole - planned["teacher"]}
        for phase, told in (PAPER | PAPER_WHOLE).items():
            if phase != "student":
                yield (
                    f"| the paper, were it {gpus} {gpu}, mean {mean:,.0f} | {phase} | "
                    f"{beside(planned[phase], told, '.1f')} |"
                )
