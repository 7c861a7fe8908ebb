"""What a GPU has, with the source of every figure, and how much of it a run gets.

Figures are the makers' for dense arithmetic (no sparsity) and peak bandwidths. Efficiencies are
shares of them that programs reach: those here are chosen by hand in the range that published runs
show (see docs/planning.md for the comparison), ``plan --calibrate`` fits them to a run.
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
    # how much more of its arithmetic is reached than of an H100's: more, where arithmetic is slow
    # beside memory and links. By hand
    reach: float = 1.0


def _gpu(
    name: str,
    gib: float,
    tflops: tuple[float, float],
    bandwidth: float,
    links: tuple[float, float, float],
    source: str,
    per_node: int = 8,
    reach: float = 1.0,
) -> GpuFigures:
    """GiB; TFLOP/s in bfloat16 and float32; TB/s; GB/s to neighbours, other nodes, host."""
    link, network, host = (rate * GB for rate in links)
    bf16, fp32 = (rate * 1e12 for rate in tflops)
    memory = int(gib * 2**30)
    rates = (bf16, fp32, bandwidth * 1e12, link, network, host)
    return GpuFigures(name, memory, *rates, per_node, source, reach)


_NETWORK = "network: one 400 Gb/s adapter for each GPU, as in NVIDIA's DGX of that generation"
GPUS: dict[str, GpuFigures] = {
    "a100": _gpu(
        "A100 SXM 80 GB",
        79.2,
        (312, 19.5),
        2.039,
        (300, 25, 25),
        "NVIDIA A100 data sheet; network: one 200 Gb/s adapter for each GPU (DGX A100)",
    ),
    "h100": _gpu(
        "H100 SXM 80 GB",
        79.1,
        (989, 67),
        3.35,
        (450, 50, 55),
        f"NVIDIA H100 data sheet (sparse figures halved); {_NETWORK}",
    ),
    "h200": _gpu(
        "H200 SXM 141 GB",
        139.8,
        (989, 67),
        4.8,
        (450, 50, 55),
        f"NVIDIA H200 data sheet (sparse figures halved); {_NETWORK}",
    ),
    "h20": _gpu(
        "H20 96 GB",
        95.0,
        (148, 44),
        4.0,
        (450, 50, 55),
        f"published specifications of the H20 (148 TFLOP/s, 4.0 TB/s, NVLink 900 GB/s); {_NETWORK}",
        reach=1.5,
    ),
    "b200": _gpu(
        "B200 180 GB",
        178.0,
        (2250, 75),
        7.7,
        (900, 50, 55),
        f"NVIDIA DGX B200 data sheet, an eighth of the system's; {_NETWORK}",
    ),
    "gb200": _gpu(
        "GB200 186 GB",
        184.0,
        (2500, 80),
        8.0,
        (900, 50, 200),
        "NVIDIA GB200 NVL72 data sheet, a 72nd of the rack's; 72 GPUs share NVLink; host by "
        "NVLink-C2C; network: one 400 Gb/s adapter for each GPU",
        per_node=72,
    ),
    "l40s": _gpu(
        "L40S 48 GB",
        44.5,
        (362, 91.6),
        0.864,
        (26, 12.5, 25),
        "NVIDIA L40S data sheet (sparse figures halved); no NVLink, PCIe 4 x16 between GPUs; "
        "network: one 100 Gb/s adapter for each GPU, an assumption",
    ),
}


@dataclass(frozen=True)
class Efficiencies:
    """Shares of the figures that are reached, and costs that arithmetic does not show."""

    train: float = 0.45  # of the arithmetic: forward and backward, before what is waited for
    score: float = 0.50  # of the arithmetic: forward alone
    attention: float = 0.35  # of the arithmetic: attention itself
    experts: float = 0.5  # of the other shares, where they are experts': many small products
    prefill: float = 0.50  # of the arithmetic: prompts
    decode: float = 0.60  # of the memory's bandwidth: parameters and cache read for a token
    link: float = 0.70  # of links and network
    memory: float = 0.70  # of the memory's bandwidth: optimizer, copies
    overhead_s: float = 25e-6  # seconds a layer costs when it decodes, whatever its size
    hop_s: float = 12e-6  # seconds of a small collective within a node
    sync_s: float = 0.1  # seconds of a transfer to the engine beyond its copies
    step_s: float = 2.0  # seconds of a step for verifying, dealing, logging
    source: str = "by hand, in the range of published runs"


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
