"""What vLLM is given on GPUs: its arguments, not its start."""

from __future__ import annotations

import pytest

from scope_megatron.config import EngineConfig
from scope_megatron.engine.vllm import _platform_arguments
from scope_megatron.parallel import platform


@pytest.fixture(autouse=True)
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: True)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "tensor", "disabled"),
    [
        ({}, 2, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, 2, True),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512, expandable_segments:true"}, 2, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, 1, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, 2, False),
        (  # torch reads the first of the two alone
            {
                "PYTORCH_ALLOC_CONF": "max_split_size_mb:512",
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            },
            2,
            False,
        ),
    ],
    ids=str,
)
def test_segments_that_grow_and_vllms_all_reduce_do_not_meet(
    options: dict[str, str],
    tensor: int,
    disabled: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    arguments = _platform_arguments(EngineConfig(tensor=tensor), True, 64)
    assert arguments["disable_custom_all_reduce"] is disabled
    told = capsys.readouterr().out
    assert told.count("\n") == disabled
    assert told.startswith("warning: rollout.engine.tensor: ") is disabled
