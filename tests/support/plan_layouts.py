"""Tensor memory of a real update by tenant, at any layout: what the planner is compared with.

Models of a few million random parameters on gloo ranks of a CPU. Parameters,
gradients and the optimizer are the storages that the student and the teacher hold; activations are
the peak of what operators make during the passes of an update (``parallel.memory.TensorPeak``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from scope_megatron.parallel.memory import TensorPeak

VOCAB = 4096
SEQUENCES, LENGTH, PROMPT = 2, 384, 64  # of one microbatch
STUDENT = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8}
STUDENT |= {"num_attention_heads": 8, "num_key_value_heads": 4}
TEACHER = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
TEACHER |= {"num_attention_heads": 12, "num_key_value_heads": 4}
COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 1024, "head_dim": 32}
EXPERTS = {"num_experts": 8, "moe_intermediate_size": 256, "num_experts_per_tok": 2}
EXPERTS |= {"norm_topk_prob": True}


@dataclass(frozen=True)
class Measured:
    """Bytes on one rank."""

    student: int
    gradients: int
    optimizer: int  # Adam's states, and float32 masters of half-precision parameters
    teacher: int
    activations: int  # most that the passes of an update hold at once, the loss head's included
    states: int = 0  # the teacher's hidden states, where an exact divergence keeps them
    gradients_between: int = 0  # gradients, between the updates
    scoring: int = 0  # most that the teacher's scoring makes


@dataclass(frozen=True)
class Case:
    """A layout to measure: ``settings`` are those of the configuration."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    mixture: bool = False
    microbatches: int = 4

    @property
    def world(self) -> int:
        sizes = ("tensor", "pipeline", "context", "data")
        product = 1
        for name in sizes:
            product *= int(self.settings.get(f"parallel.{name}", 1))
        return product


SEQUENCE = {"parallel.sequence": True}
EXACT = {"objective.kl": "reverse_kl"}
TWO = {"model.teacher": None, "model.teachers": ("teacher", "student")}  # by parity of the prompt
EACH = {  # the first over both ranks, the second brought while it scores
    "model.teacher": None,
    "model.teachers": (
        {"path": "teacher", "parallel": {"tensor": 2}},
        {"path": "student", "offload": "cpu"},
    ),
}
BOTH = {"teacher.parallel": {"tensor": 2, "pipeline": 2}}
# the layouts of the table in docs/planning.md
CASES = (
    Case("one rank"),
    Case("tensor 2", {"parallel.tensor": 2}),
    Case("tensor 2, sequence", {"parallel.tensor": 2, **SEQUENCE}),
    Case("tensor 4, sequence", {"parallel.tensor": 4, **SEQUENCE}),
    Case("pipeline 2", {"parallel.pipeline": 2}),
    Case("pipeline 4", {"parallel.pipeline": 4}),
    Case("pipeline 2, virtual 2", {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2}),
    Case(
        "tensor 2 x pipeline 2, sequence", {"parallel.tensor": 2, "parallel.pipeline": 2} | SEQUENCE
    ),
    Case("context 2", {"parallel.context": 2}),
    Case(
        "tensor 2 x context 2, sequence", {"parallel.tensor": 2, "parallel.context": 2} | SEQUENCE
    ),
    Case(
        "context 2, recompute selective",
        {"parallel.context": 2, "parallel.recompute": "selective"},
    ),
    Case("data 2", {"parallel.data": 2}),
    Case("data 2, distributed optimizer", {"parallel.data": 2, "optimizer.distributed": True}),
    Case("recompute selective", {"parallel.recompute": "selective"}),
    Case("recompute full", {"parallel.recompute": "full"}),
    Case(
        "recompute full, 4 layers", {"parallel.recompute": "full", "parallel.recompute_layers": 4}
    ),
    Case("optimizer offload", {"optimizer.offload": "rollout"}),
    Case("bfloat16", {"model.dtype": "bfloat16"}),
    Case(
        "bfloat16, states as parameters",
        {"model.dtype": "bfloat16", "optimizer.states": "parameters"},
    ),
    Case("exact reverse KL", {"objective.kl": "reverse_kl"}),
    Case("exact reverse KL, tensor 2", {"objective.kl": "reverse_kl", "parallel.tensor": 2}),
    Case("teacher tensor 2 x pipeline 2, exact", BOTH | EXACT | {"parallel.data": 4}),
    Case(
        "pipeline 2, teacher tensor 2, exact",
        {"teacher.parallel": {"tensor": 2}, "parallel.pipeline": 2} | EXACT,
    ),
    Case("two teachers", TWO, microbatches=8),
    Case("two teachers, each its own layout", EACH | {"parallel.data": 2}, microbatches=8),
    Case("two teachers, offload, exact", TWO | {"teacher.offload": "cpu"} | EXACT, microbatches=8),
    Case("teacher offload", {"teacher.offload": "cpu"}),
    Case("teacher offload, exact", {"teacher.offload": "cpu", "objective.kl": "reverse_kl"}),
    Case("mixture", {}, mixture=True),
    Case("mixture, tensor 2, sequence", {"parallel.tensor": 2, **SEQUENCE}, mixture=True),
    Case("mixture, data 2, expert 2", {"parallel.data": 2, "parallel.expert": 2}, mixture=True),
    Case(
        "mixture, tensor 2 x expert 2, sequence",
        {"parallel.tensor": 2, "parallel.expert": 2, **SEQUENCE},
        mixture=True,
    ),
    Case("mixture, recompute selective", {"parallel.recompute": "selective"}, mixture=True),
    Case("mixture, recompute full", {"parallel.recompute": "full"}, mixture=True),
)


def planned(root: Path, case: Case) -> list[Measured]:
    """What the planner says of a rank of every pipeline stage."""
    from scope_megatron.instruments.plan.activations import CPU
    from scope_megatron.instruments.plan.facts.shapes import find_shape
    from scope_megatron.instruments.plan.layout import layout_of
    from scope_megatron.instruments.plan.memory import rank_memory
    from scope_megatron.instruments.plan.models import Models
    from scope_megatron.instruments.plan.workload import ResponseLengths, Workload

    config = config_of(root, case)
    paths = [config.model.student, *(entry.path for entry in config.teachers.values())]
    student, teacher, *others = [find_shape(path, "model").shape for path in paths]
    exact = config.objective.kl != "sampled"
    element = 2 if config.model.dtype == "bfloat16" else 4
    build = replace(CPU, element=element)
    models = Models(student, teacher, build, exact, streaming_slots=1, others=tuple(others))
    layout = replace(layout_of(config), microbatch=SEQUENCES * LENGTH)
    responses = case.microbatches * SEQUENCES * layout.data
    lengths = ResponseLengths((float(LENGTH - PROMPT),), "made")
    work = Workload(
        responses, responses // 2, PROMPT, lengths, LENGTH - PROMPT, LENGTH, teacher_pass=0.5
    )
    found = []
    for stage in range(layout.pipeline):
        rank = rank_memory(models, layout, work, 0, stage)
        train, away, score = (rank.phases[name] for name in ("train", "rollout", "score"))
        found.append(
            Measured(
                student=train["student"],
                gradients=train["gradients"],
                optimizer=train["optimizer"] + train.get("masters", 0),
                teacher=train.get("teacher", 0),
                activations=train["activations"] + train.get("loss head", 0),
                states=train.get("teacher states", 0),
                gradients_between=away.get("gradients", 0),
                scoring=score["activations"]
                + score.get("teacher states", 0)
                # a teacher that stays is there before
                + (score.get("teacher", 0) - away.get("teacher", 0)),
            )
        )
    return found


def errors(got: list[Measured], expected: list[Measured]) -> dict[str, float]:
    """Largest relative error of the plan by tenant, over the stages: each stage's fullest rank."""
    each = len(got) // len(expected)
    worst: dict[str, float] = {}
    for stage, plan in enumerate(expected):
        ranks = got[stage * each : (stage + 1) * each]
        for name, value in vars(plan).items():
            seen = max(getattr(rank, name) for rank in ranks)
            error = value / seen - 1 if seen else (0.0 if value == 0 else float("inf"))
            if seen and abs(error) >= abs(worst.get(name, 0.0)):
                worst[name] = error
            elif not seen and value:
                worst[name] = error
    return worst


def make_models(root: Path) -> None:
    """student, moe (its mixture of experts) and teacher, as Hugging Face directories."""
    import transformers

    torch.manual_seed(0)
    for name, kind, sizes in (
        ("student", "Qwen3", STUDENT | COMMON),
        ("moe", "Qwen3Moe", STUDENT | COMMON | EXPERTS),
        ("teacher", "Qwen3", TEACHER | COMMON),
    ):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(root / name)


def config_of(root: Path, case: Case) -> Any:
    """The run's configuration."""
    from scope_megatron.config import Config

    values: dict[str, Any] = {
        "output_dir": str(root / "run"),
        "model": {
            "student": str(root / ("moe" if case.mixture else "student")),
            "teacher": str(root / "teacher"),
            "dtype": "float32",
        },
        "data": {"train": "none.jsonl", "max_prompt_tokens": PROMPT},
        "rollout": {"prompts_per_step": 64, "max_response_tokens": LENGTH - PROMPT},
        "objective": {"head": "fused", "old_logprobs": "rollout"},
        "train": {"steps": 1, "microbatch_tokens": SEQUENCES * LENGTH + 64},
        "logging": {"entropy": False},
    }
    for key, value in case.settings.items():
        section, name = key.split(".")
        if name == "teachers":
            value = {str(tag): _teacher(root, entry) for tag, entry in enumerate(value)}
        values.setdefault(section, {})[name] = value
    return Config.model_validate(values)


def _teacher(root: Path, entry: str | dict[str, Any]) -> dict[str, Any]:
    told = {"path": entry} if isinstance(entry, str) else entry
    return told | {"path": str(root / told["path"])}


def rollouts_of(case: Case, replica: int) -> list[Any]:
    """Responses of one length: every microbatch is full. Half are correct."""
    from scope_megatron.types import Prompt, Rollout, Verdict

    generator = torch.Generator().manual_seed(replica)
    made = []
    for number in range(case.microbatches * SEQUENCES):
        ids = torch.randint(0, VOCAB, (LENGTH,), generator=generator).tolist()
        made.append(
            Rollout(
                prompt=Prompt(number // 2, tuple(ids[:PROMPT]), "1", teacher=str(number // 2 % 2)),
                sample=number % 2,
                token_ids=ids[PROMPT:],
                engine_logprobs=[-1.0] * (LENGTH - PROMPT),
                finished=True,
                verdict=Verdict.CORRECT if number % 2 else Verdict.INCORRECT,
            )
        )
    return made


def measure(rank: int, world_size: int, root: Path, case: Case) -> Measured:
    """One rank's memory; the second of two updates, when the optimizer has its states."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel.offload import OptimizerPlace
    from scope_megatron.parallel.topology import create_topology

    config = config_of(root, case)
    names = ("tensor", "pipeline", "context", "sequence", "expert")
    topology = create_topology(**{name: getattr(config.parallel, name) for name in names})
    learner = Learner(config, topology)
    # tokens spread evenly over the experts, as a planner has to assume
    learner.student.model.config.moe_router_force_load_balancing = case.mixture
    peaks: list[tuple[int, int]] = []
    _watch_passes(peaks)
    student, frozen = learner.student, learner.frozen
    ddp = student.ddp
    place = OptimizerPlace(ddp, student.optimizer, config.optimizer.offload == "rollout")
    batch = None
    for _ in range(2):
        with place.resident():
            batch, scoring = _one_step(learner, rollouts_of(case, topology.dp_rank))
            buffers = [*ddp.buffers, *ddp.expert_parallel_buffers]
            gradients = _held(b.grad_data for b in buffers)
            teacher = _held(t for f in frozen for t in f.tensors())
            learner.rest_frozen(updates_to_come=False)
    assert batch is not None
    chain = getattr(student.optimizer, "chained_optimizers", [student.optimizer])
    states = [
        value
        for part in chain
        for state in part.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    return Measured(
        student=_held(student.model.parameters()),
        gradients=gradients,
        optimizer=_held([*states, *_masters(chain, student.model)]),
        teacher=teacher,
        activations=peaks[-1][0],
        states=peaks[-1][1] + _held(batch.teacher_hidden.values()),
        gradients_between=_held(b.grad_data for b in buffers),
        scoring=scoring,
    )


def _masters(chain: list[Any], model: torch.nn.Module) -> list[torch.Tensor]:
    """What the optimizers step that is no parameter of the model: float32 copies."""
    groups = [group for part in chain for group in part.optimizer.param_groups]
    stepped = [tensor for group in groups for tensor in group["params"]]
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    return [tensor for tensor in stepped if tensor.untyped_storage()._cdata not in own]


def _one_step(learner: Any, rollouts: list[Any]) -> tuple[Any, int]:
    """Score, weigh and update as the trainer does; (the batch, the peak of scoring)."""
    from scope_megatron.learn import observe
    from tests.support.steps import batch_of

    batch = batch_of(rollouts, learner.topology)
    metrics = observe.step_metrics(learner.config.teacher_tags)
    with TensorPeak() as tracker:
        learner.score(batch)
    learner.rest_frozen(updates_to_come=True)
    learner.update(batch, learner.weigh(batch), metrics)
    return batch, tracker.peak


def _watch_passes(peaks: list[tuple[int, int]]) -> None:
    """Have every forward-backward note the peak of what it makes, and the teacher's hidden states
    that the loss was given."""
    from scope_megatron.parallel import pipeline

    plain = pipeline.forward_backward

    def watched(model: Any, packs: Any, loss: Any, topology: Any) -> Any:
        with TensorPeak() as tracker:
            told = plain(model, packs, loss, topology)
        parts = [part for rows in loss.keywords["rows"] for part in rows.parts]
        given = [part.teacher_hidden for part in parts if part.teacher_hidden is not None]
        peaks.append((tracker.peak, _held(given)))
        return told

    pipeline.forward_backward = watched


def _held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a made model."""
    values: dict[str, Any] = json.loads((path / "config.json").read_text())
    return values
