"""The machine: GPUs, memory, limits, and whether two processes reach each other."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator

from scope_megatron.config import EngineConfig
from scope_megatron.instruments.doctor.finding import Finding, Level, last_line, output_of
from scope_megatron.machine import Gpu, choose
from scope_megatron.machine.builds import vllm_is_for_cpu, vllm_version
from scope_megatron.machine.gpus import installed_gpus

GIB = 2**30
PROBE_TIMEOUT_S = 120.0
OPEN_FILES = 4096  # ranks, sockets and memory-mapped weights of one node
SHARED_MEMORY_GIB = 1.0  # NCCL and vLLM's worker queues
MEMORY_GIB = 8.0  # two ranks of the quickstart, each with an engine: 5 GiB measured
DISK_GIB = 5.0
ENGINE_SHARE = EngineConfig().gpu_memory_utilization


def check_machine() -> Iterator[Finding]:
    """Hardware first, then limits, then the network within the machine."""
    yield from _gpus()
    yield _memory()
    yield _shared_memory()
    yield _disk()
    yield _open_files()
    yield _compiler()
    yield _sandbox()
    yield _host_name()
    yield _collectives()


def _gpus() -> Iterator[Finding]:
    """GPUs that the driver lists, and the device that `platform.device: auto` takes."""
    for gpu in installed_gpus():
        yield _gpu(gpu)
    machine = choose("auto")
    if machine.problem:  # SCOPE_DEVICE wants what cannot be had
        yield Finding("device", Level.ERROR, f"platform.device {machine.problem}")
    elif machine.device == "cuda":
        yield Finding("device", Level.OK, f"CUDA; {machine.why}")
        yield from _usable()
    elif vllm_version() and not vllm_is_for_cpu():
        fix = "`DEVICE=cpu make env VENV=.venv-cpu` makes an environment that works here"
        detail = f"CPU ({machine.why}), but vLLM {vllm_version()} is built for GPUs"
        yield Finding("device", Level.ERROR, detail, fix)
    else:
        what, _, fix = machine.why.partition("; to use it, ")
        level = Level.WARNING if fix else Level.NOTE
        yield Finding("device", level, f"CPU, with gloo; {what}", fix)


def _gpu(gpu: Gpu) -> Finding:
    if gpu.total_mib is None or gpu.free_mib is None:
        return Finding("GPU", Level.OK, f"{gpu.name}, driver {gpu.driver}")
    total, free = gpu.total_mib / 1024, gpu.free_mib / 1024
    detail = f"{gpu.name}, {free:.1f} of {total:.1f} GiB free, driver {gpu.driver}"
    if free >= ENGINE_SHARE * total:
        return Finding("GPU", Level.OK, detail)
    fix = "end what uses it, choose others with CUDA_VISIBLE_DEVICES, or lower "
    return Finding("GPU", Level.WARNING, detail, f"{fix}rollout.engine.gpu_memory_utilization")


def _usable() -> Iterator[Finding]:
    """torch's own word, in a process of its own."""
    code = (
        "import torch; c = torch.cuda\n"
        "n = c.device_count() if c.is_available() else 0\n"
        "print(n, '.'.join(map(str, c.nccl.version())) if n else '-', "
        "c.is_bf16_supported() if n else '-')"
    )
    status, out, err = output_of([sys.executable, "-c", code], PROBE_TIMEOUT_S)
    if status != 0:
        yield Finding("NCCL", Level.ERROR, f"torch does not answer: {last_line(err)}")
        return
    usable, nccl, bf16 = last_line(out).split()
    if usable == "0":
        detail = f"torch cannot use the GPU: {last_line(err)}"
        fix = "look at `dmesg` and nvidia-fabricmanager; SCOPE_DEVICE=cpu trains without it"
        yield Finding("NCCL", Level.ERROR, detail, fix)
        return
    yield Finding("NCCL", Level.OK, f"{nccl}, {usable} usable devices")
    if bf16 == "False":
        yield Finding("bfloat16", Level.ERROR, "not supported", "set model.dtype=float32")


def _memory() -> Finding:
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    total, free = (int(fields[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    cores = len(os.sched_getaffinity(0))
    detail = f"{free:.1f} of {total:.1f} GiB available, {cores} cores"
    if free >= MEMORY_GIB:
        return Finding("memory", Level.OK, detail)
    fix = "the quickstart needs about 5 GiB: end other programs, or set parallel.tensor=1"
    return Finding("memory", Level.WARNING, detail, fix)


def _shared_memory() -> Finding:
    try:
        total = shutil.disk_usage("/dev/shm").total / GIB
    except OSError:
        return Finding("/dev/shm", Level.WARNING, "not there", "mount a tmpfs on /dev/shm")
    if total >= SHARED_MEMORY_GIB:
        return Finding("/dev/shm", Level.OK, f"{total:.1f} GiB")
    fix = "docker run --shm-size=16g, or `mount -o remount,size=16g /dev/shm`"
    return Finding("/dev/shm", Level.WARNING, f"only {total:.2f} GiB", fix)


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / GIB
    detail = f"{free:.1f} GiB free in {os.getcwd()}"
    if free >= DISK_GIB:
        return Finding("disk", Level.OK, detail)
    return Finding("disk", Level.WARNING, detail, "put output_dir on a larger file system")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding("open files", Level.OK, f"limit {soft}")
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    fix = f"ulimit -n {OPEN_FILES} before the start (hard limit {most})"
    return Finding("open files", Level.WARNING, f"limit {soft}, less than {OPEN_FILES}", fix)


def _compiler() -> Finding:
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found:
        return Finding("C compiler", Level.OK, found)
    return Finding(
        "C compiler",
        Level.NOTE,
        "none; Triton kernels on a GPU need one",
        "Debian: apt-get install gcc; or objective.kernel=torch",
    )


def _sandbox() -> Finding:
    """Whether programs can be isolated: the code verifier's own trial, in a process of its own."""
    code = (
        "from scope_megatron.rollout.verify.sandbox.bubblewrap import *\n"
        "try: require_isolation(); print('ok')\n"
        "except NoIsolation as error: print(str(error).removeprefix('verifier.code: '))"
    )
    status, out, err = output_of([sys.executable, "-c", code], PROBE_TIMEOUT_S)
    if status == 0 and out == "ok":
        return Finding("sandbox", Level.OK, "bubblewrap isolates programs of the code verifier")
    reason, _, fix = (last_line(out) if status == 0 else last_line(err)).partition("; ")
    return Finding("sandbox", Level.NOTE, f"code data is refused: {reason}", fix)


def _host_name() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        fix = f"add `127.0.0.1 {name}` to /etc/hosts, or export GLOO_SOCKET_IFNAME=lo (one machine)"
        return Finding("host name", Level.WARNING, f"{name} does not resolve", fix)
    return Finding("host name", Level.OK, f"{name} is {address}")


def _collectives() -> Finding:
    """Two processes sum a tensor, as ranks of a run will (one on a machine with a single GPU)."""
    command = [sys.executable, "-m", "scope_megatron.instruments.doctor.probe"]
    status, out, err = output_of(command, PROBE_TIMEOUT_S)
    if status == 0:
        return Finding("collectives", Level.OK, last_line(out))
    fix = "look at firewall, GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO tells more"
    return Finding("collectives", Level.ERROR, f"all-reduce failed: {last_line(err)}", fix)
