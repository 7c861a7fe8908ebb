"""Does the teacher's perplexity say which wrong responses it could still save? (arXiv 2604.10688,
section 2.2 and table 7, for any student, teacher and data.)

    python -m tools.recovery_study CONFIG.yaml [KEY=VALUE]... --out DIR

samples the student on the problems of data.train (or on another file, `--data`), cuts its incorrect
responses at 20, 40, 60 and 80 % of their tokens, lets the teacher complete them, and asks how often
the verifier then finds them correct, by quartile of the teacher's perplexity of the whole response.

    DIR/recovery.md      the table, with intervals and trend tests
    DIR/recovery.json    the same for programs; in a run's directory `diagnose` reads it
    DIR/recovery.jsonl   every response and cut
    DIR/recovery/        the student's samples; drawn already, they are not drawn again
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from scope_megatron import outputs
from scope_megatron.config import Config, ConfigError, load_config
from scope_megatron.config.sections.data import DataSource
from scope_megatron.disk import write_atomically
from scope_megatron.instruments.commands.common import user_errors
from scope_megatron.instruments.evaluation.output.table import markdown_table


def main(
    config: Annotated[Path, typer.Argument(help="YAML file of a run of scope or opd.")],
    out: Annotated[Path, typer.Option(help="Directory of the results; a run's, for `diagnose`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Problems, as .jsonl or .parquet; left out: data.train.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="The first problems, this many.")] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Responses of the student to each.")] = 8,
    completions: Annotated[int, typer.Option(min=1, help="By the teacher, of each cut.")] = 4,
    most: Annotated[int, typer.Option(min=8, help="Incorrect responses used.")] = 1000,
    top_k: Annotated[int, typer.Option(min=0, help="k of the masses; 0: none.")] = 8,
) -> None:
    """Measure recovery by quartile of the teacher's perplexity."""
    with user_errors():
        # nothing goes to the run's own directory, which may hold a finished run
        here = f"output_dir={out / 'recovery'}"
        settings = load_config(config, [*(overrides or []), here])
        if not settings.needs_teacher or settings.rollout is None:
            raise ConfigError("algorithm.name: the study needs a teacher; give scope or opd")
        source = settings.data.train[0] if data is None else DataSource(name=str(data))
        study(settings, source, out, (prompts, samples, completions, most, top_k))


def study(
    settings: Config, source: DataSource, out: Path, sizes: tuple[int, int, int, int, int]
) -> None:
    """Sample, complete, summarise, write. ``sizes``: as the options."""
    from scope_megatron.data.dataset import PromptDataset
    from scope_megatron.data.tokenizer import load_tokenizer
    from tools.recovery.completion import complete
    from tools.recovery.findings import summarize_recovery
    from tools.recovery.overlap import top_k_masses
    from tools.recovery.samples import sample_student, wrong_responses

    prompts, samples, completions, most, top_k = sizes
    model, teacher = settings.model, settings.model.teacher
    assert teacher is not None and settings.rollout is not None
    tokenizer = load_tokenizer(model.tokenizer or model.student)
    dataset = PromptDataset(source, tokenizer, settings.data.max_prompt_tokens)
    file = sample_student(settings, source, out / "recovery", prompts, samples)
    wrong = wrong_responses(file, dataset, tokenizer)[:most]
    typer.echo(f"{len(wrong)} incorrect responses; the teacher completes them")
    attempts = complete(settings, tokenizer, wrong, completions)
    found = summarize_recovery(attempts)
    if top_k:
        heats = (settings.student_temperature, settings.teacher_temperature)
        masses = top_k_masses(model.student, teacher, wrong[:256], top_k, heats)
        found |= {"top_k": top_k, "student_mass": masses[0], "teacher_mass": masses[1]}
    found |= {"student": str(model.student), "teacher": str(teacher), "data": str(source.name)}
    lines = "".join(json.dumps(asdict(one)) + "\n" for one in attempts)
    write_atomically(out / "recovery.jsonl", lines)
    write_atomically(out / outputs.RECOVERY, json.dumps(found, indent=1) + "\n")
    text = recovery_markdown(found)
    write_atomically(out / "recovery.md", text)
    typer.echo(text)


def recovery_markdown(found: dict[str, Any]) -> str:
    """Table 7 with intervals, a row per cut, and the trends."""
    cuts = list(dict.fromkeys(one["cut"] for one in found["quartiles"]))
    bounds = [one for one in found["quartiles"] if one["cut"] == cuts[0]]
    head = ["kept"]
    head += [
        f"Q{one['quartile']} (PPL {one['low_perplexity']:.2f} to {one['high_perplexity']:.2f})"
        for one in bounds
    ]
    head += ["Spearman", "p", "within a prompt", "p", "Cochran-Armitage z", "p"]
    rows = []
    for cut, trend in zip(cuts, found["trends"], strict=True):
        row = ["all cuts" if cut is None else f"{100 * cut:.0f} %"]
        for one in found["quartiles"]:
            if one["cut"] == cut:
                low, high = 100 * one["low"], 100 * one["high"]
                row.append(f"{100 * one['recovery']:.1f} [{low:.1f}, {high:.1f}]")
        row += [f"{trend['spearman']:+.3f}", _p(trend["spearman_p"])]
        row += [_signed(trend["spearman_within"]), _p(trend["within_p"])]
        rows.append([*row, f"{trend['armitage_z']:+.2f}", _p(trend["armitage_p"])])
    parts = [
        f"{found['responses']:,} incorrect responses to {found['problems']:,} problems; the "
        f"teacher recovers {100 * found['recovery']:.1f} %.",
        markdown_table(head, rows),
        "Percent of completions that are correct, by quartile of the teacher's perplexity of the "
        "whole response; 95% intervals by bootstrap over problems.",
    ]
    if "student_mass" in found:
        parts.append(
            f"Mass on the other's {found['top_k']} likeliest tokens: student "
            f"{found['student_mass']:.3f}, teacher {found['teacher_mass']:.3f}."
        )
    return "\n\n".join(parts) + "\n"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


if __name__ == "__main__":
    typer.run(main)
