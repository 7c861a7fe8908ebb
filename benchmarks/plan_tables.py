"""The tables of docs/planning.md: for each pair of models the command and the layouts it found."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator

from scope_megatron import cli

BASE = "plan configs/paper_1p5b.yaml --search --top 4"
MEAN = "--mean-response 5000"
TABLES = {
    "1.5B with a teacher of 7B, 8 GPUs": f"{MEAN} --gpus 8 --gpu h100",
    "1.5B with a teacher of 7B, 16 GPUs": f"{MEAN} --gpus 16 --gpu h100",
    "8B with 70B, 64 GPUs": f"{MEAN} --gpus 64 --gpu h100 model.student=meta-llama/Llama-3.1-8B "
    "model.teacher=meta-llama/Llama-3.1-70B",
    "8B with 70B, 64 GPUs, responses of up to 131,072 tokens": "--mean-response 60000 --gpus 64 "
    "--gpu h100 rollout.max_response_tokens=131072 evaluation.max_response_tokens=131072 "
    "train.microbatch_tokens=140000 model.student=meta-llama/Llama-3.1-8B "
    "model.teacher=meta-llama/Llama-3.1-70B",
    "30B-A3B with 235B-A22B, 256 GPUs": f"{MEAN} --gpus 256 --gpu h100 "
    "rollout.prompts_per_step=512 model.student=Qwen/Qwen3-30B-A3B "
    "model.teacher=Qwen/Qwen3-235B-A22B",
    "235B-A22B with a trillion parameters, 2,048 GPUs": f"{MEAN} --gpus 2048 --gpu gb200 "
    "rollout.prompts_per_step=2048 model.student=Qwen/Qwen3-235B-A22B "
    "model.teacher=example/moe-1T",
    "235B-A22B with a trillion parameters, 16,384 GPUs": f"{MEAN} --gpus 16384 --gpu gb200 "
    "rollout.prompts_per_step=16384 model.student=Qwen/Qwen3-235B-A22B "
    "model.teacher=example/moe-1T",
}


def planned_rows(arguments: str) -> Iterator[str]:
    """A Markdown table of what the command found, or its one line of error."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            cli.app(shlex.split(f"{BASE} {arguments} --json"))
        except SystemExit as end:
            if end.code:
                yield f"`{errors.getvalue().strip()}`"
                return
    told = json.loads(out.getvalue())
    yield "| layout | microbatch | engine share | peak GiB | step s |"
    yield "|---|---|---|---|---|"
    for row in told["search"]:
        yield (
            f"| {row['text']} | {row['microbatch']:,} | {row['engine_share']:g} | "
            f"{row['peak_bytes'] / 2**30:.1f} | {row['seconds']:.1f} |"
        )
    seconds = told["seconds"]
    phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    yield ""
    yield f"Of the first, seconds: {phases}; {told['tokens_per_second_and_gpu']:,.0f} tokens/s/GPU."


def tables() -> Iterator[str]:
    """Markdown, a section for each."""
    for title, arguments in TABLES.items():
        yield f"### {title}\n"
        yield f"```bash\nscope-megatron {BASE} {arguments}\n```\n"
        yield from planned_rows(arguments)
        yield ""
