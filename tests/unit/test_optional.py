"""Transformer Engine and Apex that are installed and do not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.pretended import package, pretend

ROOT = Path(__file__).parents[2]
TE = """
import sys
from scope_megatron.parallel import optional
optional.hide_unusable(cuda={cuda})
import megatron.core.optimizer as optimizer
import megatron.core.extensions.transformer_engine as extensions
print(extensions.HAVE_TE, optimizer.USING_PYTORCH_OPTIMIZER)
"""


@pytest.mark.slow
@pytest.mark.parametrize("cuda", [True, False])
def test_half_an_installation_of_transformer_engine(tmp_path: Path, cuda: bool) -> None:
    """As TE 2.x without `[pytorch]` does, its import raises what megatron-core does not catch."""
    broken = "raise RuntimeError('Found empty `transformer-engine` meta package installed')\n"
    package(tmp_path, "transformer_engine", "2.9.0", broken)
    apex = "class FusedAdam: pass\nclass FusedSGD: pass\n"
    package(tmp_path, "apex", "0.1", "")
    (tmp_path / "apex/optimizers.py").write_text(apex)  # and no amp_C: it would raise when made
    env = pretend(tmp_path / "machine", gpus=0) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    env["SCOPE_DEVICE"] = "auto" if cuda else "cpu"

    def python(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    bare = python("import megatron.core.optimizer")
    assert bare.returncode == 1 and "RuntimeError: Found empty" in bare.stderr
    code = TE.format(cuda=cuda)
    if cuda:  # no GPU is here: what parallel/__init__.py asks of platform is told to it
        code = "import torch\ntorch.cuda.is_available = lambda: True\n" + code
    done = python(code)
    assert done.stdout == "False True\n", done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split()[1] for line in warnings] == (["transformer_engine", "apex"] * cuda)
    if cuda:
        assert "(RuntimeError: Found empty `transformer-engine` meta" in warnings[0]
        assert "pip install --no-build-isolation 'transformer-engine[pytorch]'" in warnings[0]
        assert "No module named 'amp_C'" in warnings[1]
