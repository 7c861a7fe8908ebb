"""megatron-core's local layers and Transformer Engine's, on the same weights, against float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.proof import measure, models
from tools.proof.record import Proof

Measured = tuple[Tensor, dict[str, Tensor], float]  # log-probabilities, gradients, seconds


def layers(proof: Proof) -> None:
    """Forward and backward over packed sequences of different lengths."""
    from scope_megatron.parallel import platform
    from scope_megatron.parallel.topology import create_topology, initialize_distributed

    platform.initialize()
    initialize_distributed()
    topology = create_topology(1)
    shape = proof.size(models.Qwen2Shape(1536, 8960, 4, 12, 2, 8192), models.TOY)
    directory = models.make_model(shape, proof.folder / "model", "float32")
    lengths = proof.size([2048, 1, 700, 1300, 37, 4010], [20, 1, 7, 33])
    pack = _pack(lengths, shape.vocab)
    rounds = proof.size(5, 1)

    def run(dtype: torch.dtype, engine: bool) -> Measured:
        with _transformer_engine(engine):
            return _run(directory, topology, dtype, pack, rounds)

    exact = run(torch.float32, False)
    local = run(torch.bfloat16, False)
    errors = {"local": _report(proof, "local", local, exact, sum(lengths))}
    proof.check("local: log-probabilities, mean error", errors["local"], at_most=0.05)
    if platform.has_transformer_engine() or proof.rehearse:  # a rehearsal has the local ones twice
        name = "Transformer Engine"
        found = run(torch.bfloat16, True)
        errors[name] = _report(proof, name, found, exact, sum(lengths))
        most = 2 * errors["local"] + 1e-4
        proof.check(f"{name}: log-probabilities, mean error", errors[name], at_most=most)
        proof.figure("Transformer Engine's time over the local layers'", found[2] / local[2])
    else:
        proof.note("Transformer Engine", "left out: it does not import")


def _report(proof: Proof, name: str, found: Measured, exact: Measured, tokens: int) -> float:
    error = float((found[0] - exact[0]).abs().mean())
    gaps = {key: found[1][key] - value for key, value in exact[1].items()}
    whole = _norm(gaps) / _norm(exact[1])
    proof.check(f"{name}: gradients together, relative error", whole, at_most=0.05)
    single = max(float(gap.norm() / exact[1][key].norm()) for key, gap in gaps.items())
    proof.figure(f"{name}: gradients, relative error of the worst", single)
    proof.figure(f"{name}: forward and backward", 1e3 * found[2], "ms")
    proof.figure(f"{name}: tokens per second", tokens / found[2])
    return error


def _norm(tensors: dict[str, Tensor]) -> float:
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors.values())
    return math.sqrt(squares)


def _run(directory: Path, topology: Any, dtype: torch.dtype, pack: Any, rounds: int) -> Measured:
    from scope_megatron.convert.hf import load_hf_weights
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.pipeline import packed_forward

    hf = read_hf_config(directory)
    model = build_model(hf, topology, dtype, trainable=True)
    load_hf_weights(model, directory, hf, topology)

    targets = pack.tokens.roll(-1)
    inside = torch.ones_like(targets, dtype=torch.bool)
    inside[pack.cu_seqlens[1:].long() - 1] = False  # the last of a sequence predicts nothing

    def once() -> Tensor:
        model.zero_grad()
        logits = packed_forward(model, pack).squeeze(0).float()
        picked = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0][inside]
        picked.mean().backward()
        return picked.detach()

    taken = measure.median_seconds(once, rounds)
    values = once()
    gradients = _by_hf_name(model, hf, topology)
    return values.cpu(), gradients, taken


def _by_hf_name(model: torch.nn.Module, hf: dict[str, Any], topology: Any) -> dict[str, Tensor]:
    """Gradients under Hugging Face names: the layers' own names differ."""
    from scope_megatron.convert.gather import iter_full_tensors

    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    named = iter_full_tensors(model, hf, topology, 1 << 30)
    return {name: tensor.float().cpu().clone() for name, tensor in named}


@contextmanager
def _transformer_engine(wanted: bool) -> Iterator[None]:
    """Without it where it is not wanted, though it imports."""
    from scope_megatron.parallel import platform

    original = platform.has_transformer_engine
    if not wanted:
        platform.has_transformer_engine = lambda: False
    try:
        yield
    finally:
        platform.has_transformer_engine = original


def _pack(lengths: list[int], vocab: int) -> Any:
    from scope_megatron.objective.packing import build

    generator = torch.Generator().manual_seed(0)
    sequences = []
    for length in lengths:
        ids = torch.randint(vocab, (length + 1,), generator=generator).tolist()
        sequences.append((tuple(ids[:1]), ids[1:]))
    return build(sequences, list(range(len(sequences))), 1).to(measure.proof_device())
