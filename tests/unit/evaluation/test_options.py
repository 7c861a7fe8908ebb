"""The command line's options become settings: defaults, the model's context, configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from scope_megatron.config import ConfigError
from scope_megatron.instruments.evaluation.options import Options, parse_set, resolve
from scope_megatron.instruments.evaluation.source import find_model
from scope_megatron.machine import validating_for
from tests.support.config_run import edit_json, make_run, write

ASSETS = Path(__file__).parents[3] / "assets"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def options(**changes: object) -> Options:
    return Options(**{"model": "student", "data": ("eval.jsonl",)} | changes)


def test_defaults_are_the_papers_as_far_as_the_context_goes(run: Path) -> None:
    settings = resolve([], options())
    assert (settings.samples, settings.temperature) == (32, 0.6)
    assert (settings.top_p, settings.top_k, settings.seed) == (0.95, 20, 1234)
    assert (settings.max_prompt_tokens, settings.max_tokens) == (128, 384)  # of 512 positions
    assert "responses end at 384 tokens" in settings.notes[0]
    edit_json("student/config.json", max_position_embeddings=40_960)
    settings = resolve([], options())
    assert (settings.max_prompt_tokens, settings.max_tokens) == (4096, 32_768)
    assert settings.notes == ()
    assert settings.ranks == 1
    assert settings.engine.gpu_memory_utilization == 0.9 and not settings.engine.sleep


def test_several_sets_after_one_option(run: Path) -> None:
    settings = resolve(["more=train.jsonl"], options())
    assert [(s.name, str(s.path)) for s in settings.sets] == [
        ("eval", "eval.jsonl"),
        ("more", "train.jsonl"),
    ]


def test_names_of_sets(run: Path) -> None:
    assert parse_set("aime24=x/y.parquet").name == "aime24"
    assert parse_set("x/MATH 500 (test).jsonl").name == "MATH-500-test-"
    write("a=b.jsonl", "{}")()  # a file whose name has an equals sign
    assert str(parse_set("a=b.jsonl").path) == "a=b.jsonl"


def test_the_same_command_finds_its_directory_and_another_makes_another(run: Path) -> None:
    first = resolve([], options()).out
    assert first == resolve([], options()).out
    assert first.parent == Path("evaluations") and first.name.startswith("student-")
    others = [options(seed=1), options(n=2), options(data=("x=eval.jsonl",)), options(limit=1)]
    names = {resolve([], one).out for one in others}
    write("eval.jsonl", '{"prompt": "5+5", "answer": "10"}\n')()
    names.add(resolve([], options()).out)
    weights = Path("student/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    names.add(resolve([], options()).out)
    assert len(names | {first}) == 7


def test_a_configuration_and_what_replaces_it(run: Path) -> None:
    settings = resolve(["run.yaml", "evaluation.samples=3", "seed=9"], Options())
    assert (settings.model, settings.samples, settings.seed) == ("student", 3, 9)
    assert (settings.max_prompt_tokens, settings.max_tokens) == (100, 300)
    assert [s.name for s in settings.sets] == ["eval"] and settings.metrics_line
    assert settings.out.parent == Path("run/evaluations")
    replaced = resolve(
        ["run.yaml"], Options(model="teacher", data=("a=train.jsonl", "eval.jsonl"), n=5)
    )
    assert (replaced.model, replaced.samples) == ("teacher", 5)
    assert replaced.source.weights == Path("teacher")
    assert [s.name for s in replaced.sets] == ["a", "eval"]
    two = resolve(["run.yaml", "parallel.tensor=2", "faults.restarts=3"], Options())
    assert (two.ranks, two.restarts) == (2, 3)
    again = resolve(["run.yaml", "parallel.tensor=2", "resume=auto"], Options())  # as restarted
    assert again.out == two.out


def test_ranks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve([], options(engines=2, engine_tensor=2)).ranks == 4
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert resolve([], options(engine_tensor=2)).ranks == 8


def test_one_engine_per_gpu(run: Path) -> None:
    with validating_for(gpus=6):
        assert resolve([], options()).ranks == 6
        assert resolve([], options(engine_tensor=2)).ranks == 6
        with pytest.raises(ConfigError, match="makes 8 ranks on this machine, which has 6 GPUs"):
            resolve([], options(engines=8))


def test_an_architecture_that_only_vllm_knows_is_not_refused(run: Path) -> None:
    edit_json("student/config.json", architectures=["OlmoForCausalLM"])
    assert resolve([], options()).source.weights == Path("student")


@pytest.mark.parametrize("where", ["export", "beside", "given"])
def test_the_base_of_a_checkpoint(run: Path, where: str) -> None:
    checkpoint = Path("run/checkpoints/step_00000002")
    write(str(checkpoint / ".metadata"), "")()
    base = {"export": Path("run/hf"), "beside": checkpoint, "given": Path("student")}[where]
    if where != "given":
        write(str(base / "config.json"), "{}")()
    found = find_model(str(checkpoint), base if where == "given" else None)
    assert found.is_checkpoint and found.weights == checkpoint
    assert found.base.resolve() == base.resolve()


def test_fingerprint_tells_models_apart_and_not_copies(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ASSETS / "tiny-student", "copied")
    original = find_model(str(ASSETS / "tiny-student"), None).fingerprint()
    assert find_model("copied", None).fingerprint() == original
    for place in (0.3, 0.999):
        shutil.copytree(ASSETS / "tiny-student", "changed", dirs_exist_ok=True)
        with Path("changed/model.safetensors").open("r+b") as file:
            file.seek(int(place * (ASSETS / "tiny-student/model.safetensors").stat().st_size))
            file.write(b"\xff\xff")
        assert find_model("changed", None).fingerprint() != original
