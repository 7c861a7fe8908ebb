"""The likeliest tokens that are written down are transformers', at every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_checkpoint import weights
from tests.distributed.test_step_layouts import rollouts, settings
from tests.distributed.test_teacher_offload import learner_of, share
from tests.support.harness import run_distributed_test
from tests.support.steps import batch_of
from tests.support.tiny_hf import VOCAB, make_tiny_model

COUNT, TEMPERATURE = 3, 1.5  # the teacher's; the student's is 0.7
FUSED = {"objective.head": "fused"}
ELSEWHERE = {"teacher.parallel": {"tensor": 2}, "teacher.offload": "cpu"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the student's layout, settings
    "tensor": ({"tensor": 2, "sequence": True}, {}),
    "pipeline, fused": ({"pipeline": 2}, FUSED),
    "context": ({"context": 2}, {}),
    "teacher elsewhere": ({"data": 2}, FUSED | ELSEWHERE | {"objective.kl": "reverse_kl"}),
}
Place = tuple[int, int]  # prompt, sample


@pytest.mark.timeout(240)
def test_they_are_the_models(tmp_path: Path) -> None:
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    expected = {
        "student": logprobs(tmp_path / "student", settings(tmp_path, {}).rollout.temperature),
        "teacher": logprobs(tmp_path / "teacher", TEMPERATURE),
    }
    ranks = run_distributed_test(look, 2, tmp_path)
    for case in CASES:
        found = ranks[0][case]["best"]["student"] | ranks[1][case]["best"]["student"]
        assert found.keys() == expected["student"].keys(), case
        for rank in ranks:
            for whose, best in rank[case]["best"].items():
                for place, (ids, values) in ((p, b.unbind(1)) for p, b in best.items()):
                    assert ids.max() < VOCAB, "padding is no token"
                    right = expected[whose][place]
                    close(values, right.topk(COUNT).values, case)
                    close(values, right.gather(1, ids.long()), case)
            for place, values in rank[case]["aside"].items():
                chosen = expected["teacher"][place].gather(1, token_ids(place)[:, None])[:, 0]
                close(values, chosen, case)
            changed = rank[case]["weights"]
            assert all(torch.equal(t, changed[1][n]) for n, t in changed[0].items()), case


def close(found: torch.Tensor, right: torch.Tensor, case: str) -> None:
    torch.testing.assert_close(
        found.double(), right, rtol=0, atol=1e-4, msg=lambda m: f"{case}: {m}"
    )


def token_ids(place: Place) -> torch.Tensor:
    (one,) = [r for r in rollouts() if (r.prompt.index, r.sample) == place]
    return torch.tensor(one.token_ids)


@torch.no_grad()
def logprobs(directory: Path, temperature: float) -> dict[Place, torch.Tensor]:
    """[length, VOCAB] float64 of every response by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    found = {}
    for one in rollouts():
        prompt = list(one.prompt.token_ids)
        logits = model(torch.tensor([prompt + one.token_ids])).logits[0, len(prompt) - 1 : -1]
        found[one.prompt.index, one.sample] = (logits / temperature).log_softmax(-1)
    return found


def look(rank: int, world_size: int, root: Path) -> dict[str, dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.learn import observe

    found: dict[str, dict[str, Any]] = {}
    for case, (layout, changes) in CASES.items():
        after = []
        for count in (COUNT, 0):
            learner = learner_of(
                root, layout, changes | {"objective.teacher_temperature": TEMPERATURE}
            )
            batch = batch_of(share(learner), learner.topology)
            learner.score(batch)
            learner.note_alternatives(batch, sorted(batch.rollouts), count)
            if count:
                found[case] = {
                    "best": {
                        "student": by_place(batch, batch.student_best),
                        "teacher": by_place(batch, batch.teacher_best),
                    },
                    "aside": by_place(batch, batch.teacher_aside),
                }
            else:
                assert not batch.student_best and not batch.teacher_best
            learner.update(batch, learner.weigh(batch), observe.step_metrics())
            after.append(weights(learner, learner.topology))
        found[case]["weights"] = after
    return found


def by_place(batch: Any, values: dict[int, torch.Tensor]) -> dict[Place, torch.Tensor]:
    held = batch.rollouts
    return {(held[i].prompt.index, held[i].sample): value for i, value in values.items()}


@pytest.mark.timeout(120)
def test_of_several_streamed_teachers_each_is_asked_again(tmp_path: Path) -> None:
    """One at a time is on the device, and its output weight stays for the divergence."""
    for name, family in (("student", "qwen2-bias"), ("math", "llama"), ("code", "qwen3-norms")):
        make_tiny_model(family, tmp_path / name, layers=2)
    (found,) = run_distributed_test(ask_again, 1, tmp_path)
    expected = {name: logprobs(tmp_path / name, 1.0) for name in ("math", "code")}
    assert found.keys() == expected["math"].keys()
    for place, best in found.items():
        right = expected["math" if place[0] % 2 == 0 else "code"][place]
        close(best[:, 1], right.topk(COUNT).values, str(place))


def ask_again(rank: int, world_size: int, root: Path) -> dict[Place, torch.Tensor]:
    from scope_megatron.parallel import platform

    platform.initialize()
    teachers = {n: {"path": str(root / n), "offload": "cpu"} for n in ("math", "code")}
    changes = {"model.teacher": None, "model.teachers": teachers, "objective.kl": "reverse_kl"}
    learner = learner_of(root, {}, changes)
    batch = batch_of(share(learner), learner.topology)
    learner.score(batch)
    learner.note_alternatives(batch, sorted(batch.rollouts), COUNT)
    return by_place(batch, batch.teacher_best)
