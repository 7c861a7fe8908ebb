"""Published layouts of benchmarks, as rows of this project.

A layout is a line of ``LAYOUTS``. Columns are named as their publishers name them; where several
publish a set, each spelling is known. docs/data.md has the table.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scope_megatron.data.code_tests import read_tests
from scope_megatron.data.readers import READERS, file_records
from scope_megatron.data.rows import Row
from scope_megatron.rollout.verify.answer import boxed_answers
from scope_megatron.types import Answer

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
PROGRAM = (
    "Write a Python program that reads standard input and writes standard output. Put all of it "
    "into one block that starts with ```python."
)
FUNCTION = "Put all of your code into one block that starts with ```python."
IMPORTS = (  # what LiveCodeBench puts before every program
    "import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, "
    "sys\nfrom bisect import *\nfrom collections import *\nfrom functools import *\n"
    "from heapq import *\nfrom itertools import *\nfrom math import *\nfrom typing import *\n"
)
SUFFIXES = (*READERS, ".jsonl.gz", ".json")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A benchmark: its columns, the text after each question, where its publisher keeps it."""

    question: tuple[str, ...]  # columns that may hold it, the first that is there counts
    answer: Callable[[Record], Answer]
    hub: str  # Hugging Face dataset
    files: str = ""  # part of the names of the files that hold the split that is evaluated
    instruction: str = BOXED
    prompt: Callable[[Record, str], str] | None = None  # the question and what belongs to it
    note: str = ""  # a column that the answer comes from, for the table


def table() -> str:
    """The layouts as docs/data.md shows them."""
    lines = ["| name | question | answer from | Hugging Face dataset |", "|---|---|---|---|"]
    for name, layout in LAYOUTS.items():
        columns = " or ".join(f"`{column}`" for column in layout.question)
        lines.append(f"| `{name}` | {columns} | {layout.note} | `{layout.hub}` |")
    return "\n".join(lines)


def read_records(path: Path) -> Iterator[tuple[int, Record | str]]:
    """(row number from 1, the row or why there is none) of a file that a publisher wrote."""
    name = path.name
    if name.endswith(".jsonl.gz"):
        lines = enumerate(gzip.open(path, "rt", encoding="utf-8"), start=1)
        yield from ((number, json.loads(line)) for number, line in lines if line.strip())
    elif name.endswith(".json"):
        yield from enumerate(json.loads(path.read_text(encoding="utf-8")), start=1)
    elif path.suffix in READERS:
        yield from file_records(path, "SOURCE")
    else:
        raise ValueError(f"{path}: the suffix must be {', '.join(SUFFIXES)}")


def to_row(name: str, record: Record, where: str, instruction: str | None = None) -> Row:
    """One published row as a row of this project. ValueError with the reason if it has no use."""
    layout = LAYOUTS[name]
    question = next((record[c] for c in layout.question if record.get(c)), None)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"no question (column {' or '.join(layout.question)})")
    answer = layout.answer(record)
    if not answer:
        raise ValueError("no answer")
    text = layout.prompt(record, question) if layout.prompt else question
    parts = [text.strip(), layout.instruction if instruction is None else instruction]
    content = "\n\n".join(part for part in parts if part)
    return Row(where, ({"role": "user", "content": content},), answer, source=name)


# ---------------------------------------------------------------- answers


def _column(*names: str) -> Callable[[Record], Answer]:
    """The first of these columns that is there: a text, or a number as its text."""

    def answer(record: Record) -> Answer:
        value = next((record[n] for n in names if record.get(n) is not None), "")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).strip()

    return answer


def _column_or_box(*names: str) -> Callable[[Record], Answer]:
    """One of these columns, else what the boxes of the solution say."""
    column = _column(*names)

    def answer(record: Record) -> Answer:
        solution = record.get("solution") or record.get("Solution")
        boxes = boxed_answers(solution) if isinstance(solution, str) else []
        return column(record) or ", ".join(boxes)

    return answer


def _after_hashes(record: Record) -> Answer:
    """GSM8K: the number after the working."""
    _, found, answer = str(record.get("answer", "")).rpartition("####")
    return answer.strip().replace(",", "") if found else ""


def _final_answers(record: Record) -> Answer:
    """OlympiadBench: a list, without dollar signs. All of them are asked for."""
    if any(record.get(f"image_{i}") for i in range(1, 6)) or record.get("modality") == "Multimodal":
        raise ValueError("the question needs an image")
    answers = record.get("final_answer") or []
    answers = [answers] if isinstance(answers, str) else list(answers)
    return ", ".join(str(one).replace("$", "").strip() for one in answers)


def _tests(value: Mapping[str, Any]) -> Answer:
    """Test data as JSON text, after a look at whether the verifier can read it."""
    text = json.dumps({key: item for key, item in value.items() if item}, ensure_ascii=False)
    read_tests(text)
    return text


def _taco(record: Record) -> Answer:
    pairs = _json(record.get("input_output"))
    if not isinstance(pairs, dict):
        raise ValueError("no tests (column input_output)")
    return _tests({key: pairs.get(key) for key in ("inputs", "outputs", "fn_name")})


def _humaneval(record: Record) -> Answer:
    return _tests({key: record.get(key) for key in ("prompt", "entry_point", "test")})


def _mbpp(record: Record) -> Answer:
    return _tests({k: record.get(k) for k in ("test_list", "test_setup_code", "test_imports")})


def _livecodebench(record: Record) -> Answer:
    tests = [*_json(record.get("public_test_cases")), *_private(record.get("private_test_cases"))]
    name = (_json(record.get("metadata")) or {}).get("func_name")
    return _tests(
        {
            "inputs": [test["input"] for test in tests],
            "outputs": [json.loads(t["output"]) if name else t["output"] for t in tests],
            "entry_point": name,
            "setup": IMPORTS,
        }
    )


class _TextOnly(pickle.Unpickler):
    """Reads a pickled text. Anything that would call code is an error."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"private_test_cases holds {module}.{name}, not text")


def _private(value: Any) -> list[dict[str, Any]]:
    """LiveCodeBench's hidden tests: JSON, or a pickled JSON text, compressed, in base64."""
    if not value:
        return []
    try:
        tests = json.loads(value)
    except ValueError:
        packed = zlib.decompress(base64.b64decode(value))
        tests = json.loads(_TextOnly(io.BytesIO(packed)).load())
    return list(tests)


def _json(value: Any) -> Any:
    """A column that is JSON text, or was read as what it says."""
    if isinstance(value, str):
        return json.loads(value) if value.strip() else None
    return value


# ---------------------------------------------------------------- prompts


def _starter(record: Record, question: str) -> str:
    """The question, and the code to start from or how to write the program."""
    starter = str(record.get("starter_code") or "").strip()
    if starter:
        return f"{question.strip()}\n\nComplete this code:\n```python\n{starter}\n```\n\n{FUNCTION}"
    return f"{question.strip()}\n\n{PROGRAM}"


def _complete(record: Record, question: str) -> str:
    return f"Complete this Python function:\n```python\n{question.rstrip()}\n```"


def _with_tests(record: Record, question: str) -> str:
    """MBPP names the function only in its tests: its authors' prompt shows them."""
    tests = "\n".join(record.get("test_list") or [])
    return f"{question.strip()}\n\nYour code should pass these tests:\n{tests}"


_AIME = Layout(
    ("problem", "Problem", "question"), _column_or_box("answer", "Answer"), "math-ai/aime24",
    note="answer, Answer, or the box in solution",
)  # fmt: skip
LAYOUTS = {
    "aime24": _AIME,
    "aime25": replace(_AIME, hub="math-ai/aime25"),
    "amc23": Layout(("question", "problem"), _column("answer"), "math-ai/amc23", note="answer"),
    "math500": Layout(("problem",), _column("answer"), "HuggingFaceH4/MATH-500", note="answer"),
    "minerva": Layout(
        ("question", "problem"),
        _column_or_box("answer"),
        "math-ai/minervamath",
        note="answer, or the box in solution",
    ),
    "olympiadbench": Layout(
        ("question",),
        _final_answers,
        "Hothan/OlympiadBench",
        files="OE_TO_maths_en_COMP",
        note="final_answer",
    ),
    "gsm8k": Layout(
        ("question",), _after_hashes, "openai/gsm8k", files="main/test", note="answer, after ####"
    ),
    "deepmath": Layout(
        ("question",), _column("final_answer"), "zwhe99/DeepMath-103K", note="final_answer"
    ),
    "taco": Layout(
        ("question",), _taco, "BAAI/TACO", files="test", instruction="", prompt=_starter,
        note="input_output",
    ),
    "humaneval": Layout(
        ("prompt",), _humaneval, "openai/openai_humaneval", instruction=FUNCTION,
        prompt=_complete, note="test, entry_point, prompt",
    ),
    "mbpp": Layout(
        ("text", "prompt"), _mbpp, "google-research-datasets/mbpp", files="full/test",
        instruction=FUNCTION, prompt=_with_tests,
        note="test_list, with test_setup_code or test_imports",
    ),
    "livecodebench": Layout(
        ("question_content",), _livecodebench, "livecodebench/code_generation_lite",
        files="test", instruction="", prompt=_starter,
        note="public_test_cases, private_test_cases; metadata names the function",
    ),
}  # fmt: skip
