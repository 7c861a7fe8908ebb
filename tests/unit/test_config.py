"""Right settings load, with the values that the file, the overrides and the defaults give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pydantic
import pytest
from safetensors.numpy import load_file, save_file

from scope_megatron.config import (
    ConfigError,
    load_config,
    modeldir,
    reference_markdown,
    validating_for,
)
from tests.support.config_run import TOKENS, append, edit_json, make_run, write

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def test_good_config_loads(run: Path) -> None:
    config = load_config("run.yaml")
    assert config.optimizer.lr == 5e-5  # PyYAML alone reads 5e-5 as text
    assert [source.path for source in config.data.train] == [Path("train.jsonl")]
    assert (config.world_size, config.needs_teacher, config.needs_engine) == (1, True, True)
    assert (config.max_sequence_tokens, config.max_model_len) == (400, 400)
    with pytest.raises(pydantic.ValidationError):
        config.seed = 5  # type: ignore[misc]


def test_limits_are_inclusive(run: Path) -> None:
    overrides = [
        "rollout.top_k=40",
        "rollout.top_p=1.0",
        "evaluation.top_k=-1",
        "rollout.max_response_tokens=412",
        "train.microbatch_tokens=512",
        "rollout.engine.max_model_len=512",
        "parallel={tensor: 2, pipeline: 4, data: 2, sequence: true}",
        "rollout.engine.tensor=2",
    ]
    config = load_config("run.yaml", overrides)
    assert (config.world_size, config.max_model_len) == (16, 512)


def test_override_is_yaml_and_the_last_one_wins(run: Path) -> None:
    overrides = ["objective.tau=3", "objective.tau=2e-1", "data.system_prompt=a=b", "logging=null"]
    config = load_config("run.yaml", overrides)
    assert config.objective.tau == 0.2
    assert config.data.system_prompt == "a=b"
    assert config.logging.tensorboard
    assert config.optimizer.lr == 5e-5


def test_yaml_anchors_merge(run: Path) -> None:
    append("verifier: &v {timeout_s: 2.0}\nevaluation: {samples: 3}\n")()
    text = Path("run.yaml").read_text().replace("evaluation: {", "evaluation: {<<: {limit: 7}, ")
    Path("run.yaml").write_text(text)
    config = load_config("run.yaml")
    assert (config.evaluation.limit, config.evaluation.samples) == (7, 3)


def test_round_trip(run: Path) -> None:
    config = load_config("run.yaml", ["objective.tis_clip=2", "data.train=[train.jsonl]"])
    Path("again.yaml").write_text(config.to_yaml())  # it follows the rollouts still
    assert load_config("again.yaml") == config


def test_opd_samples_once_unless_told(run: Path) -> None:
    opd = ["algorithm.name=opd"]
    assert load_config("run.yaml").rollout.group_size == 8
    assert load_config("run.yaml", opd).rollout.group_size == 1
    assert load_config("run.yaml", [*opd, "rollout.group_size=4"]).rollout.group_size == 4


def test_reference_code_reverses_the_students_weights(run: Path) -> None:
    config = load_config("run.yaml", ["objective.preset=reference_code"])
    assert config.objective.student_weight == "reversed"
    assert config.objective.teacher_weight == "perplexity"
    Path("again.yaml").write_text(config.to_yaml())  # it follows the rollouts still
    assert load_config("again.yaml") == config
    assert load_config("run.yaml").objective.student_weight == "perplexity"


def test_grpo_needs_no_teacher(run: Path) -> None:
    config = load_config("run.yaml", ["algorithm.name=grpo", "model.teacher=null"])
    assert not config.needs_teacher
    load_config("run.yaml", ["algorithm.name=grpo", "model.teacher=nowhere"])


def test_kd_needs_neither_rollout_nor_engine(run: Path) -> None:
    overrides = ["algorithm.name=kd", "train.batch_sequences=4", "rollout=null", "data.eval=null"]
    overrides += ["evaluation={before: false, after: false}", "model.teacher=null"]
    edit_json("student/config.json", head_dim=16)  # which only an engine would mind
    config = load_config("run.yaml", overrides)
    assert not config.needs_engine and not config.needs_teacher
    assert config.max_sequence_tokens == config.train.microbatch_tokens == 400


def test_the_teachers_temperature_is_a_number_of_its_own_or_the_rollouts(run: Path) -> None:
    heat = "objective.teacher_temperature"
    for given, wanted in (
        ([], 1.0),
        ([f"{heat}=2"], 2.0),
        ([f"{heat}=as_rollout"], 0.6),
        ([f"{heat}=as_rollout", "rollout.temperature=0.7"], 0.7),
    ):
        assert load_config("run.yaml", given).teacher_temperature == wanted
    config = load_config("run.yaml", [f"{heat}=as_rollout"])
    Path("again.yaml").write_text(config.to_yaml())  # it follows the rollouts still
    again = load_config("again.yaml", ["rollout.temperature=0.9"])
    assert (again.teacher_temperature, again.student_temperature) == (0.9, 0.9)


def test_evaluation_length_sets_the_engines(run: Path) -> None:
    config = load_config("run.yaml", ["evaluation.max_response_tokens=350"])
    assert (config.max_sequence_tokens, config.max_model_len) == (400, 450)


def test_evaluate_looks_only_at_what_it_needs(run: Path) -> None:
    write("run/checkpoints/latest", "step_3")()
    overrides = ["model.teacher=null", "data.train=nowhere.jsonl"]
    load_config("run.yaml", overrides, command="evaluate")
    with pytest.raises(ConfigError, match=r"^data\.eval: is missing but the evaluate command"):
        load_config("run.yaml", ["data.eval=null"], command="evaluate")


def test_resume_goes_on_with_a_run(run: Path) -> None:
    write("run/checkpoints/latest", "step_3")()
    load_config("run.yaml", ["resume=auto"])
    load_config("run.yaml", ["resume=run/checkpoints", "output_dir=other"])


def test_settings_for_another_machine(run: Path) -> None:
    """A login node has no GPU; the job it submits has."""
    pytest.importorskip("triton")
    with validating_for(gpus=1):
        load_config("run.yaml", ["objective.kernel=triton"])
    with pytest.raises(ConfigError, match="no CUDA device"):
        load_config("run.yaml", ["objective.kernel=triton"])


def test_world_size_of_the_launcher(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    load_config("run.yaml", ["parallel={tensor: 2, data: 2}"])
    with pytest.raises(ConfigError, match=r"^parallel: .* is 2 but WORLD_SIZE is 4; "):
        load_config("run.yaml", ["parallel.tensor=2"])


def test_head_dim_is_free_on_cuda(run: Path) -> None:
    edit_json("student/config.json", head_dim=16)
    with validating_for(gpus=1):
        load_config("run.yaml")


def test_triton_is_asked_for_where_it_can_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # not installed, for who looks
    with validating_for(gpus=1):
        with pytest.raises(ConfigError, match=r"^objective\.kernel: triton needs triton, which is"):
            load_config("run.yaml", ["objective.kernel=triton"])
        load_config("run.yaml", ["objective.kernel=auto"])
    with validating_for(gpus=1, packages=False):  # a container
        load_config("run.yaml", ["objective.kernel=triton"])


def test_shards_and_sentencepiece_are_read(run: Path) -> None:
    Path("student/model.safetensors").rename("student/model-1.safetensors")
    save_file({"lm_head.weight": np.zeros((64, 64), np.float32)}, "student/model-2.safetensors")
    edit_json("student/config.json", tie_word_embeddings=False)
    index = {
        name: file.name
        for file in Path("student").glob("*.safetensors")
        for name in load_file(file)
    }
    path = Path("student/model.safetensors.index.json")
    path.write_text(json.dumps({"weight_map": index}))
    for directory in ("student", "teacher"):
        Path(directory, "tokenizer.json").unlink()
        Path(directory, "tokenizer.model").write_text("the same pieces")
    load_config("run.yaml")
    load_config("run.yaml", ["model.tokenizer=student/tokenizer.model"])


def test_unigram_and_bpe_files_are_the_same_map(run: Path) -> None:
    tokens = modeldir.token_map(Path("student/tokenizer.json"))
    pieces = [[tokens[index], 0.0] for index in range(TOKENS)]
    write("teacher/tokenizer.json", json.dumps({"model": {"vocab": pieces}}))()
    load_config("run.yaml")


def test_configs_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with validating_for(gpus=8):
        load_config(path, check_files=False)


def test_paper_config_has_the_papers_values() -> None:
    with validating_for(gpus=8):
        config = load_config(ROOT / "configs" / "paper_1p5b.yaml", check_files=False)
    assert config.rollout is not None
    optimizer, rollout, evaluation = config.optimizer, config.rollout, config.evaluation
    assert (optimizer.lr, optimizer.schedule, optimizer.weight_decay) == (5e-5, "constant", 0.01)
    assert (rollout.prompts_per_step, rollout.group_size, rollout.temperature) == (256, 8, 0.6)
    assert (config.data.max_prompt_tokens, rollout.max_response_tokens) == (4096, 12288)
    assert (config.objective.tau, config.train.updates_per_batch) == (1.0, 1)
    assert (evaluation.temperature, evaluation.top_p, evaluation.top_k) == (0.6, 0.95, 20)
    assert (evaluation.samples, evaluation.max_response_tokens) == (32, 32768)


def test_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_markdown(), "run: python -m tools.config_reference"
