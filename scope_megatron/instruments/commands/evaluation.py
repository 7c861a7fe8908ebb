"""The commands of an evaluation: evaluate, regrade, compare."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from scope_megatron.config import ConfigError, VerifierConfig
from scope_megatron.config.keys import choices
from scope_megatron.instruments.commands.common import (
    launch_again,
    must_launch,
    settle_device,
    user_errors,
)
from scope_megatron.job.lock import require_free

DRAWS = 10_000
Draws = Annotated[int, typer.Option(help="draws of the bootstrap and the permutation test")]
Workers = Annotated[int | None, typer.Option(help="verifier processes per engine")]


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG [KEY=VALUE]...]",
        help="YAML file of a run, and settings that replace the file's; or give --model",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_DIR_OR_CHECKPOINT",
        help="Hugging Face directory or Hub name, Megatron checkpoint, or output_dir of a run (its "
        "newest checkpoint)",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SET...", help="NAME=PATH or PATH of .jsonl or .parquet, or Hub names; several"
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(help="for a checkpoint: Hugging Face directory of config.json and tokenizer"),
]
Samples = Annotated[int | None, typer.Option("--n", "--samples", help="samples per problem [32]")]
Temperature = Annotated[float | None, typer.Option(help="[0.6]; 0: greedy, with --n 1")]
TopP = Annotated[float | None, typer.Option(help="nucleus sampling [0.95]; 1: off")]
TopK = Annotated[int | None, typer.Option(help="likeliest tokens [20]; -1: all")]
MaxTokens = Annotated[
    int | None, typer.Option(help="of a response [32768, or what the model's context leaves]")
]
MaxPromptTokens = Annotated[
    int | None, typer.Option(help="longer prompts are left out [4096, or a quarter of the context]")
]
SystemPrompt = Annotated[str | None, typer.Option(help="system message before every prompt")]
Limit = Annotated[int | None, typer.Option(help="only the first problems of every set")]
Seed = Annotated[int | None, typer.Option(help="of sampling and bootstrap [1234]")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16 [auto]")]
Verifier = Annotated[str | None, typer.Option(help="who judges [auto: by data_source]")]
Custom = Annotated[
    str | None, typer.Option(metavar="MODULE:FUNCTION", help="what --verifier custom calls")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda [auto]")]
Engines = Annotated[
    int | None, typer.Option(help="vLLM engines side by side [one per GPU; on a CPU 1]")
]
EngineTensor = Annotated[int | None, typer.Option(help="ranks (GPUs) that share an engine [1]")]
GpuMemory = Annotated[
    float | None, typer.Option(help="CUDA: share of the memory that an engine uses [0.9]")
]
KvCache = Annotated[float | None, typer.Option(help="CPU: key-value cache of an engine, GiB [1]")]
MaxNumSeqs = Annotated[
    int | None, typer.Option(help="sequences that an engine decodes at once [256]")
]
MaybeDraws = Annotated[int | None, typer.Option(help="draws of the bootstrap [10000]")]
Out = Annotated[
    Path | None, typer.Option(help="directory of samples and results [evaluations/MODEL-...]")
]


def evaluate(
    arguments: Arguments = None,
    model: Model = None,
    data: Data = None,
    base: Base = None,
    n: Samples = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_tokens: MaxTokens = None,
    max_prompt_tokens: MaxPromptTokens = None,
    system_prompt: SystemPrompt = None,
    limit: Limit = None,
    seed: Seed = None,
    dtype: Dtype = None,
    verifier: Verifier = None,
    custom: Custom = None,
    workers: Workers = None,
    device: Device = None,
    engines: Engines = None,
    engine_tensor: EngineTensor = None,
    gpu_memory_utilization: GpuMemory = None,
    kv_cache_gib: KvCache = None,
    max_num_seqs: MaxNumSeqs = None,
    draws: MaybeDraws = None,
    out: Out = None,
) -> None:
    """Avg@n and Pass@k of a model on sets of problems, by vLLM alone.

    scope-megatron evaluate --model DIR --data aime24=aime24.jsonl math500.jsonl --n 32

    scope-megatron evaluate configs/quickstart.yaml evaluation.samples=32

    Repeated after an interruption, the same command goes on; docs/evaluate.md has the rest.
    """
    values = dict(locals())
    positional, values["data"] = values.pop("arguments") or [], tuple(data or ())
    with user_errors():
        from scope_megatron.instruments.evaluation.options import Options, resolve

        settings = resolve(positional, Options(**values))
        if "RANK" not in os.environ:  # a rank would find its own evaluation's lock
            _require_free(settings.out)
        settle_device(settings.device, settings.engine.tensor)
        if must_launch(settings.ranks):
            launch_again(sys.argv[1:], settings.ranks, settings.restarts)
        from scope_megatron.instruments.evaluation.run import run_evaluation

        sys.exit(run_evaluation(settings))


def regrade(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="of a finished evaluation")],
    verifier: Annotated[str, typer.Option(help="who judges now")],
    custom: Custom = None,
    workers: Workers = None,
    draws: Draws = DRAWS,
) -> None:
    """Judge an evaluation's samples by another verifier, into DIR/regraded/VERIFIER."""
    with user_errors():
        from scope_megatron.instruments.evaluation.rules import custom_problems

        known = choices(VerifierConfig.model_fields["name"])
        if verifier not in known:
            raise ConfigError(
                f"--verifier: {verifier!r} is not one of {', '.join(known)}; choose one"
            )
        if workers is not None and workers < 1:
            raise ConfigError(f"--workers: is {workers} but must be >= 1; correct it")
        if problems := list(custom_problems(verifier, custom)):
            raise ConfigError(*problems)
        _require_draws(draws)
        from scope_megatron.instruments.evaluation.regrade import regrade as judge_again

        chosen = VerifierConfig.model_validate(
            {"name": verifier, "custom": custom, "workers": workers or 1}
        )
        judge_again(directory, chosen, draws)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="directory of an evaluation")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another, of the same problems")],
    draws: Draws = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="of the bootstrap and the permutations")] = 1234,
    out: Annotated[
        Path | None, typer.Option(help="write compare.md, compare.json, pass_at_k.png there")
    ] = None,
) -> None:
    """Is B better than A? Paired over problems: bootstrap interval, permutation and sign test.

    A and B are directories that evaluate or regrade wrote (DIR/regraded/VERIFIER).
    """
    with user_errors():
        _require_draws(draws)
        from scope_megatron.instruments.evaluation import compare as comparison
        from scope_megatron.instruments.evaluation.output.results import read_results

        one, other = read_results(a), read_results(b)
        compared = comparison.compare_results(one, other, draws, seed)
        print(comparison.compared_markdown(compared), end="")
        if out is not None:
            comparison.write_comparison(compared, one, other, out)


def _require_free(out: Path) -> None:
    try:
        require_free(out)
    except ValueError as error:
        raise ConfigError(str(error).replace("output_dir", "--out")) from None


def _require_draws(draws: int) -> None:
    if draws < 100:
        raise ConfigError(f"--draws: is {draws} but must be >= 100; correct it")
