"""Output of `bench_loss.py`: tables with the targets, and the memory figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import loss_methods as methods

if TYPE_CHECKING:
    from benchmarks.bench_loss import Case

MIB = 2**20


def show(cases: list[Case], machine: str) -> None:
    console = Console(width=100)
    console.print(f"{machine}, torch {torch.__version__}")
    for case in cases:
        console.print(_table(case))
        console.print(
            f"largest gap of (a)'s gradients from (c)'s: {case.largest_gradient_gap:.1e} of the "
            "largest entry"
        )
        for line in verdicts(case) if case.tokens >= 512 else ():  # not of --quick
            console.print(line)
    if (reason := methods.liger_missing()) is not None:
        console.print(f"(d) Liger: not measured: {reason}")
    elif cases[0].device == "cpu":
        console.print("(d) Liger: not measured: it needs a GPU")
    if cases[0].device == "cpu":
        console.print("no GPU: the CUDA part (the Triton kernels, copy bandwidth) was not run")


def _table(case: Case) -> Table:
    from benchmarks.bench_loss import NAMES

    table = Table(
        title=f"{case.device}, {case.world} rank(s): V {case.vocab:,}, T {case.tokens:,}, "
        f"H {case.hidden}; times over (e), cross-entropy over (b)",
        title_justify="left",
    )
    for name in (
        "method",
        "wall s",
        "ratio",
        "CPU s",
        "ratio",
        "extra MiB",
        "4 x T",
        "collectives",
    ):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name in case.seconds:
        base = "megatron_cross_entropy" if "entropy" in name else "bare_gemms"
        four = case.extra_bytes_4x.get(name)
        table.add_row(
            NAMES[name],
            *_times(case.seconds, case, name, base),
            *_times(case.cpu_seconds, case, name, base),
            f"{case.extra_bytes[name] / MIB:.1f}",
            "" if four is None else f"{four / MIB:.1f}",
            str(case.collectives[name]),
        )
    return table


def _times(times: dict[str, list[float]], case: Case, name: str, base: str) -> tuple[str, str]:
    """(median seconds, ratio to the base)."""
    ratio = f"{case.ratio(name, base, times):.2f}" if base in times else ""
    return f"{statistics.median(times[name]):.3f}", ratio


def verdicts(case: Case) -> list[str]:
    """Each target, and whether this run met it."""
    one, plain = "one_pass", "straightforward"
    memory = case.extra_bytes[plain] / case.extra_bytes[one]
    growth = case.extra_bytes_4x[one] - case.extra_bytes[one]
    item = 4 if case.device == "cpu" else 2
    hidden = 3 * case.tokens * case.hidden * item
    out = [
        _verdict("(c) / (a) in time", case.ratio(plain, one), 2.5, least=True),
        _verdict("(c) / (a) in extra memory", memory, 6.0, least=True),
        _verdict("(a) / (e) in time", case.ratio(one, "bare_gemms"), 1.35, least=False),
        _verdict("growth of (a) at 4 x T, in T x H", growth / hidden, 1.25, least=False),
    ]
    if "megatron_cross_entropy" in case.seconds:
        ratio = case.ratio("our_cross_entropy", "megatron_cross_entropy")
        out.append(_verdict("cross-entropy (a) / (b) in time", ratio, 1.0, least=False))
    for kernel, seconds in case.kl_on_logits_s.items():
        assert case.copy_bandwidth is not None
        # bfloat16: the forward reads two matrices, the backward reads two and writes one
        share = 10 * case.vocab * case.tokens / seconds / case.copy_bandwidth
        what = f"reverse KL by {kernel}, {1000 * seconds:.1f} ms: share of copy bandwidth"
        out.append(_verdict(what, share, 0.6, least=True))
    return out


def _verdict(what: str, value: float, target: float, least: bool) -> str:
    met = value >= target if least else value <= target
    word = "at least" if least else "at most"
    return f"{what}: {value:.2f}, target {word} {target:.2f}: {'met' if met else 'NOT met'}"


def draw_memory(path: Path, *, quick: bool = False) -> None:
    """Extra memory of (a) and (c) against tokens: one rank, V 32,768, H 512, float32."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from benchmarks.bench_loss import extra_memory

    vocab, hidden = (1024, 32) if quick else (32768, 512)
    tokens = [64, 128, 256] if quick else [256, 512, 1024, 2048, 4096]
    device = torch.device("cpu")
    lines: dict[str, list[float]] = {"one_pass": [], "straightforward": []}
    for count in tokens:
        x = methods.Inputs.make(count, vocab, hidden, None, device)
        for name, values in lines.items():
            values.append(extra_memory(getattr(methods, name), x) / MIB)
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    labels = {"one_pass": "this project: fused_loss", "straightforward": "torch autograd"}
    for (name, values), color in zip(lines.items(), ("#1b7837", "#b2182b"), strict=True):
        axes.plot(tokens, values, "o-", color=color, label=labels[name])
        axes.annotate(f"{values[-1]:,.0f} MiB", (tokens[-1], values[-1]), xytext=(-4, 8),
                      textcoords="offset points", ha="right", color=color)  # fmt: skip
    axes.set(
        xlabel="tokens of one microbatch",
        ylabel="memory beyond inputs and gradients, MiB",
        title=f"Reverse KL + log-probabilities, forward and backward\n"
        f"V = {vocab:,}, H = {hidden}, float32",
    )
    axes.set_xticks(tokens)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}: " + "; ".join(f"{labels[n]} {v}" for n, v in lines.items()))
