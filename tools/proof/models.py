"""Random models of a given shape as Hugging Face directories, and a run's configuration on them."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.code import ROOT

if TYPE_CHECKING:
    from scope_megatron.config import Config
    from scope_megatron.types import Rollout

TOKENIZER = ROOT / "assets" / "tiny-student"  # its few tokens are the first of every vocabulary


@dataclass(frozen=True)
class Qwen2Shape:
    """Of a Qwen 2 model."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = True

    @property
    def parameters(self) -> int:
        """All of them, a tied embedding once."""
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        bias = head * (self.heads + 2 * self.kv_heads)
        layer = attention + bias + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden

    def forward_flops(self, lengths: list[int]) -> float:
        """Of the matrix products and of causal attention over sequences of these lengths."""
        head = self.hidden // self.heads
        layer = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        layer += 3 * self.hidden * self.ffn
        per_token = 2.0 * (self.layers * layer + self.vocab * self.hidden)
        # scores and values: 2 products of 2 n^2/2 h FLOPs
        attention = sum(2.0 * n * n * head * self.heads * self.layers for n in lengths)
        return per_token * sum(lengths) + attention


HALF_B = Qwen2Shape(896, 4864, 24, 14, 2, 151936)  # Qwen2.5-0.5B
ONE_AND_A_HALF_B = Qwen2Shape(1536, 8960, 28, 12, 2, 151936)  # Qwen2.5-1.5B
TOY = Qwen2Shape(128, 192, 2, 4, 2, 256)  # heads of 32: the least that vLLM takes on a CPU
TOY_TEACHER = Qwen2Shape(128, 256, 3, 4, 2, 256)


def make_model(shape: Qwen2Shape, directory: Path, dtype: str, seed: int = 0) -> Path:
    """A directory that the trainer and vLLM load; made on the GPU where there is one."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=shape.tied,
        initializer_range=0.05,
        eos_token_id=None,
        pad_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.Qwen2ForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(directory)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, directory)
    return directory


def problems(path: Path, count: int, seed: int = 0) -> Path:
    """A file of prompts from the quickstart's arithmetic."""
    rows = (ROOT / "assets/arithmetic/train.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(seed).sample(rows, count)
    assert all("prompt" in json.loads(row) for row in chosen)
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return path


def settings(folder: Path, student: Path, teacher: Path | None, **changes: Any) -> Config:
    """A configuration of the whole trainer on these models; ``section__name`` changes a key."""
    from scope_megatron.config import Config

    raw: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "model": {"student": str(student)},
        "data": {"train": str(problems(folder / "train.jsonl", 64)), "max_prompt_tokens": 32},
        "rollout": {"prompts_per_step": 4, "group_size": 4, "max_response_tokens": 32},
        "train": {"steps": 4, "microbatch_tokens": 256},
        "evaluation": {"before": False, "after": False},
        "logging": {"progress": False, "tensorboard": False},
    }
    if teacher is None:
        raw["algorithm"] = {"name": "grpo", "kl_coef": 0.0}
    else:
        raw["model"]["teacher"] = str(teacher)
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return Config.model_validate(raw)


def random_rollouts(
    vocab: int, groups: int, samples: int, longest: int, seed: int = 0
) -> list[Rollout]:
    """Graded groups of random tokens, half of them correct."""
    from scope_megatron.types import Prompt, Rollout, Verdict

    rng = random.Random(seed)
    out = []
    for group in range(groups):
        prompt = Prompt(group, tuple(rng.randrange(vocab) for _ in range(rng.randint(2, 9))), "1")
        for sample in range(samples):
            length = rng.randint(max(1, longest // 4), longest)
            verdict = Verdict.CORRECT if (group + sample) % 2 else Verdict.INCORRECT
            ids = [rng.randrange(vocab) for _ in range(length)]
            engine = [0.0] * length
            out.append(Rollout(prompt, sample, ids, engine, finished=True, verdict=verdict))
    return out
