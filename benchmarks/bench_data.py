"""Start of a run on many rows: cold (tokenised now) and warm (from the cache), per rank and node.

    python -m benchmarks.bench_data --rows 1000000 --ranks 8

The rows are DeepMath's twenty of tests/data over and over, each with its number in front, so that
no two are equal; the tokenizer is a byte-level BPE trained on them. Every rank is a process of
its own that does what a rank does before its first step: load the tokenizer, open the data set,
draw the first batches. Memory is what the data added: private is the rank's alone (USS), the
pages of the cache's file are shared by all ranks of a node and are counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
PROMPTS_PER_STEP, STEPS = 512, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=8, help="of the warm start, all at once")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        print(json.dumps(rank(arguments.rank)))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_tokenizer(directory / "tokenizer")
        make_rows(directory / "rows.parquet", arguments.rows)
        cold = start(directory, 1)
        show("cold, first rank", cold)
        warm = start(directory, 1)
        show("warm, one rank", warm)
        many = start(directory, arguments.ranks)
        show(f"warm, {arguments.ranks} ranks at once", many)
        assert len({r["fingerprint"] for r in cold + warm + many}) == 1
        size = sum(p.stat().st_size for p in (directory / "cache").rglob("*.arrow"))
        private = sum(r["private_mib"] for r in many)
        print(f"cache: {size / 2**20:,.0f} MiB on disk, {size / arguments.rows:,.0f} bytes a row")
        print(
            f"node of {arguments.ranks} ranks: {private:,.0f} MiB private to the ranks, and at "
            f"most {size / 2**20:,.0f} MiB of the file, once"
        )


def rank(directory: Path) -> dict[str, object]:
    """What a rank does with its data before the first step, and what it takes."""
    from scope_megatron.data.dataset import PromptDataset
    from scope_megatron.data.order import order_of
    from scope_megatron.data.tokenizer import load_tokenizer

    started = time.perf_counter()
    tokenizer = load_tokenizer(directory / "tokenizer")
    before, loaded = psutil.Process().memory_full_info(), time.perf_counter()
    data = PromptDataset(directory / "rows.parquet", tokenizer, 4096)
    order = order_of(data.sizes, [None], 1234, True)
    first = [data[i] for i in order.batch(0, PROMPTS_PER_STEP)]
    ready = time.perf_counter()
    for step in range(STEPS):
        _ = [data[i] for i in order.batch(step, PROMPTS_PER_STEP)]
    after = psutil.Process().memory_full_info()
    return {
        "tokenizer_s": loaded - started,
        "data_s": ready - loaded,
        "prompt_us": (time.perf_counter() - ready) / STEPS / PROMPTS_PER_STEP * 1e6,
        "private_mib": (after.uss - before.uss) / 2**20,
        "resident_mib": (after.rss - before.rss) / 2**20,
        "rows": len(data),
        "tokens": float(np.mean([len(prompt.token_ids) for prompt in first])),
        "fingerprint": data.fingerprint(),
    }


def start(directory: Path, ranks: int) -> list[dict[str, float]]:
    """That many ranks at once."""
    environment = os.environ | {
        "SCOPE_MEGATRON_CACHE": str(directory / "cache"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.bench_data", "--rank", str(directory)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def show(what: str, ranks: list[dict[str, float]]) -> None:
    slowest = max(ranks, key=lambda r: r["data_s"])
    print(
        f"{what}: {slowest['rows']:,} rows of {slowest['tokens']:.0f} tokens ready in "
        f"{slowest['data_s']:.1f} s (tokenizer loaded in {slowest['tokenizer_s']:.1f} s before); "
        f"{max(r['private_mib'] for r in ranks):.0f} MiB private, "
        f"{max(r['resident_mib'] for r in ranks):.0f} MiB resident; "
        f"{slowest['prompt_us']:.0f} us a prompt drawn",
        flush=True,
    )


def make_rows(path: Path, count: int) -> None:
    base = pyarrow.parquet.read_table(ROOT / "tests/data/deepmath_20.parquet").to_pylist()
    texts = [row["prompt"][-1]["content"] for row in base]
    answers = [row["reward_model"]["ground_truth"] for row in base]
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("answer", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, count, 50_000):
            numbers = range(first, min(first + 50_000, count))
            prompts = [f"Problem {i}. {texts[i % len(texts)]}" for i in numbers]
            chosen = [answers[i % len(answers)] for i in numbers]
            writer.write_table(pyarrow.table([prompts, chosen], schema=schema))


def make_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = pyarrow.parquet.read_table(ROOT / "tests/data/deepmath_20.parquet").to_pylist()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["prompt"][-1]["content"] for row in base], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(directory))


if __name__ == "__main__":
    main()
