"""The conversion tool's plan, and the options that say for which layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.convert_tool import convert, in_process
from tests.support.tiny_hf import make_tiny_model


def test_dry_run_needs_no_weights(tmp_path: Path) -> None:
    llama = {  # Llama 2 7B
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(llama))
    result = convert("--hf", tmp_path, "--out", tmp_path / "out", "--to", "megatron", "--dry-run")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    qkv = "decoder.layers.{layer}.self_attention.linear_qkv.weight"
    assert f"    32 x {qkv}  [12288, 4096]  3072.0 MiB" in lines
    assert lines[-2:] == [
        "LlamaForCausalLM: 195 tensors, 6,738,415,616 parameters, bfloat16",
        "12.55 GiB to write",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--tp", 3], "--tp 3 does not divide num_attention_heads 4; give a divisor"),
        (["--pp", 3], "--pp 3 does not divide num_hidden_layers 4; give a divisor"),
        (["--ep", 2], "--ep 2: Qwen2ForCausalLM has no experts; leave it out"),
        (["--shard-size", "2"], "--shard-size 2: give a size as 500MB or 2GB"),
    ],
)
def test_options_that_do_not_fit(
    option: list[object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_tiny_model("qwen2-bias", tmp_path)
    arguments = ["--hf", tmp_path, "--out", tmp_path / "out", "--to", "megatron"]
    assert in_process(*arguments, *option) == 2
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_expert_layout_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_model("mixtral", tmp_path)
    arguments = ["--hf", tmp_path, "--out", tmp_path / "out", "--to", "megatron", "--dry-run"]
    assert in_process(*arguments, "--ep", 3) == 2
    error = "error: --ep 3 does not divide the number of experts, 4; give a divisor\n"
    assert capsys.readouterr().err.endswith(error)
    assert in_process(*arguments, "--ep", 2, "--tp", 2) == 0
    assert "per rank at tensor 2 x pipeline 1, experts over 2" in capsys.readouterr().out
