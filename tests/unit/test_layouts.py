"""Benchmarks in their publishers' layouts become rows that their verifiers judge."""

from __future__ import annotations

import gzip
import json
import pickle
import zlib
from base64 import b64encode
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_megatron.config import VerifierConfig
from scope_megatron.data.readers import read_rows
from scope_megatron.data.rows import Row
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Prompt, Verdict
from tests.sandbox.isolation import needs_isolation
from tools.layouts import LAYOUTS, table, to_row
from tools.prepare_data import app, chosen_files, published_files

DATA = Path(__file__).parents[1] / "data" / "benchmarks"
C, W = Verdict.CORRECT, Verdict.INCORRECT

# For each usable row of the fixtures: the answer as prepared, a right response and a wrong one.
MATH = {
    "aime24": [("043", r"\boxed{43}", r"\boxed{34}"), ("9", r"\boxed{9}", r"\boxed{8}")],
    "aime25": [("17", r"\boxed{17}", r"\boxed{28}"), ("225", r"\boxed{225}", "225")],
    "amc23": [("27", r"\boxed{27}", r"\boxed{2.7}"), ("4.5", r"\boxed{9/2}", r"\boxed{5}")],
    "math500": [
        (r"\left( 5, \frac{\pi}{2} \right)", r"\boxed{(5, \pi/2)}", r"\boxed{(5, \pi)}"),
        ("-2, 2", r"\boxed{2} and \boxed{-2}", r"\boxed{2}"),
    ],
    "minerva": [("20", r"\boxed{20}", r"\boxed{40}"), ("600", r"\boxed{600}", r"\boxed{6}")],
    "olympiadbench": [
        ("3,-3", r"\boxed{\pm 3}", r"\boxed{3}"),
        (r"\sqrt{2}", r"\boxed{\sqrt2}", r"\boxed{2}"),
    ],
    "gsm8k": [("1050", r"\boxed{1,050}", r"\boxed{150}"), ("16", "#### 16", "#### 8")],
    "deepmath": [("1", r"\boxed{1}", r"\boxed{0}"), ("Yes", r"\boxed{\text{yes}}", r"\boxed{No}")],
}
CODE = {
    "taco": [
        ("print(int(input()) ** 2)", "print(9)"),
        ("def largest(xs): return max(xs)", "def largest(xs): return xs[0]"),
    ],
    "humaneval": [
        (
            "def unshift(texts: List[str]) -> List[str]:\n"
            "    return [t[-1:] + t[:-1] for t in texts]",
            "def unshift(texts): return [shift(t) for t in texts]",
        )
    ],
    "mbpp": [
        ("def squares(xs): return sum(x * x for x in xs)", "def squares(xs): return 5"),
        ("def root(x): return x ** 0.5", "def root(x): return x / 2"),
    ],
    "livecodebench": [
        ("print(sum(map(int, input().split())))", "print(3)"),
        (
            "class Solution:\n    def pair(self, nums: List[int], target: int):\n"
            "        for i, j in combinations(range(len(nums)), 2):\n"
            "            if nums[i] + nums[j] == target: return [i, j]",
            "class Solution:\n    def pair(self, nums, target): return [1, 0]",
        ),
    ],
}
SKIPPED = {"olympiadbench": "needs an image", "taco": "no tests"}


def prepared(name: str, folder: Path, *options: str) -> list[Row]:
    target = folder / f"{name}.jsonl"
    arguments = ["benchmark", name, str(target), "--source", str(DATA / f"{name}.jsonl"), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (SKIPPED.get(name) or "0 skipped") in result.output
    return read_rows(target).usable


def graded(rows: list[Row], responses: list[str]) -> list[Verdict]:
    prompts = [Prompt(i, (1,), row.answer, source=row.source) for i, row in enumerate(rows)]
    with Verifiers(VerifierConfig(timeout_s=20.0), prompts) as verifiers:
        return verifiers.grade(list(zip(responses, prompts, strict=True)))


def test_every_layout_is_tried():
    assert set(MATH) | set(CODE) == set(LAYOUTS)
    page = Path(__file__).parents[2] / "docs" / "data.md"
    assert table() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MATH)
def test_mathematics(name, tmp_path):
    rows = prepared(name, tmp_path)
    assert [row.answer for row in rows] == [case[0] for case in MATH[name]]
    assert all(row.messages[0]["content"].endswith(r"within \boxed{}.") for row in rows)
    assert graded(rows, [case[1] for case in MATH[name]]) == [C] * len(rows)
    assert graded(rows, [case[2] for case in MATH[name]]) == [W] * len(rows)


@needs_isolation
@pytest.mark.parametrize("name", CODE)
def test_code(name, tmp_path):
    rows = prepared(name, tmp_path)
    for column, expected in ((0, C), (1, W)):
        responses = [f"```python\n{case[column]}\n```" for case in CODE[name]]
        assert graded(rows, responses) == [expected] * len(rows)


def test_prompts_say_what_the_answer_must_look_like(tmp_path):
    texts = {name: [r.messages[0]["content"] for r in prepared(name, tmp_path)] for name in CODE}
    assert "reads standard input" in texts["taco"][0]
    assert "def largest(xs):" in texts["taco"][1] and "class Solution" in texts["livecodebench"][1]
    assert "assert squares([1, 2]) == 5" in texts["mbpp"][0]
    assert "check(" not in texts["humaneval"][0]
    rows = prepared("math500", tmp_path, "--instruction", "Be brief.", "--limit", "1")
    assert [row.messages[0]["content"][-9:] for row in rows] == ["Be brief."]


def test_parquet_and_packed_files(tmp_path):
    rows = prepared("gsm8k", tmp_path)
    packed = tmp_path / "published.jsonl.gz"
    packed.write_bytes(gzip.compress((DATA / "gsm8k.jsonl").read_bytes()))
    target = tmp_path / "gsm8k.parquet"
    arguments = ["benchmark", "gsm8k", str(target), "--source", str(packed)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = read_rows(target).usable
    assert [(r.messages, r.answer) for r in again] == [(r.messages, r.answer) for r in rows]


def test_published_files_of_a_folder(tmp_path):
    names = ["main/test-0.parquet", "main/train-0.parquet", "socratic/test-0.parquet", "README.md"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert published_files(str(tmp_path), "main/test") == [tmp_path / "main/test-0.parquet"]
    assert chosen_files(names, "", "x") == ["main/test-0.parquet", "socratic/test-0.parquet"]
    assert chosen_files(["a.jsonl"], "main", "x") == ["a.jsonl"]
    with pytest.raises(ValueError, match="x has no file that ends in"):
        chosen_files(["README.md"], "", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maths", "x.jsonl"], "no layout 'maths'"),
        (["gsm8k", "x.csv"], "the suffix must be"),
        (["gsm8k", "x.jsonl", "--source", "nowhere.jsonl"], "is no file, no folder and no"),
        (["gsm8k", "x.jsonl", "--source", str(DATA / "math500.jsonl")], "no usable row"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = CliRunner().invoke(app, ["benchmark", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_pickle_that_calls_code_is_not_loaded():
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    record = json.loads((DATA / "livecodebench.jsonl").read_text().splitlines()[0])
    record["private_test_cases"] = b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(ValueError, match="private_test_cases holds builtins.print, not text"):
        to_row("livecodebench", record, "x:1")
