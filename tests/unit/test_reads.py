"""A setting is read by the algorithm, or refused: the records of algorithm/table.py, both ways."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from scope_megatron.algorithm import ALGORITHM_SPECS, readers_of
from scope_megatron.config import AlgorithmConfig, Config
from scope_megatron.config.keys import algorithm_settings, choices, field_of
from scope_megatron.config.rules import setting_problems
from scope_megatron.config.sections.read_with import READ_WITH
from scope_megatron.learn.algorithms import ALGORITHMS, weigh
from tests.support.switches import made_batch, made_config

FIELDS = {key: field for key, field in algorithm_settings() if key != "algorithm.name"}
CANDIDATES = (True, 2, 0.25, 1.5, "{answer}", {"tensor": 2}, {"math": "t"})
# read by the head, by the clip of ratios, by routing, passes and frozen models: not by weights
ELSEWHERE = {
    *(f"algorithm.clip_{name}" for name in ("eps", "high", "dual")),
    *(f"objective.{name}" for name in ("head", "kernel", "moe_aux_loss_coeff", "truncated")),
    *(f"objective.{name}" for name in ("old_logprobs", "tis_clip", "teacher_temperature")),
    *(f"objective.{name}" for name in ("kl", "jsd_beta", "topk", "topk_of", "topk_tail")),
    *(f"objective.{name}" for name in ("entropy_threshold", "extrapolation", "teacher_gap")),
    *(f"teacher.{name}" for name in ("source", "privileged", "offload", "dtype", "parallel")),
    *("model.teachers", "train.batch_sequences"),
}

# batches of kd are of single responses, unlike this one
KD_HAS_NO_GROUPS = {f"algorithm.{n}" for n in ("group_filter", "pass_rate_alpha", "pass_rate_beta")}
BATCH = made_batch()


def settings(name: str, values: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {"algorithm": {"name": name}}
    for key, value in values.items():
        section, _, setting = key.partition(".")
        sections.setdefault(section, {})[setting] = value
    return made_config(**sections)


def another(key: str) -> Any:
    """A value that is not the default."""
    field = FIELDS[key]
    for value in (*choices(field), *CANDIDATES):
        try:
            if settings("scope", {key: value}).value_of(key) != field.default:
                return value
        except ValidationError:
            continue
    raise AssertionError(f"{key}: no value is known")


def conditions(key: str) -> dict[str, Any]:
    """Values of other settings with which all that may read a setting do."""
    where = (one for name in readers_of(key) for one in ALGORITHM_SPECS[name].reads[key])
    return {one.key: one.above + 8 if one.value is None else one.value for one in where}


def refusals(config: Config, key: str) -> list[str]:
    lines = [line for line in setting_problems(config, "train") if line.startswith(f"{key}: ")]
    return [line for line in lines if "remove it" in line]


def test_each_algorithm_has_a_record() -> None:
    names = list(get_args(AlgorithmConfig.model_fields["name"].annotation))
    assert names == list(ALGORITHM_SPECS) == list(ALGORITHMS)


def test_records_name_settings_and_values_that_exist() -> None:
    assert [key for key in FIELDS if not readers_of(key)] == []
    tables = [spec.reads for spec in ALGORITHM_SPECS.values()]
    tables.append({key: (one,) for key, one in READ_WITH.items()})
    for key, where in (entry for reads in tables for entry in reads.items()):
        assert field_of(key) is not None
        for one in where:
            field = field_of(one.key)
            assert field is not None
            assert one.value in (None, True, *choices(field)), one


@pytest.mark.parametrize("name", ALGORITHM_SPECS)
def test_what_is_not_read_is_refused(name: str) -> None:
    """Every setting, with a value that is not its default: alone, and with what it asks for."""
    reads = ALGORITHM_SPECS[name].reads
    for key in FIELDS:
        alone = settings(name, {key: another(key)})
        assert len(refusals(alone, key)) == (not alone.reads(key)), key
        together = settings(name, {**conditions(key), key: another(key)})
        assert len(refusals(together, key)) == (key not in reads), key


@pytest.mark.parametrize("name", ALGORITHM_SPECS)
def test_defaults_and_presets_are_never_refused(name: str) -> None:
    """A resolved configuration has every key, and the values that a preset stands for."""
    for preset in ("paper", "reference_code"):
        config = settings(name, {"objective.preset": preset})
        again = Config.model_validate(config.model_dump())
        assert [line for key in FIELDS for line in refusals(again, key)] == []


def test_weights_read_what_the_records_say() -> None:
    """Of every setting: the algorithms whose weights it changes are those that read it."""
    elsewhere = set()
    for key in FIELDS:
        given = conditions(key)
        both = given, given | {key: another(key)}
        ways = {n: [weights(settings(n, values)) for values in both] for n in ALGORITHM_SPECS}
        changed = {name for name, (plain, other) in ways.items() if plain != other}
        if not changed:
            elsewhere.add(key)
        elif key not in KD_HAS_NO_GROUPS:
            assert changed == set(readers_of(key)), key
        else:
            assert changed - {"kd"} == set(readers_of(key)), key
    assert elsewhere == ELSEWHERE


def weights(config: Config) -> dict[str, Any]:
    streams = weigh(BATCH, config).streams
    tokens = {
        name: {index: values.tolist() for index, values in by_response.items()}
        for name, by_response in streams.tokens.items()
    }
    return {name: factor.tolist() for name, factor in streams} | {"tokens": tokens}
