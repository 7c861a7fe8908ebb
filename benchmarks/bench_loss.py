"""The loss head against the alternatives, side by side in one run: time, memory, collectives.

    python benchmarks/bench_loss.py [--quick] [--json] [--out FILE] [--figure FILE]

On a CPU, two gloo ranks share the vocabulary. A ratio is the median over rounds of ratios taken
inside one round, where all methods run one after the other. Both wall time and the processor time
of rank 0 are shown there, and the targets are judged by the latter: where other programs share the
cores, ranks wait for each other and wall time measures the neighbours. Extra memory is the peak of
tensors beyond the inputs, without the gradients that every method has to return. With a GPU, one
rank on it does the same in bfloat16, and the share of its copy bandwidth is shown.
`loss_methods.py` says what each method computes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is not enough

from benchmarks import loss_methods as methods
from tests.support.memory import peak_memory

NAMES = {
    "one_pass": "(a) fused_loss",
    "recomputed": "(a) fused, recomputed",
    "on_logits": "(a) on all logits",
    "straightforward": "(c) torch autograd",
    "bare_gemms": "(e) bare GEMMs",
    "our_cross_entropy": "(a) cross-entropy",
    "megatron_cross_entropy": "(b) megatron-core",
    "liger_jsd": "(d) Liger JSD",
}
OBJECTIVE = ["one_pass", "recomputed", "on_logits", "straightforward", "bare_gemms"]
ENTROPY = ["our_cross_entropy", "megatron_cross_entropy"]
COLLECTIVES = [name for name in dir(dist) if name.startswith(("all_", "reduce", "broadcast"))]


@dataclass
class Case:
    """One table: the same sizes for every method."""

    vocab: int
    tokens: int
    hidden: int
    rounds: int
    world: int
    device: str
    seconds: dict[str, list[float]] = field(default_factory=dict)  # wall
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)  # of rank 0's process
    extra_bytes: dict[str, int] = field(default_factory=dict)
    extra_bytes_4x: dict[str, int] = field(default_factory=dict)
    collectives: dict[str, int] = field(default_factory=dict)
    largest_gradient_gap: float = 0.0  # (a) against (c), relative to the largest entry
    copy_bandwidth: float | None = None  # bytes/s; GPU only
    # GPU only: reverse KL of given bfloat16 logits, both passes, by the setting objective.kernel
    kl_on_logits_s: dict[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> dict[str, list[float]]:
        return self.cpu_seconds if self.device == "cpu" else self.seconds

    def ratio(self, over: str, under: str, times: dict[str, list[float]] | None = None) -> float:
        """Median over rounds of time(over) / time(under)."""
        times = self.judged if times is None else times
        return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def sizes(quick: bool, hidden: int) -> list[Case]:
    world = 1 if torch.cuda.is_available() else 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if quick:
        return [Case(2048, 64, 32, 2, world, device)]
    if device == "cuda":
        return [Case(vocab, 16384, hidden, 10, world, device) for vocab in (32768, 151936)]
    return [
        Case(32768, 1024, hidden, 4, world, device),
        Case(151936, 512, hidden, 4, world, device),
    ]


def measure(case: Case, rank: int, group: dist.ProcessGroup | None) -> Case:
    device = torch.device(case.device)
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32

    def inputs(tokens: int) -> methods.Inputs:
        return methods.Inputs.make(tokens, case.vocab, case.hidden, group, device, dtype)

    x = inputs(case.tokens)
    objective = [*OBJECTIVE, *(["liger_jsd"] if _can_run_liger(case) else [])]
    results: dict[str, methods.Result] = {}
    for name in objective:  # also the warm-up
        run = _bound(getattr(methods, name), x)
        case.collectives[name] = count_collectives(lambda n=name, r=run: results.update({n: r()}))
    _compare(case, results)
    results.clear()
    for name in objective:
        case.extra_bytes[name] = extra_memory(getattr(methods, name), x)
    four = inputs(4 * case.tokens)
    case.extra_bytes_4x["one_pass"] = extra_memory(methods.one_pass, four)
    del four
    for _ in range(case.rounds):
        for name in objective:
            _timed(case, name, _bound(getattr(methods, name), x), group)
    entropy(case, x, group)
    if case.device == "cuda":
        gpu_bandwidth(case, x)
    return case


def entropy(case: Case, x: methods.Inputs, group: dist.ProcessGroup | None) -> None:
    """Cross-entropy of given logits; each run gets a copy made outside the clock."""
    logits = methods.given_logits(x)
    names = ENTROPY if group is not None else ENTROPY[:1]
    for name in names:
        method = getattr(methods, name)
        case.collectives[name] = count_collectives(lambda m=method: m(x, logits.clone()))
        given = logits.clone()
        case.extra_bytes[name] = peak_memory(lambda m=method, z=given: m(x, z))
    for _ in range(case.rounds):
        for name in names:
            given, method = logits.clone(), getattr(methods, name)
            _timed(case, name, lambda m=method, z=given: m(x, z), group)


def gpu_bandwidth(case: Case, x: methods.Inputs) -> None:
    """Reverse KL of given logits by either path, and a plain copy; the first of each warms up."""
    teacher = x.teacher_hidden @ x.teacher_weight.t()
    kernels = ["torch", *(["triton"] if methods.triton_installed() else [])]
    times: dict[str, list[float]] = {name: [] for name in [*kernels, "copy"]}
    for _ in range(case.rounds + 1):
        for name in kernels:
            given = x.hidden @ x.weight.t()
            run = lambda z=given, k=name: methods.kl_on_logits(x, z, teacher, k)  # noqa: E731
            times[name].append(_seconds(run))
            del run, given
        target = torch.empty_like(teacher)
        times["copy"].append(_seconds(lambda t=target: t.copy_(teacher)))
        del target
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    case.copy_bandwidth = 2 * teacher.numel() * teacher.element_size() / medians.pop("copy")
    case.kl_on_logits_s = medians


def extra_memory(method: Callable[[methods.Inputs], methods.Result], x: methods.Inputs) -> int:
    """Peak bytes beyond inputs and returned gradients."""
    returned = sum(leaf.numel() * leaf.element_size() for leaf in (x.hidden, x.weight))
    return peak_memory(lambda: method(x)) - returned


def count_collectives(work: Callable[[], Any]) -> int:
    """Calls of torch.distributed's collectives, forward and backward."""
    count = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            return function(*args, **kwargs)

        return wrapper

    originals = {name: getattr(dist, name) for name in COLLECTIVES if callable(getattr(dist, name))}
    try:
        for name, function in originals.items():
            setattr(dist, name, counting(function))
        work()
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)
    return count


def _compare(case: Case, results: dict[str, methods.Result]) -> None:
    """The methods compute the same thing: nobody may win by leaving something out."""
    loss, grads = results["straightforward"]
    for name in ("one_pass", "recomputed", "on_logits"):
        ours, own = results[name]
        torch.testing.assert_close(ours, loss, rtol=1e-2 if case.device == "cuda" else 1e-4, atol=0)
        for a, b in zip(own, grads, strict=True):
            gap = float((a.float() - b.float()).abs().max() / b.float().abs().max())
            case.largest_gradient_gap = max(case.largest_gradient_gap, gap)


def _can_run_liger(case: Case) -> bool:
    return case.device == "cuda" and methods.liger_missing() is None


def _bound(method: Callable[..., Any], x: methods.Inputs) -> Callable[[], Any]:
    return lambda: method(x)


def _seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _timed(case: Case, name: str, work: Callable[[], Any], group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.barrier(group)
    start = time.process_time()
    case.seconds.setdefault(name, []).append(_seconds(work))
    case.cpu_seconds.setdefault(name, []).append(time.process_time() - start)


# processes


def _rank(rank: int, cases: list[Case], folder: str) -> None:
    world = cases[0].world
    torch.set_num_threads(1)
    if cases[0].device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if cases[0].device == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
    )
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(world, create_gloo_process_groups=False)
    group = parallel_state.get_tensor_model_parallel_group()
    for index, case in enumerate(cases):
        print(f"rank {rank}: V={case.vocab}", file=sys.stderr)
        measured = measure(case, rank, group)
        if rank == 0:
            (Path(folder) / f"{index}.json").write_text(json.dumps(asdict(measured)))
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def run(cases: list[Case]) -> list[Case]:
    if cases[0].world == 1 and cases[0].device == "cpu":
        return [measure(case, 0, None) for case in cases]
    with tempfile.TemporaryDirectory(prefix="bench-loss-") as folder:
        mp.spawn(_rank, (cases, folder), nprocs=cases[0].world)
        files = [Path(folder) / f"{index}.json" for index in range(len(cases))]
        return [Case(**json.loads(file.read_text())) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--json", action="store_true", help="print the raw numbers as JSON")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size of both models")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--figure", type=Path, help="draw memory against tokens to this PNG")
    options = parser.parse_args()
    from benchmarks import loss_report

    if options.figure is not None:
        loss_report.draw_memory(options.figure, quick=options.quick)
        return
    cases = run(sizes(options.quick, options.hidden))
    text = json.dumps([asdict(case) for case in cases], indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n")
    if options.json:
        print(text)
    else:
        loss_report.show(cases, platform.platform())


if __name__ == "__main__":
    main()
