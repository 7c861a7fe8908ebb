"""The planner against iterations of pre-training that others measured on GPUs, misses included.

Megatron-LM's golden values come with their whole configuration (its repository at d98e8a6,
tests/functional_tests/test_cases/gpt/gpt3_7b_*_memory_speed): 32 layers of hidden size 4096, a GELU
MLP four times as wide, biases, learned positions, dropout, 8 groups of keys for 32 heads, 131,073
tokens untied, Transformer Engine, the distributed optimizer, 8 GPUs. They run deterministic
kernels: attention's backward is then a half to a third as fast. What programs reach on a GB200 was
taken from these rows.

Table 5 of Korthikanti et al. (arXiv 2205.05198) has iterations on A100s up to 1,008 billion
parameters, with layouts in its table 3; attention was not fused then, so its scores are written,
and what goes between pipeline stages was cut over the tensor ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import Build
from scope_megatron.instruments.plan.facts.figures import Efficiencies, find_gpu
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.memory import activation_bytes
from scope_megatron.instruments.plan.models import Models
from scope_megatron.instruments.plan.seconds.timing import StepTime, step_time
from scope_megatron.instruments.plan.workload import ResponseLengths, Workload

GPT = Build(gated=False, rotary=False, dropout=True, head_chunk=0)
DETERMINISTIC = 0.3  # of the best matrix products, attention with a deterministic backward: by hand
UNFUSED = 0.75  # the same of attention as batched matrix products of 2,048 tokens: by hand


def gpt(hidden: int, layers: int, heads: int, groups: int, vocab: int, sequence: int) -> ModelShape:
    """A GPT with an MLP four times as wide."""
    return ModelShape.of(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "vocab_size": vocab,
            "max_position_embeddings": sequence,
            "tie_word_embeddings": False,
        }
    )


@dataclass(frozen=True)
class Iteration:
    """An iteration that others measured: bytes as they print them (0: not told), and seconds."""

    name: str
    gpu: str
    shape: ModelShape
    layout: RunLayout
    batch: int  # sequences
    sequence: int
    seconds: float
    allocated: float = 0.0
    most: float = 0.0
    fused: bool = True


_7B = gpt(4096, 32, 32, 8, 131073, 8192)
_TENSOR = RunLayout(tensor=4, data=2, distributed=True, overlap=True, microbatch=2 * 8192)
_PIPELINE = RunLayout(
    pipeline=4, virtual=8, data=2, distributed=True, overlap=True, microbatch=8192
)
GOLDEN = tuple(
    Iteration(f"{name}, {gpu}", gpu, _7B, layout, 8, 8192, seconds, allocated * 1e9, most * 1e9)
    for name, layout, gpu, seconds, allocated, most in (
        ("tensor 4 x data 2, microbatch 2", _TENSOR, "h100", 1.116, 20.66, 57.14),
        ("tensor 4 x data 2, microbatch 2", _TENSOR, "a100", 2.596, 20.63, 58.19),
        ("tensor 4 x data 2, microbatch 2", _TENSOR, "gb200", 0.853, 20.66, 58.22),
        ("pipeline 4 (virtual 8) x data 2, microbatch 1", _PIPELINE, "h100", 1.151, 24.81, 60.72),
        ("pipeline 4 (virtual 8) x data 2, microbatch 1", _PIPELINE, "a100", 2.948, 24.51, 60.49),
        ("pipeline 4 (virtual 8) x data 2, microbatch 1", _PIPELINE, "gb200", 0.787, 24.54, 60.52),
    )
)
# name, hidden, layers, heads, tensor, pipeline, virtual, batch, microbatch, seconds as recomputed
_TABLE_5 = (
    ("22B", 6144, 48, 64, 8, 1, 1, 4, 4, 1.42, 1.10),
    ("175B", 12288, 96, 96, 8, 8, 3, 64, 1, 18.13, 13.75),
    ("530B", 20480, 105, 128, 8, 35, 3, 280, 1, 49.05, 37.83),
    ("1008B", 25600, 128, 160, 8, 64, 1, 512, 1, 94.42, 71.49),
)


def recomputed() -> Iterator[Iteration]:
    """Table 5: everything made again, or attention alone with sequence parallelism."""
    for name, hidden, layers, heads, t, p, v, batch, micro, full, selective in _TABLE_5:
        shape = gpt(hidden, layers, heads, heads, 51200, 2048)
        base = RunLayout(tensor=t, pipeline=p, virtual=v, microbatch=micro * 2048)
        told = f"tensor {t} x pipeline {p}" + (f" (virtual {v})" if v > 1 else "")
        for again, layout, seconds in (
            ("full", replace(base, recompute="full"), full),
            ("attention", replace(base, sequence=True), selective),
        ):
            yield Iteration(
                f"{name}, {told}, recompute {again}",
                *("a100", shape, layout, batch, 2048, seconds),
                fused=False,
            )


def work_of(row: Iteration) -> Workload:
    """Sequences of one length, all of whose tokens are trained."""
    lengths = ResponseLengths((row.sequence - 1.0,), "given")
    limits = {"limit": row.sequence, "longest": row.sequence}
    return Workload(row.batch, row.batch, 1, lengths, **limits, samples=False, teacher_pass=0.0)


def held_parameters(row: Iteration) -> int:
    """Of the first stage's rank: two matrices an MLP, biases, two norms with biases, positions."""
    shape, tensor, pipeline = row.shape, row.layout.tensor, row.layout.pipeline
    hidden, width = shape.hidden, shape.ffn
    keys = 2 * shape.query_groups * shape.head_dim
    layer = hidden * (hidden + keys) + hidden * hidden + 2 * hidden * width
    biases = (hidden + keys + width) // tensor + 2 * hidden + 4 * hidden
    padded = -(-(shape.vocab + 1) // (128 * tensor)) * 128 * tensor
    ends = padded * hidden // tensor * (2 if pipeline == 1 else 1)
    return shape.layers // pipeline * (layer // tensor + biases) + ends + row.sequence * hidden


def planned_bytes(row: Iteration) -> tuple[float, float]:
    """(held between iterations, most)."""
    held = held_parameters(row) * (2 + 4 + 12 / row.layout.data)
    layers, head = activation_bytes(Models(row.shape, None, GPT), row.layout, work_of(row), 0)
    return held, held + layers + head


def planned_seconds(row: Iteration, reached: Efficiencies) -> float:
    """Without the host's part of a step of reinforcement learning."""
    attention = DETERMINISTIC if row.fused else UNFUSED
    reached = replace(reached, attention=attention)
    gpu, work, models = find_gpu(row.gpu), work_of(row), Models(row.shape, None, GPT)
    time = step_time(models, row.layout, work, gpu, reached)
    seconds = time.total - reached.step_s
    return seconds if row.fused else seconds + _unfused(row, time, reached)


def _unfused(row: Iteration, time: StepTime, reached: Efficiencies) -> float:
    """What attention in separate operators adds. All scores are made, not the causal half, and not
    again in the backward; written and read by products, softmax and dropout: 13 bytes forward, 19
    backward, 11 where it is made again, here always."""
    shape, layout, gpu = row.shape, row.layout, find_gpu(row.gpu)
    again = 1 if layout.recompute == "full" else 0
    planned = time.parts["train/attention"]
    products = planned * (2 * 4 / (3.5 + again) - 1)
    scores = shape.heads / layout.tensor * row.batch / layout.data * row.sequence**2
    moved = scores * 43 * shape.layers / layout.pipeline
    if not layout.sequence:
        products -= time.parts.get("train/pipeline", 0.0) * (1 - 1 / layout.tensor)
    return products + moved / (gpu.bandwidth * reached.memory * reached.train)


def pretraining_rows() -> Iterator[str]:
    """Markdown."""
    reached = Efficiencies()
    yield "| Megatron-LM, 8 GPUs | held GB | error | most GB | error | seconds | error |"
    yield "|---|---|---|---|---|---|---|"
    for row in GOLDEN:
        (held, most), seconds = planned_bytes(row), planned_seconds(row, reached)
        yield (
            f"| {row.name} | {beside(held / 1e9, row.allocated / 1e9, '.2f')} | "
            f"{beside(most / 1e9, row.most / 1e9, '.2f')} | "
            f"{beside(seconds, row.seconds, '.3f')} |"
        )
    yield "\n| Korthikanti et al., A100 | seconds | error |\n|---|---|---|"
    for row in recomputed():
        yield f"| {row.name} | {beside(planned_seconds(row, reached), row.seconds, '.2f')} |"


def beside(planned: float, published: float, form: str) -> str:
    return f"{planned:{form}} ({published:{form}}) | {planned / published - 1:+.1%}"
