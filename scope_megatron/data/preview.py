"""What `scope-megatron data` prints: every set's rows, lengths, skipped rows, and a few prompts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.compute
from rich.console import Console
from rich.text import Text

from scope_megatron.config import Config
from scope_megatron.data.dataset import PromptDataset, open_dataset
from scope_megatron.data.order import order_of
from scope_megatron.data.tokenizer import Tokenizer, load_tokenizer

REASONS = 8  # kinds of reasons, the most frequent first
STYLES = ("on grey23", "on grey35")  # of neighbouring tokens on a terminal
_SKIPPED = re.compile(r"(?P<where>.*?:\d+): (?P<reason>.*)")


def preview(config: Config, prompts: int) -> None:
    """Print every set of the configuration. Raises ValueError as a training would."""
    tokenizer = load_tokenizer(
        config.model.tokenizer or config.model.student, config.data.chat_template_kwargs
    )
    console = Console(highlight=False, soft_wrap=True)
    for setting, sources in config.data.sources().items():
        data = open_dataset(config, setting, sources, tokenizer)
        weights = [source.weight for source in sources]
        console.print(Text(f"{setting}: {_count(len(data), 'prompt')}", style="bold"))
        taught = config.model.teachers and setting == "data.train"
        teachers = _teachers(data) if taught else ()
        for line in [*_sets(data, weights), *teachers, *_lengths(config, data), *_skipped(data)]:
            console.print(Text(f"  {line}"))
        shuffle = config.data.shuffle and setting == "data.train"
        order = order_of(data.sizes, weights, config.seed, shuffle)
        for index in order.batch(0, min(prompts, len(data))):
            console.print()
            console.print(_prompt(data, index, tokenizer, console.is_terminal))
        console.print()


def _sets(data: PromptDataset, weights: list[float | None]) -> Iterator[str]:
    """A line for every set, and the values of data_source."""
    total = sum(weight or 0 for weight in weights)
    for one, weight in zip(data.store.info.sets, weights, strict=True):
        left_out = f", {one['filtered']:,} left out by the filter" if one["filtered"] else ""
        share = f", {weight / total:.1%} of the prompts drawn" if weight is not None else ""
        yield f"{one['name']}: {one['rows']:,} usable, {one['skipped']:,} skipped{left_out}{share}"
        yield f"  columns {', '.join(one['columns'])}"
    named = pyarrow.compute.value_counts(data.store.table()["source"]).to_pylist()
    named.sort(key=lambda entry: -entry["counts"])
    if [entry["values"] for entry in named] != [""]:
        shown = ", ".join(f"{e['values'] or '(none)'} {e['counts']:,}" for e in named[:REASONS])
        yield f"data_source: {shown}"


def _teachers(data: PromptDataset) -> Iterator[str]:
    """The teachers' tags, with the rows of each."""
    table = data.store.table()
    own, source = table["teacher"], table["source"]
    tags = pyarrow.compute.if_else(pyarrow.compute.equal(own, ""), source, own)
    for entry in pyarrow.compute.value_counts(tags).to_pylist():
        yield f"teacher {entry['values']}: {_count(entry['counts'], 'prompt')}"


def _lengths(config: Config, data: PromptDataset) -> Iterator[str]:
    table = data.store.table()
    limit = f", data.max_prompt_tokens is {config.data.max_prompt_tokens:,}"
    yield f"prompt tokens: {_distribution(table['token_ids'])}{limit}"
    responses = table["response_ids"]
    if pyarrow.compute.max(pyarrow.compute.list_value_length(responses)).as_py():
        yield f"response tokens: {_distribution(responses)}"


def _distribution(lists: pyarrow.ChunkedArray) -> str:
    lengths = pyarrow.compute.list_value_length(lists).to_numpy()
    low, middle, high, longest = np.quantile(lengths, [0, 0.5, 0.95, 1], method="nearest")
    return f"{low:,} to {longest:,}, median {middle:,}, 95% up to {high:,}"


def _skipped(data: PromptDataset) -> Iterator[str]:
    """The reasons, numbers in them as N, each with its first row."""
    kinds, firsts = Counter[str](), dict[str, str]()
    for line in data.skipped:
        found = _SKIPPED.fullmatch(line)
        where, reason = (found["where"], found["reason"]) if found else ("", line)
        kind = re.sub(r"\d+", "N", reason)
        kinds[kind] += 1
        firsts.setdefault(kind, f"{where}: {reason}")
    for kind, count in kinds.most_common(REASONS):
        yield f"skipped {count:,}: {firsts[kind] if count == 1 else f'{kind} ({firsts[kind]})'}"
    if len(kinds) > REASONS:
        yield f"skipped for {len(kinds) - REASONS} more reasons: {data.store.directory}/skipped.txt"


def _prompt(data: PromptDataset, index: int, tokenizer: Tokenizer, colours: bool) -> Text:
    """A prompt as the model sees it, tokens in turning shades, or with a | between them."""
    prompt = data[index]
    head = f"  prompt {index + 1:,}: {_count(len(prompt.token_ids), 'token')}"
    head += f", answer {prompt.answer!r}" if prompt.answer else ""
    text = Text(f"{head}\n")
    for ids in (prompt.token_ids, prompt.response_ids):
        for place, token in enumerate(ids):
            piece = tokenizer.decode([token], skip_special=False) or f"<{token}>"
            piece = piece.replace("\n", "↵\n")
            text.append(piece, style=STYLES[place % 2] if colours else "")
            if not colours and place + 1 < len(ids):
                text.append("|")
        if ids is prompt.token_ids and prompt.response_ids:
            text.append("\n  and its response:\n")
    return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
