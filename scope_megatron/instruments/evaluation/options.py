"""From the command line's options, with or without a configuration, to checked settings.

Everything here is torch-free: a wrong option ends in one line before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_megatron.config import Config, ConfigError, EngineConfig, VerifierConfig, load_config
from scope_megatron.config.names import at_commit
from scope_megatron.config.sections.data import DataSource
from scope_megatron.hub import HubError, hub_name, shown_path
from scope_megatron.hub.names import name_of_snapshot
from scope_megatron.instruments.evaluation.rules import (
    LONGEST_RESPONSE,
    engine_ranks,
    option_problems,
    settings_problems,
    usual_lengths,
)
from scope_megatron.instruments.evaluation.settings import EvaluationSet, EvaluationSettings
from scope_megatron.instruments.evaluation.source import ModelSource, find_model
from scope_megatron.machine import choose
from scope_megatron.outputs import EVALUATIONS, HF, is_checkpoint_name

PAPER = {"n": 32, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "seed": 1234, "dtype": "auto"}
ALONE = 0.9  # share of a GPU's memory: no trainer stands beside the engine
CONFIGS = (".yaml", ".yml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options as given; None where one was left out."""

    model: str | None = None
    data: tuple[str, ...] = ()
    base: Path | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_prompt_tokens: int | None = None
    system_prompt: str | None = None
    limit: int | None = None
    seed: int | None = None
    dtype: str | None = None
    verifier: str | None = None
    custom: str | None = None
    device: str | None = None
    workers: int | None = None
    engines: int | None = None
    engine_tensor: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_gib: float | None = None
    max_num_seqs: int | None = None
    draws: int | None = None
    out: Path | None = None


def split_arguments(arguments: list[str], options: Options) -> tuple[Path | None, list[str]]:
    """(configuration, its overrides) among the positional arguments.

    Without a configuration there are none: `--data A B` puts B there, see :func:`more_sets`.
    """
    if arguments and Path(arguments[0]).suffix in CONFIGS:
        return Path(arguments[0]), arguments[1:]
    if options.model is None and options.data:
        raise ConfigError("--model: is missing; give a Hugging Face directory or a checkpoint")
    if options.model is None:
        raise ConfigError(
            "evaluate: nothing to evaluate; give a CONFIG.yaml, or --model and --data"
        )
    return None, []


def resolve(arguments: list[str], options: Options) -> EvaluationSettings:
    """Settings of the command line, checked. Raises ConfigError."""
    config_path, overrides = split_arguments(arguments, options)
    if problems := list(option_problems(options, config_path is not None)):
        raise ConfigError(*problems)
    if config_path is not None:
        settings = from_config(config_path, overrides, options)
    else:
        settings = from_options(options, tuple(arguments))
    if problems := list(settings_problems(settings)):
        raise ConfigError(*problems)
    return settings


def from_options(options: Options, more_sets: tuple[str, ...] = ()) -> EvaluationSettings:
    """Without a configuration: the paper's settings where an option was left out."""
    if not (options.data or more_sets):
        raise ConfigError("--data: is missing; give at least one .jsonl or .parquet file")
    assert options.model is not None
    source, machine = find_model(options.model, options.base), choose(options.device or "auto")
    engine = EngineConfig.model_validate(
        {"tensor": options.engine_tensor or 1, "gpu_memory_utilization": ALONE, "sleep": False}
        | given(options, "gpu_memory_utilization", "kv_cache_gib", "max_num_seqs")
    )
    prompt, response = usual_lengths(options, source.base)
    values = PAPER | given(options, *PAPER)
    notes = []
    if response < (options.max_tokens or LONGEST_RESPONSE):
        notes.append(
            f"responses end at {response:,} tokens: the model's context after prompts of up to "
            f"{prompt:,}"
        )
    return _settings(
        options,
        source=source,
        model=options.model,
        sets=tuple(map(parse_set, (*options.data, *more_sets))),
        engine=engine,
        verifier=VerifierConfig.model_validate(_verifier(options)),
        ranks=engine_ranks(options, machine),
        device="cuda" if machine.problem and options.device == "cuda" else machine.device,
        max_prompt_tokens=prompt,
        max_tokens=response,
        below=Path(EVALUATIONS),
        notes=tuple(notes),
        values=values,
    )


def from_config(path: Path, overrides: list[str], options: Options) -> EvaluationSettings:
    """``model.student`` on ``data.eval`` with ``evaluation``; options replace single settings."""
    sets = tuple(map(parse_set, options.data))
    source = None
    if options.model is not None:
        config = load_config(path, overrides, check_files=False, command="evaluate")
        source = find_model(options.model, options.base or _base_if_needed(options.model, config))
        overrides = [*overrides, f"model.student={json.dumps(str(source.base))}"]
    if sets:
        overrides = [*overrides, f"data.eval={json.dumps(sets[0].source.model_dump(mode='json'))}"]
    config = load_config(path, overrides, command="evaluate")
    evaluation, response = config.evaluation, config.evaluation_response_tokens
    assert config.data.eval is not None and response is not None  # rules of the loader
    alone: dict[str, Any] = {"sleep": False}
    if "gpu_memory_utilization" not in config.engine.model_fields_set:
        alone["gpu_memory_utilization"] = ALONE
    own = {"n": evaluation.samples, "seed": config.seed, "dtype": config.model.dtype}
    own |= {name: getattr(evaluation, name) for name in ("temperature", "top_p", "top_k")}
    return _settings(
        options,
        source=source or find_model(str(config.model.student), None, "model.student"),
        model=options.model or shown_path(config.model.student),
        tokenizer=config.model.tokenizer,
        sets=sets or _sets_of(config),
        engine=config.engine.model_copy(update=alone),
        verifier=config.verifier.model_copy(update=_verifier(options)),
        ranks=config.world_size,
        device=config.platform.device,
        max_prompt_tokens=options.max_prompt_tokens or config.data.max_prompt_tokens,
        max_tokens=options.max_tokens or response,
        system_prompt=options.system_prompt or config.data.system_prompt,
        chat_template_kwargs=config.data.chat_template_kwargs,
        cache_dir=config.data.cache_dir,
        limit=options.limit or evaluation.limit,
        below=config.output_dir / EVALUATIONS,
        restarts=config.faults.restarts,
        values=own | given(options, *own),
        metrics_line=True,
    )


def _base_if_needed(model: str, config: Config) -> Path | None:
    """The configuration's student stands by a checkpoint that has no config.json beside it."""
    if (Path(model).expanduser() / "config.json").is_file():
        return None
    return config.model.student


def _settings(
    options: Options, *, values: dict[str, Any], below: Path, **rest: Any
) -> EvaluationSettings:
    """``values``: those of PAPER's names. Without --out the directory is named by the contents."""
    values = dict(values)
    fields = {
        "tokenizer": None,
        "system_prompt": options.system_prompt,
        "limit": options.limit,
        "samples": values.pop("n"),
        "out": options.out or Path(),
        **given(options, "draws"),
        **values,
        **rest,
    }
    settings = EvaluationSettings(**fields)
    if options.out is None:
        out = below / default_name(settings)
        settings = EvaluationSettings(**fields | {"out": out})
    return settings


def given(options: Options, *names: str) -> dict[str, Any]:
    """The options among ``names`` that were given."""
    return {name: v for name in names if (v := getattr(options, name)) is not None}


def _verifier(options: Options) -> dict[str, Any]:
    values = {"name": options.verifier, "custom": options.custom, "workers": options.workers}
    return {name: value for name, value in values.items() if value is not None}


def parse_set(text: str) -> EvaluationSet:
    """``NAME=PATH``, or a path whose file's name is the set's. Raises ConfigError."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"--data: {name!r} cannot name a set; use letters, digits, dots, dashes and "
                "underscores"
            )
        return EvaluationSet(name, _source(path))
    return EvaluationSet(_stem(text), _source(text))


def _stem(text: str) -> str:
    """A set's name from its path or Hub name."""
    name = hub_name(text)
    last = name.repo.partition("/")[2] if name else Path(text).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-") or "set"


def _source(text: str) -> DataSource:
    """A Hub name stands at the commit that it has now. Raises ConfigError."""
    source = DataSource(name=text)
    try:
        return at_commit(source, "--data")
    except HubError as error:
        raise ConfigError(f"--data: {error}") from None


def _sets_of(config: Config) -> tuple[EvaluationSet, ...]:
    """The sets of data.eval, each with the columns that hold for it."""
    data = config.data
    return tuple(
        EvaluationSet(
            name or _stem(source.name),
            source.model_copy(update={"columns": data.columns_of(source)}),
        )
        for name, source in (data.eval or {}).items()
    )


def default_name(settings: EvaluationSettings) -> str:
    """``MODEL-1f2e3d4c``: the same command finds its directory again, another one makes another."""
    digest = hashlib.sha256(settings.source.fingerprint().encode())
    asked = [settings.sampling(), settings.limit, settings.system_prompt, settings.verifier.name]
    digest.update(json.dumps([*asked, settings.max_prompt_tokens]).encode())
    for entry in settings.sets:
        path = entry.path
        content = path.read_bytes() if path.is_file() else str(entry.source).encode()
        digest.update(f"{entry.name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return f"{_model_name(settings.source)}-{digest.hexdigest()[:8]}"


def _model_name(source: ModelSource) -> str:
    if name := name_of_snapshot(source.weights):
        return f"{name.repo.replace('/', '-')}-{name.revision[:8]}"
    weights = source.weights.absolute()
    if is_checkpoint_name(weights.name):
        return f"{weights.parents[1].name}-{weights.name}"
    return f"{weights.parent.name}-{HF}" if weights.name == HF else weights.name
