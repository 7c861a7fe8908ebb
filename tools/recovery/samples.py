"""The student's responses to the problems, sampled and judged by `scope-megatron evaluate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scope_megatron.config import Config
from scope_megatron.config.sections.data import DataSource
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.types import Prompt


@dataclass(frozen=True)
class Wrong:
    """An incorrect response: the number of its sample, its tokens (the end token left out)."""

    prompt: Prompt
    sample: int
    token_ids: tuple[int, ...]
    finished: bool


def sample_student(config: Config, source: DataSource, out: Path, prompts: int, n: int) -> Path:
    """Have ``evaluate`` answer the first ``prompts`` problems ``n`` times; the file of samples.

    At the temperature of the rollouts. Samples that are there already are not drawn again.
    """
    rollout = config.rollout
    assert rollout is not None
    command = [sys.executable, "-m", "scope_megatron", "evaluate"]
    command += ["--model", str(config.model.student), "--data", f"problems={source.path}"]
    command += ["--samples", str(n), "--limit", str(prompts), "--seed", str(config.seed)]
    command += ["--temperature", str(rollout.temperature), "--top-p", str(rollout.top_p)]
    command += ["--top-k", str(rollout.top_k), "--max-tokens", str(rollout.max_response_tokens)]
    command += ["--max-prompt-tokens", str(config.data.max_prompt_tokens)]
    command += ["--verifier", config.verifier.name, "--draws", "100", "--out", str(out)]
    command += ["--kv-cache-gib", str(rollout.engine.kv_cache_gib)]
    if config.verifier.custom:
        command += ["--custom", config.verifier.custom]
    done = subprocess.run(command, env=dict(os.environ), stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)  # its own line said why
    return out / "samples" / "problems.jsonl"


def wrong_responses(samples: Path, dataset: PromptDataset, tokenizer: Tokenizer) -> list[Wrong]:
    """The incorrect responses of two tokens and more, by problem and sample."""
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    found = []
    for row in sorted(rows, key=lambda row: (row["problem"], row["sample"])):
        ids = tuple(tokenizer.encode(row["text"]))
        if (row["verdict"] == "incorrect" or not row["finished"]) and len(ids) > 1:
            found.append(Wrong(dataset[row["problem"]], row["sample"], ids, row["finished"]))
    return found
