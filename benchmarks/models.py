"""Random models for benchmarks: their speed is that of trained ones of the same shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from benchmarks.rounds import ROOT

# hidden size, layers: about 4 M and 13 M parameters beside a vocabulary of 102
STUDENT = (256, 5)
TEACHER = (384, 7)


def random_llama(folder: Path, hidden: int, layers: int, positions: int = 1024) -> Path:
    """A Llama with the quickstart's tokenizer, written to ``folder``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = ROOT / "assets" / "tiny-student"
    like = json.loads((tiny / "config.json").read_text())
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        vocab_size=like["vocab_size"],
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=like.get("bos_token_id"),
        eos_token_id=like["eos_token_id"],
        pad_token_id=like.get("pad_token_id"),
    )
    torch.manual_seed(hidden)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    return folder
