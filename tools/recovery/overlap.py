"""Mass of each model on the other's k likeliest tokens, along the student's own responses.

Little mass says that the two speak differently: then the teacher's signal on a student's tokens
says little (Rethinking OPD, arXiv 2604.13016).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tools.recovery.samples import Wrong


@torch.no_grad()
def top_k_masses(
    student: Path, teacher: Path, wrong: Sequence[Wrong], k: int, temperatures: tuple[float, float]
) -> tuple[float, float]:
    """(student's mass on the teacher's top k, teacher's on the student's), mean over tokens.

    ``temperatures`` divide the student's logits and the teacher's, as in the loss.
    """
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [
        AutoModelForCausalLM.from_pretrained(path).to(device).eval() for path in (student, teacher)
    ]
    totals, tokens = torch.zeros(2, dtype=torch.float64), 0
    for one in wrong:
        ids = torch.tensor([[*one.prompt.token_ids, *one.token_ids]], device=device)
        first = len(one.prompt.token_ids) - 1
        ours, theirs = (
            (model(ids).logits[0, first:].float() / heat).softmax(-1)
            for model, heat in zip(models, temperatures, strict=True)
        )
        totals += torch.stack([_mass(ours, theirs, k), _mass(theirs, ours, k)]).double().cpu()
        tokens += len(ours)
    student_mass, teacher_mass = (totals / tokens).tolist()
    return student_mass, teacher_mass


def _mass(probabilities: Tensor, other: Tensor, k: int) -> Tensor:
    """Sum over tokens of ``probabilities`` [T, V] on the k likeliest tokens of ``other``."""
    best = other.topk(min(k, other.shape[-1]), dim=-1).indices
    return probabilities.gather(-1, best).sum()
