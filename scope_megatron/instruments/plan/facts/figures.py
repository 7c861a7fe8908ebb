"""What a GPU has, with the source of every figure, and how much of it a run gets.

Figures are the makers' for dense arithmetic (no sparsity) and peak bandwidths, and of the
arithmetic the share that the best matrix products were measured to reach. Efficiencies are shares
of these that whole programs reach, each with its source; ``plan --calibrate`` fits them to a run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import yaml

from scope_megatron.config.errors import ConfigError, shown

GB = 1e9


@dataclass(frozen=True)
class GpuFigures:
    """One GPU and its links."""

    name: str
    memory: int  # bytes that a program can have
    bf16: float  # FLOP/s
    fp32: float  # FLOP/s of float32 matrix products as this project runs them (no TF32)
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s to the other GPUs of the node, one direction
    network: float  # bytes/s to other nodes, one direction
    host: float  # bytes/s to the host's memory, one direction
    per_node: int
    source: str
    host_memory: int = 0  # bytes of the host's for each GPU
    matmul: float = 0.8  # share of the arithmetic that the best matrix products reach
    # of what programs reach on an A100 and an H100, where software is younger
    programs: float = 1.0


def _gpu(
    name: str,
    gib: float,
    tflops: tuple[float, float],
    bandwidth: float,
    links: tuple[float, float, float],
    source: str,
    per_node: int = 8,
    matmul: float = 0.8,
    programs: float = 1.0,
    host_gb: float = 250,
) -> GpuFigures:
    """GiB; TFLOP/s in bfloat16 and float32; TB/s; GB/s to neighbours, other nodes, host."""
    link, network, host = (rate * GB for rate in links)
    bf16, fp32 = (rate * 1e12 for rate in tflops)
    memory = int(gib * 2**30)
    rates = (bf16, fp32, bandwidth * 1e12, link, network, host)
    place = (per_node, source, int(host_gb * GB))
    return GpuFigures(name, memory, *rates, *place, matmul, programs)


_NETWORK = (
    "network and host memory: one 400 Gb/s adapter and 250 GB for each GPU, as in NVIDIA's DGX of "
    "that generation"
)
# S. Bekman, Machine Learning Engineering, "Maximum Achievable Matmul FLOPS comparison table", BF16
_BLACKWELL = 0.56  # Megatron-LM's gpt3_7b_*_memory_speed on GB200, planned 0.46 s of 0.85 without
_MATMUL = "matrix products: maximum achievable ones as measured by S. Bekman"
GPUS: dict[str, GpuFigures] = {
    "a100": _gpu(
        "A100 SXM 80 GB",
        79.2,
        (312, 19.5),
        2.039,
        (300, 25, 25),
        f"NVIDIA A100 data sheet; {_MATMUL}; network and host memory: one 200 Gb/s adapter and "
        "250 GB for each GPU (DGX A100)",
        matmul=0.869,
    ),
    "h100": _gpu(
        "H100 SXM 80 GB",
        79.1,
        (989, 67),
        3.35,
        (450, 50, 55),
        f"NVIDIA H100 data sheet (sparse figures halved); {_MATMUL}; {_NETWORK}",
        matmul=0.803,
    ),
    "h200": _gpu(
        "H200 SXM 141 GB",
        139.8,
        (989, 67),
        4.8,
        (450, 50, 55),
        f"NVIDIA H200 data sheet (sparse figures halved); {_MATMUL}; {_NETWORK}",
        matmul=0.803,
    ),
    "h20": _gpu(
        "H20 96 GB",
        95.0,
        (148, 44),
        4.0,
        (450, 50, 55),
        "published specifications of the H20 (148 TFLOP/s, 4.0 TB/s, NVLink 900 GB/s); matrix "
        f"products: what attention kernels reach (flash-attention's issue 1310); {_NETWORK}",
        matmul=0.87,
    ),
    "b200": _gpu(
        "B200 180 GB",
        178.0,
        (2250, 75),
        7.7,
        (900, 50, 55),
        f"NVIDIA DGX B200 data sheet, an eighth of the system's; {_MATMUL}; programs: as on a "
        f"GB200; {_NETWORK}",
        matmul=0.776,
        programs=_BLACKWELL,
    ),
    "gb200": _gpu(
        "GB200 186 GB",
        184.0,
        (2500, 80),
        8.0,
        (900, 50, 200),
        "NVIDIA GB200 NVL72 data sheet, a 72nd of the rack's; 72 GPUs share NVLink; host by "
        f"NVLink-C2C; {_MATMUL}; programs: Megatron-LM's golden values beside an H100's; network: "
        "one 400 Gb/s adapter for each GPU; host memory: half of a Grace's 480 GB",
        host_gb=240,
        per_node=72,
        matmul=0.729,
        programs=_BLACKWELL,
    ),
    "l40s": _gpu(
        "L40S 48 GB",
        44.5,
        (362, 91.6),
        0.864,
        (26, 12.5, 25),
        "NVIDIA L40S data sheet (sparse figures halved); no NVLink, PCIe 4 x16 between GPUs; "
        "matrix products, network (one 100 Gb/s adapter for each GPU) and host memory (128 GB) "
        "are assumptions",
        host_gb=128,
    ),
}


@dataclass(frozen=True)
class Efficiencies:
    """Shares of the figures that are reached, and costs that arithmetic does not show."""

    # of what arithmetic and memory traffic give, before what is waited for: A100s, 22 to 1,008
    # billion parameters, sequences of one length (Korthikanti et al., arXiv 2205.05198, table 5)
    train: float = 0.95
    score: float = 0.95  # the same, of passes without a backward
    # of these where lengths differ, so that packs are not full and replicas wait for each other:
    # NeMo-RL 0.3, Llama 8B on 8 H100, whose training and scoring take 28 and 18 s
    balance: float = 0.77
    # of the best matrix products, attention itself: FlashAttention-2, forward and backward, on an
    # H100 (335 of 794 TFLOP/s) and on an A100 (190 of 271); Dao 2023
    attention: float = 0.5
    memory: float = 0.8  # of the memory's bandwidth: operators between products, optimizer, copies
    decode: float = 0.70  # of the memory's bandwidth: parameters and cache read for a token
    # of that where experts are read, each for few tokens: NeMo-RL 0.6, Qwen3-235B-A22B, 128 H100
    experts: float = 0.5
    link: float = 0.70  # of links and network
    overhead_s: float = 25e-6  # seconds a layer costs when it decodes, whatever its size
    host_s: float = 4e-3  # seconds of a decoding step on the host; NeMo-RL 0.3 samples in 58 s
    hop_s: float = 12e-6  # seconds of a small collective within a node
    sync_s: float = 0.1  # seconds of a transfer to the engine beyond its copies
    step_s: float = 2.0  # seconds of a step for verifying, dealing, logging
    source: str = "from published runs"


def find_gpu(name: str) -> GpuFigures:
    """By its key or a longer name that contains it. Raises ConfigError."""
    words = name.strip().lower().replace("-", " ").replace("_", " ").split()
    for word in words:
        if word in GPUS:
            return GPUS[word]
    raise ConfigError(f"--gpu: {shown(name)} is not known; use one of {', '.join(GPUS)}")


def read_efficiencies(path: Path) -> Efficiencies:
    """A file that ``--calibrate`` wrote. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise ConfigError(
            f"--efficiencies: {path} cannot be read; give a file that --calibrate wrote"
        ) from None
    known = {field.name for field in fields(Efficiencies)}
    if not isinstance(values, dict) or not values.keys() <= known:
        raise ConfigError(
            f"--efficiencies: {path} holds other keys than {', '.join(sorted(known))}; give a file "
            "that --calibrate wrote"
        )
    for name, value in values.items():
        if name != "source" and not (isinstance(value, int | float) and 0 < value):
            raise ConfigError(
                f"--efficiencies: {path} has {name} {shown(value)}; give a number above 0"
            )
    return replace(Efficiencies(), **values)


def efficiencies_text(found: Efficiencies) -> str:
    """The file's content."""
    text: str = yaml.safe_dump(asdict(found), sort_keys=False)
    return text
