"""New weights from Megatron to the engine: in memory, over the disk, and after a full gather.

    python -m benchmarks.bench_reshard [--quick] [--engine 2] [--out RESULTS.md]

Two ranks hold a Llama with tensor parallelism 2; each has a vLLM engine of its own that needs the
whole model (--engine 2: they share one, of which each has half). Every method moves the same
weights in the same run, in turn, and times are medians over rounds of the slower rank. "memcpy"
copies as many bytes as the engine holds, parameter by parameter.

"direct" writes shards into the engine's parameters, whose linear layers vLLM's CPU build packs;
"loaders" is the stream of full tensors through vLLM's own loaders. "direct, unpacked" writes into
plain parameters of the same shapes, as an engine on CUDA has them. "link" exchanges as many bytes
as "direct" receives with the other rank, in one message, and nothing else.

Memory is how far the process grows over its size before the method (resident, sampled), the
engine's own temporaries included; "stream" is the transfer alone, without an engine, and with it
the most bytes of tensors it held at once.
"""

from __future__ import annotations

import argparse
import os
import platform as machine
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.harness import run_distributed_test
from tests.support.memory import peak_memory

SIZES = {  # name: hidden, ffn, layers, heads, vocabulary
    "quick": (256, 704, 4, 4, 8192),
    "default": (1024, 2816, 12, 16, 32000),
}
BUCKET = 64 * 2**20
METHODS = (
    "direct",
    "loaders",
    "disk",
    "full gather",
    "stream",
    "direct, unpacked",
    "link",
    "memcpy",
)
MIB = 2**20


class Resident:
    """Growth of this process's resident memory while it is sampled, in bytes."""

    def __init__(self) -> None:
        self.start = self.peak = self._now()

    @staticmethod
    def _now() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @contextmanager
    def sampled(self) -> Iterator[None]:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                self.peak = max(self.peak, self._now())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.peak = max(self.peak, self._now())


def measure(rank: int, world: int, root: Path, rounds: int, tensor: int) -> dict[str, Any]:
    """Body of a rank: seconds and growth per method and round."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.config import EngineConfig
    from scope_megatron.engine.source import ModelParameters, engine_parameters
    from scope_megatron.engine.vllm import VLLMEngine
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    topology = create_topology(world)
    hf = read_hf_config(root)
    model = build_model(hf, topology, torch.float32, trainable=False)
    engine = VLLMEngine(
        root,
        EngineConfig(tensor=tensor, kv_cache_gib=0.05, max_num_seqs=4),
        max_model_len=64,
        dtype=torch.float32,
        eos_ids=[],
        seed=0,
    )
    weights = ModelParameters(model, hf, topology, BUCKET)
    engine.send_parameters(weights)  # proves the plan
    plan = engine._direct.plan
    assert plan is not None, engine._direct.refused
    plain = Plain(engine)
    calls = methods(weights, engine, plan, plain, root)
    out: dict[str, Any] = {"seconds": {m: [] for m in METHODS}, "growth": dict.fromkeys(METHODS, 0)}
    for number in range(rounds + 1):
        for name in METHODS:
            dist.barrier()
            resident, start = Resident(), time.perf_counter()
            with resident.sampled():
                calls[name]()
            if number > 0:  # the first round warms up
                out["seconds"][name].append(time.perf_counter() - start)
                out["growth"][name] = max(out["growth"][name], resident.peak - resident.start)
    out["direct_tensors"] = peak_memory(lambda: plan.run(weights, plain.write))
    out["received"] = plan.received
    drained = lambda: drain(engine_parameters(model, hf, topology, BUCKET))  # noqa: E731
    out["stream_tensors"] = peak_memory(drained)
    out["own_bytes"] = sum(parameter.nbytes for parameter in model.parameters())
    out["engine_bytes"] = sum(tensor.nbytes for tensor in plain.tensors.values())
    return out


def drain(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    for item in weights:
        del item  # else the loop would keep it while the next is made


class Plain:
    """Parameters of the engine's shapes in plain memory."""

    def __init__(self, engine: Any) -> None:
        from scope_megatron.engine.direct import EngineParameters

        (model,) = engine._llm.apply_model(lambda model: model)
        shapes = EngineParameters(model).layout(1).shapes
        self.tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def write(self, name: str, row: int, column: int, values: torch.Tensor) -> None:
        place = self.tensors[name].narrow(0, row, values.shape[0])
        if values.dim() > 1:
            place = place.narrow(1, column, values.shape[1])
        place.copy_(values)


def methods(
    weights: Any, engine: Any, plan: Any, plain: Plain, root: Path
) -> dict[str, Callable[[], object]]:
    from safetensors import safe_open

    from scope_megatron.convert.gather import iter_full_tensors
    from scope_megatron.convert.hf import export_hf
    from scope_megatron.engine.source import engine_parameters

    model, hf, topology = weights.model, weights.hf, weights.topology
    exported = root / "exported"
    tied = bool(hf["tie_word_embeddings"])
    copies = [tensor.clone() for tensor in plain.tensors.values()]

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        for file in sorted(exported.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    yield name, tensors.get_tensor(name)
                    if tied and name == "model.embed_tokens.weight":
                        yield "lm_head.weight", tensors.get_tensor(name)

    outgoing = torch.empty(plan.received, dtype=torch.uint8)
    incoming = torch.empty_like(outgoing)

    def link() -> None:
        if not plan.received:
            return
        peer = 1 - topology.rank
        pair = (dist.P2POp(dist.isend, outgoing, peer), dist.P2POp(dist.irecv, incoming, peer))
        for work in dist.batch_isend_irecv(list(pair)):
            work.wait()

    def over_disk() -> None:
        export_hf(model, hf, topology, root, exported, overwrite=True)
        dist.barrier()
        engine.send_parameters(read())
        dist.barrier()

    def full_gather() -> None:
        whole = list(iter_full_tensors(model, hf, topology, 1 << 62))
        if tied:
            whole.append(("lm_head.weight", dict(whole)["model.embed_tokens.weight"]))
        engine.send_parameters(whole)

    return {
        "direct": lambda: engine.send_parameters(weights),
        "loaders": lambda: engine.send_parameters(engine_parameters(model, hf, topology, BUCKET)),
        "disk": over_disk,
        "full gather": full_gather,
        "stream": lambda: drain(engine_parameters(model, hf, topology, BUCKET)),
        "direct, unpacked": lambda: plan.run(weights, plain.write),
        "link": link,
        "memcpy": lambda: torch._foreach_copy_(list(plain.tensors.values()), copies),
    }


def write_config(directory: Path, size: str) -> None:
    from transformers import LlamaConfig

    hidden, ffn, layers, heads, vocab = SIZES[size]
    LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(directory)


def report(ranks: list[dict[str, Any]], size: str) -> list[str]:
    seconds = {
        name: [max(times) for times in zip(*(r["seconds"][name] for r in ranks), strict=True)]
        for name in METHODS
    }

    def ratio(name: str, base: str) -> float:
        pairs = zip(seconds[name], seconds[base], strict=True)
        return statistics.median(a / b for a, b in pairs)

    first = ranks[0]
    lines = [
        f"Llama, {size}: {first['engine_bytes'] / MIB:.0f} MiB float32 per engine, "
        f"{first['own_bytes'] / MIB:.0f} MiB per Megatron rank, buckets of {BUCKET // MIB} MiB. "
        f"{date.today()}, {os.cpu_count()} CPU cores ({machine.machine()}), "
        f"load {os.getloadavg()[0]:.1f}.",
        "",
        "| method | seconds (median) | time / direct | time / memcpy | memory growth, MiB |",
        "|---|---|---|---|---|",
    ]
    for name in METHODS:
        growth = max(rank["growth"][name] for rank in ranks) / MIB
        middle = statistics.median(seconds[name])
        ratios = f"{ratio(name, 'direct'):.2f} | {ratio(name, 'memcpy'):.2f}"
        lines.append(f"| {name} | {middle:.3f} | {ratios} | {growth:.0f} |")
    tensors, direct = (max(r[k] for r in ranks) for k in ("stream_tensors", "direct_tensors"))
    received = max(rank["received"] for rank in ranks)
    lines += [
        "",
        f"The stream held at most {tensors / MIB:.0f} MiB of tensors at once "
        f"({tensors / BUCKET:.2f} buckets); direct {direct / MIB:.0f} MiB "
        f"({direct / BUCKET:.2f} buckets), and a packed engine one layer besides. Direct received "
        f"{received / MIB:.1f} MiB per rank, {received / first['engine_bytes']:.3f} of what the "
        "engine holds.",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, for a check")
    parser.add_argument("--engine", type=int, choices=(1, 2), default=1, help="its tensor size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    arguments = parser.parse_args()
    size = "quick" if arguments.quick else "default"
    root = Path(tempfile.mkdtemp(prefix="bench-reshard-"))
    try:
        write_config(root, size)
        ranks = run_distributed_test(
            measure, 2, root, arguments.rounds, arguments.engine, timeout=600
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    lines = report(ranks, size)
    print("\n".join(lines))
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write("\n## Weights to the engine (bench_reshard)\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
