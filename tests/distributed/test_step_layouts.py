"""One update on fixed rollouts: every parallel layout agrees with transformers in float64.

The reference is the paper's formulas on transformers' models with torch's autograd, one sequence
at a time: it shares no code with the package. The learning rate and Adam's epsilon make the first
update a plain function of the gradient, so that weights after it are compared as well.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from scope_megatron.config import Config
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support import layout_table
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import VOCAB, make_tiny_model

GROUPS, SIZE = 6, 4
TAGS = ("math", "code")  # of even and odd prompts
LR, EPS = 1.0, 1.0
LAYOUTS = {  # name: (world, parallel settings, other settings)
    "one": (1, {}, {}),
    "one-small-microbatches": (1, {}, {"train.microbatch_tokens": 64}),
    "tensor": (2, {"tensor": 2}, {}),
    "tensor-sequence": (2, {"tensor": 2, "sequence": True}, {}),
    "pipeline": (2, {"pipeline": 2}, {"train.microbatch_tokens": 96}),
    "virtual": (2, {"pipeline": 2, "virtual_pipeline": 2}, {"train.microbatch_tokens": 96}),
    "data": (2, {"data": 2}, {}),
    "data-distributed-optimizer": (2, {"data": 2}, {"optimizer.distributed": True}),
    "tensor-pipeline": (4, {"tensor": 2, "pipeline": 2}, {"train.microbatch_tokens": 96}),
    "tensor-data": (4, {"tensor": 2, "data": 2}, {}),
}
# Small microbatches: the replicas come to different numbers of them, and must run the same.
SMALL = {"train.microbatch_tokens": 64}
EXPERT_LAYOUTS = {
    "expert-virtual": (
        4,
        {"pipeline": 2, "virtual_pipeline": 2, "tensor": 2, "sequence": True, "expert": 2},
        SMALL,
    ),
    "expert-data": (2, {"data": 2, "expert": 2}, SMALL),
    "expert-tensor": (2, {"tensor": 2, "sequence": True, "expert": 2}, {}),
    "expert-distributed": (4, {"data": 4, "expert": 2}, SMALL | {"optimizer.distributed": True}),
    "expert-pipeline": (4, {"pipeline": 2, "data": 2, "expert": 2}, SMALL),
    "expert-4": (4, {"tensor": 2, "data": 2, "sequence": True, "expert": 4}, SMALL),
}
PAIR = {"context": 2}
CONTEXT_LAYOUTS = {
    "context": (2, PAIR, {}),
    "context-small-microbatches": (2, PAIR, SMALL),
    "context-4": (4, {"context": 4}, {"train.microbatch_tokens": 96}),
    "context-tensor-sequence": (4, PAIR | {"tensor": 2, "sequence": True}, {}),
    "context-pipeline": (4, PAIR | {"pipeline": 2}, {"train.microbatch_tokens": 96}),
    "context-data-distributed": (4, PAIR | {"data": 2}, SMALL | {"optimizer.distributed": True}),
    "context-recompute": (2, PAIR | {"recompute": "selective"}, {}),
    "context-expert": (4, PAIR | {"tensor": 2, "sequence": True, "expert": 4}, SMALL),
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "scope": {},
    "scope-prompt-sum": {"objective.normalization": "prompt_sum", "objective.tau": 0.5},
    "scope-reverse-kl": {"objective.kl": "reverse_kl"},
    "scope-fused": {"objective.head": "fused"},
    "scope-reverse-kl-fused": {"objective.kl": "reverse_kl", "objective.head": "fused"},
    # no pass of the student before its update: weights from the engine's log-probabilities
    "scope-auto": {"objective.old_logprobs": "auto"},
    "scope-reverse-kl-auto-fused": {
        "objective.kl": "reverse_kl",
        "objective.head": "fused",
        "objective.old_logprobs": "auto",
    },
    # and where the engine's are of another distribution: a pass over the correct responses
    "scope-auto-top-k": {"objective.old_logprobs": "auto", "rollout.top_k": 3},
}
AUTO = ("scope-auto", "scope-reverse-kl-auto-fused", "scope-auto-top-k")
AUTO_LAYOUTS = ("one", "tensor-sequence", "pipeline", "tensor-data")
CASES = [
    (layout, objective)
    for layout in LAYOUTS
    for objective in OBJECTIVES
    if objective not in AUTO or layout in AUTO_LAYOUTS
]
ENGINE = "engine_logprobs.pt"  # what an engine would say: the reference's, in float32


def rollouts(engine: Path | None = None) -> list[Rollout]:
    """Whole groups: mixed, all correct, all wrong; one response cut off, one unjudged.

    ``engine`` holds their log-probabilities in order; 0 without it.
    """
    said = torch.load(engine) if engine is not None and engine.exists() else None
    rng = random.Random(0)
    out = []
    for group in range(GROUPS):
        tokens = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(2, 9)))
        prompt = Prompt(group, tokens, "1", source=TAGS[group % 2])
        for sample in range(SIZE):
            length = rng.randint(1, 30)
            right = {0: True, 1: False}.get(group, rng.random() < 0.5)
            verdict = Verdict.CORRECT if right else Verdict.INCORRECT
            out.append(
                Rollout(
                    prompt,
                    sample,
                    [rng.randrange(VOCAB) for _ in range(length)],
                    [0.0] * length if said is None else said[len(out)],
                    finished=(group, sample) != (2, 0),
                    verdict=Verdict.TIMEOUT if (group, sample) == (3, 1) else verdict,
                )
            )
    return out


def settings(root: Path, changes: dict[str, Any]) -> Config:
    raw: dict[str, Any] = {
        "output_dir": str(root / "out"),
        # float32 on CUDA too, where auto would be bfloat16
        "model": {
            "student": str(root / "student"),
            "teacher": str(root / "teacher"),
            "dtype": "float32",
        },
        "data": {"train": "unused.jsonl", "max_prompt_tokens": 16},
        "rollout": {
            "prompts_per_step": GROUPS,
            "group_size": SIZE,
            "max_response_tokens": 32,
            "temperature": 0.7,
        },
        "optimizer": {"lr": LR, "eps": EPS, "weight_decay": 0.0, "clip_grad": 0.0},
        "objective": {"old_logprobs": "recompute"},
        "train": {"steps": 4, "microbatch_tokens": 256},
    }
    for key, value in changes.items():
        section, name = key.split(".")
        raw.setdefault(section, {})[name] = value
    return Config.model_validate(raw)


def reference(root: Path, config: Config) -> dict[str, Any]:
    """Loss, and weights after one Adam update, in float64 with transformers."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    student = load(root / "student", dtype=torch.float64, **eager)
    teachers = {
        tag: load(entry.path, dtype=torch.float64, **eager)
        for tag, entry in config.teachers.items()
    }
    responses = [r for r in rollouts() if r.verdict is not Verdict.TIMEOUT]
    said: list[list[float]] = [[0.0] * len(r.token_ids) for r in rollouts()]
    places = [i for i, r in enumerate(rollouts()) if r.verdict is not Verdict.TIMEOUT]
    right = [r.finished and r.verdict is Verdict.CORRECT for r in responses]
    objective, loss = config.objective, torch.zeros((), dtype=torch.float64)
    losses, means = [], []
    for response, ok in zip(responses, right, strict=True):
        prompt, ids = list(response.prompt.token_ids), response.token_ids
        rows = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
        tokens = torch.tensor([prompt + ids])
        logp = (student(tokens).logits[0, rows] / config.rollout.temperature).log_softmax(-1)
        teacher = teachers.get(response.prompt.tag) or teachers[""]
        logq = teacher(tokens).logits[0, rows].detach().log_softmax(-1)
        at = torch.tensor(ids)[:, None]
        own, theirs = logp.gather(1, at)[:, 0], logq.gather(1, at)[:, 0]
        said[places[len(losses)]] = own.detach().float().tolist()
        rho = (own - own.detach()).exp()
        if ok:
            losses.append(-rho)
        elif objective.kl == "reverse_kl":
            losses.append((logp.exp() * (logp - logq)).sum(-1))
        else:
            losses.append(rho * (own.detach() - theirs))
        means.append(float(own.detach().mean()) if ok else float(theirs.mean()))
    torch.save(said, root / ENGINE)
    tokens_total = sum(len(r.token_ids) for r in responses)
    for index, (response, ok) in enumerate(zip(responses, right, strict=True)):
        path = [
            j
            for j, other in enumerate(responses)
            if other.prompt.index == response.prompt.index and right[j] == ok
        ]
        sign = -1.0 if ok else 1.0
        weight = math.exp(sign * means[index] / objective.tau) / sum(
            math.exp(sign * means[j] / objective.tau) for j in path
        )
        if objective.normalization == "token_mean":
            loss = loss + weight * len(path) / tokens_total * losses[index].sum()
        else:
            loss = loss + weight / GROUPS * losses[index].sum()
    loss.backward()
    after = {
        name: parameter.detach() - LR * parameter.grad / (parameter.grad.abs() + EPS)
        for name, parameter in student.named_parameters()
    }
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in student.parameters()))
    return {"loss": float(loss), "grad_norm": norm, "weights": by_expert(after)}


def by_expert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers holds all experts of a layer in one tensor; checkpoints name each."""
    out = {}
    for name, tensor in weights.items():
        prefix, found, kind = name.rpartition("mlp.experts.")
        for expert, part in enumerate(tensor if found else []):
            parts = dict.fromkeys([kind], part)
            if kind == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), part.chunk(2), strict=True))
            out |= {f"{prefix}{found}{expert}.{k}.weight": p for k, p in parts.items()}
        if not found:
            out[name] = tensor
    return out


def one_update(
    rank: int, world_size: int, root: Path, names: list[str], objectives: list[str]
) -> dict[Any, Any]:
    """Run every (layout, objective) that fits this world; what rank 0 saw."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.convert.gather import iter_full_tensors
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel.topology import create_topology

    out = {}
    for layout in names:
        _, parallel, other = (LAYOUTS | EXPERT_LAYOUTS | CONTEXT_LAYOUTS)[layout]
        for objective in objectives:
            if objective in AUTO and layout not in AUTO_LAYOUTS:
                continue
            changes = OBJECTIVES[objective]
            config = settings(
                root, {f"parallel.{k}": v for k, v in parallel.items()} | other | changes
            )
            topology = create_topology(
                config.parallel.tensor,
                config.parallel.pipeline,
                config.parallel.sequence,
                expert=config.parallel.expert,
                context=config.parallel.context,
            )
            learner = Learner(config, topology)
            top_k = config.rollout.top_k > 0  # such an engine's log-probabilities are useless here
            given = rollouts(None if top_k else root / ENGINE)
            groups = [given[g * SIZE : (g + 1) * SIZE] for g in range(GROUPS)]
            mine = [r for g in groups[topology.dp_rank :: topology.dp_size] for r in g]
            _, metrics = one_step(learner, mine)
            values = metrics.reduce(topology.dp_group, platform.device())
            student = learner.student
            weights = iter_full_tensors(student.model, student.hf, topology, 1 << 20)
            out[layout, objective] = {
                "loss": values["loss/total"],
                "grad_norm": values["grad_norm"],
                "weights": {name: tensor.cpu().clone() for name, tensor in weights},
            }
            parallel_state.destroy_model_parallel()
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    root = tmp_path_factory.mktemp("layouts")
    make_tiny_model("qwen2-bias", root / "student")
    make_tiny_model("llama", root / "teacher")
    out: dict[Any, Any] = {
        ("reference", name): reference(root, settings(root, changes))
        for name, changes in OBJECTIVES.items()
    }
    for world in (1, 2, 4):
        names = [name for name, (size, _, _) in LAYOUTS.items() if size == world]
        out |= run_distributed_test(one_update, world, root, names, list(OBJECTIVES), timeout=240)[
            0
        ]
    return out


@pytest.mark.parametrize(("layout", "objective"), CASES)
def test_update_equals_transformers(results: dict[Any, Any], layout: str, objective: str) -> None:
    assert_same_update(results[layout, objective], results["reference", objective], layout)


MIXTURE_LAYOUTS = [*EXPERT_LAYOUTS, "tensor-sequence", "pipeline", "data"]
MIXTURE_OBJECTIVES = ["scope", "scope-reverse-kl-fused"]


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Student and teacher are mixtures."""
    root = tmp_path_factory.mktemp("mixtures")
    make_tiny_model("qwen3-moe", root / "student")
    make_tiny_model("mixtral", root / "teacher")
    out: dict[Any, Any] = {
        ("reference", name): reference(root, settings(root, OBJECTIVES[name]))
        for name in MIXTURE_OBJECTIVES
    }
    layouts = LAYOUTS | EXPERT_LAYOUTS
    for world in (2, 4):
        names = [name for name in MIXTURE_LAYOUTS if layouts[name][0] == world]
        args = (world, root, names, MIXTURE_OBJECTIVES)
        out |= run_distributed_test(one_update, *args, timeout=240)[0]
    return out


@pytest.mark.parametrize("objective", MIXTURE_OBJECTIVES)
@pytest.mark.parametrize("layout", MIXTURE_LAYOUTS)
def test_update_of_experts_equals_transformers(
    mixtures: dict[Any, Any], layout: str, objective: str
) -> None:
    found, expected = mixtures[layout, objective], mixtures["reference", objective]
    assert_same_update(found, expected, f"mixture: {layout}")


GEMMA_LAYOUTS = ["tensor-sequence", "pipeline"]
GEMMA_OBJECTIVES = ["scope", "scope-reverse-kl"]


@pytest.fixture(scope="module")
def gemmas(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Gemma 2, capped and with tied embeddings, learns from Gemma 3."""
    root = tmp_path_factory.mktemp("gemmas")
    make_tiny_model("gemma2", root / "student")
    make_tiny_model("gemma3", root / "teacher")
    out: dict[Any, Any] = {
        ("reference", name): reference(root, settings(root, OBJECTIVES[name]))
        for name in GEMMA_OBJECTIVES
    }
    return out | run_distributed_test(one_update, 2, root, GEMMA_LAYOUTS, GEMMA_OBJECTIVES)[0]


@pytest.mark.parametrize("objective", GEMMA_OBJECTIVES)
@pytest.mark.parametrize("layout", GEMMA_LAYOUTS)
def test_update_of_gemma_equals_transformers(
    gemmas: dict[Any, Any], layout: str, objective: str
) -> None:
    found, expected = gemmas[layout, objective], gemmas["reference", objective]
    assert_same_update(found, expected, f"Gemma: {layout}")


def assert_same_update(ours: dict[str, Any], reference_: dict[str, Any], layout: str) -> None:
    """Within 1e-5 in loss and norm; noted in the table of layouts."""
    errors = {name: ours[name] / reference_[name] - 1 for name in ("loss", "grad_norm")}
    layout_table.note(layout, **errors)
    assert max(map(abs, errors.values())) < 1e-5, errors
    for name, expected in reference_["weights"].items():
        torch.testing.assert_close(
            ours["weights"][name].double(),
            expected,
            rtol=1e-4,
            atol=2e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_layouts_agree_among_themselves(results: dict[Any, Any], objective: str) -> None:
    losses = {at: results[at, objective]["loss"] for at, what in CASES if what == objective}
    for loss in losses.values():
        assert loss == pytest.approx(losses["one"], rel=1e-5), losses
