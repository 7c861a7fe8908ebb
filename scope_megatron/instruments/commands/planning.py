"""`plan`: what a run will need of memory and time, and which layouts are best."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from scope_megatron.config import Config, ConfigError, load_config, validating_for
from scope_megatron.config.load import read_values
from scope_megatron.instruments.commands.common import user_errors
from scope_megatron.instruments.plan.calibrate import Calibration, calibrate
from scope_megatron.instruments.plan.estimate import RunPlan, models_of
from scope_megatron.instruments.plan.facts.figures import (
    Efficiencies,
    GpuFigures,
    efficiencies_text,
    find_gpu,
    read_efficiencies,
)
from scope_megatron.instruments.plan.layout import (
    RunLayout,
    as_settings,
    layout_of,
    layout_problems,
)
from scope_megatron.instruments.plan.remedies import remedies
from scope_megatron.instruments.plan.search import Searched, search_layouts
from scope_megatron.instruments.plan.warning import shortage
from scope_megatron.instruments.plan.workload import workload_of

MOST_GPUS = 2**20
_FILE_WIDTH = 160
_RESET = ("parallel={}", "rollout.engine.tensor=1")  # what a search chooses itself


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings that replace the file's"),
]
Gpus = Annotated[int, typer.Option(metavar="N", help="GPUs of the run, all nodes")]
GpuName = Annotated[
    str, typer.Option(metavar="NAME", help="a100, h100, h200, h20, b200, gb200 or l40s")
]
Search = Annotated[bool, typer.Option("--search", help="find the best layouts")]
Top = Annotated[int, typer.Option(min=1, max=100, help="layouts to show of them")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="write the configuration of the best layout, or --calibrate's result"
    ),
]
MeanResponse = Annotated[
    float | None, typer.Option(metavar="TOKENS", help="mean length of a response")
]
MeanPrompt = Annotated[float | None, typer.Option(metavar="TOKENS", help="mean length of a prompt")]
Sigma = Annotated[
    float | None, typer.Option(help="of the lengths' logarithm: how long the tail is")
]
LengthsFile = Annotated[
    Path | None,
    typer.Option("--lengths", metavar="FILE", help="lengths of responses, a number a line"),
]
Incorrect = Annotated[
    float | None, typer.Option(metavar="SHARE", help="responses that are incorrect")
]
FromRun = Annotated[
    Path | None, typer.Option(metavar="RUN", help="lengths from this run's metrics")
]
CalibrateTo = Annotated[
    Path | None,
    typer.Option("--calibrate", metavar="RUN", help="fit efficiencies to a run of CONFIG"),
]
EfficienciesFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="what --calibrate wrote")
]
Online = Annotated[bool, typer.Option("--online", help="ask the hub for config.json")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
PictureFile = Annotated[Path | None, typer.Option("--picture", metavar="FILE", help="draw it")]


def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    gpus: Gpus = 0,
    gpu: GpuName = "h100",
    search: Search = False,
    top: Top = 5,
    out: Out = None,
    mean_response: MeanResponse = None,
    mean_prompt: MeanPrompt = None,
    sigma: Sigma = None,
    lengths_file: LengthsFile = None,
    incorrect: Incorrect = None,
    from_run: FromRun = None,
    calibrate_to: CalibrateTo = None,
    efficiencies: EfficienciesFile = None,
    online: Online = False,
    as_json: AsJson = False,
    picture: PictureFile = None,
) -> None:
    """Plan memory and time of a run, without a GPU, weights or torch."""
    with user_errors():
        chosen = find_gpu(gpu)
        reached = Efficiencies() if efficiencies is None else read_efficiencies(efficiencies)
        settings = _settings(config, overrides or [], _count(gpus), chosen, search)
        models, named = models_of(settings, online)
        lengths = (mean_response, sigma, mean_prompt, incorrect)
        run = ("--calibrate", calibrate_to) if calibrate_to else ("--from-run", from_run)
        work = workload_of(settings, *lengths, *run, lengths_file)
        layout = layout_of(settings)
        base = RunPlan(models, layout, work, chosen, reached)
        if calibrate_to is not None:
            _tell_calibration(calibrate(base, calibrate_to), out, as_json)
            return
        found: Searched | None = None
        if search:
            found = search_layouts(base, gpus, top)
            base = _best(found, gpus)
        else:
            problems = list(layout_problems(layout, models.student, models.teachers))
            if problems:
                raise ConfigError(*problems)
            base = _placed(base, gpus)
        _tell(base, named, found, as_json, picture)
        if out is not None:
            _write(out, _yaml(settings, base.layout))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(
            f"--out: {path} cannot be written ({error.strerror}); give another path"
        ) from None


def _count(gpus: int) -> int:
    if not 1 <= gpus <= MOST_GPUS:
        raise ConfigError(f"--gpus: is {gpus}; give the number of GPUs, 1 to {MOST_GPUS}")
    return gpus


def _settings(
    config: Path, overrides: list[str], gpus: int, gpu: GpuFigures, search: bool
) -> Config:
    """The configuration for so many GPUs. Without a search what it leaves is filled by replicas."""
    per_node = min(gpus, gpu.per_node)
    nodes = math.ceil(gpus / per_node)
    with validating_for(per_node, nodes, packages=False):
        if search:
            kept = [text for text in overrides if not text.startswith("parallel.")]
            reset = _reset(read_values(config, kept))
            return load_config(config, [*kept, *reset], check_files=False)
        more = _replicas(read_values(config, overrides), gpus)
        return load_config(config, [*overrides, *more], check_files=False)


def _replicas(values: dict[str, Any], gpus: int) -> list[str]:
    """The override that fills the GPUs, where the sizes that are given leave some."""
    parallel, rollout = values.get("parallel") or {}, values.get("rollout") or {}
    if not isinstance(parallel, dict) or not isinstance(rollout, dict):
        return []  # refused when it is loaded
    names = ("tensor", "pipeline", "context")
    sizes = [parallel.get(name, 1) for name in names]
    own = rollout.get("ranks", 0) if rollout.get("placement") == "separate" else 0
    data = parallel.get("data", 1)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or not isinstance(own, int):
        return []
    cut, training = math.prod(sizes), gpus - own
    given = data if isinstance(data, int) else 1
    fills = cut * given < training and training % cut == 0
    return [f"parallel.data={training // cut}"] if fills else []


def _reset(values: dict[str, Any]) -> list[str]:
    """Overrides of what a search chooses itself."""
    return [*_RESET[:1], *(_RESET[1:] if values.get("rollout") else ())]


def _placed(base: RunPlan, gpus: int) -> RunPlan:
    """With as many replicas as the GPUs are."""
    layout = base.layout
    cut, own = layout.tensor * layout.pipeline * layout.context, layout.sampling
    if (gpus - own) % cut or gpus <= own:
        more = f" + rollout.ranks {own}" if own else ""
        raise ConfigError(
            f"--gpus: is {gpus}, not a multiple of tensor x context x pipeline {cut}{more}; "
            f"give {max(1, (gpus - own) // cut) * cut + own}, or --search"
        )
    return replace(base, layout=replace(layout, data=(gpus - own) // cut))


def _best(found: Searched, gpus: int) -> RunPlan:
    if found.plans:
        return found.plans[0]
    if found.nearest is None:
        raise ConfigError(
            f"--gpus: no layout of {gpus} ranks cuts the models and the prompts of a step evenly; "
            "change --gpus or rollout.prompts_per_step"
        )
    raise ConfigError(
        f"--gpus: no layout of {gpus} fits; nearest is {found.nearest.layout.text()}: "
        f"{shortage(found.nearest)}; give more or larger GPUs"
    )


def _yaml(settings: Config, layout: RunLayout) -> str:
    """The configuration with the layout's settings."""
    values = settings.model_dump(mode="json")
    for key, value in as_settings(layout, settings).items():
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[name] = value
    return Config.model_validate(values).to_yaml()


def _tell(
    base: RunPlan, named: list[Any], found: Searched | None, as_json: bool, picture: Path | None
) -> None:
    from rich.console import Console

    from scope_megatron.instruments.plan.picture import write_picture
    from scope_megatron.instruments.plan.report import as_data, layout_row, search_table, show_plan

    ways = [] if base.fits else remedies(base)
    if picture is not None:
        write_picture(base, picture)
    if as_json:
        data = as_data(base, named, ways)
        if found is not None:
            data["search"] = [
                layout_row(p.layout) | {"seconds": p.time.total, "peak_bytes": p.fullest.peak}
                for p in found.plans
            ]
        print(json.dumps(data, indent=1))
        return
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:  # a file has no width: layouts on one line
        console = Console(soft_wrap=True, highlight=False, width=max(console.width, _FILE_WIDTH))
    if found is not None:
        console.print(search_table(found))
    show_plan(console, base, named, ways)


def _tell_calibration(fitted: Calibration, out: Path | None, as_json: bool) -> None:
    text = efficiencies_text(fitted.reached)
    if out is not None:
        _write(out, text)
    if as_json:
        print(json.dumps({"measured": fitted.measured, "after": fitted.after}))
        return
    for phase, seconds in fitted.measured.items():
        before, after = fitted.before.get(phase, 0.0), fitted.after.get(phase, 0.0)
        print(f"# {phase}: {seconds:.3f} s measured, {before:.3f} planned, {after:.3f} fitted")
    print(text, end="")
