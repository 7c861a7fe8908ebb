"""What the verifiers judge right and how fast: the tables of docs/verifiers.md.

python -m benchmarks.bench_verify confusion
python -m benchmarks.bench_verify speed --workers 2
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.rollout.verify.programs import CodeVerifier
from scope_megatron.types import Verdict

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
ANSWERS = Path(__file__).parents[1] / "tests" / "data" / "answers.tsv"


def read_answers(path: Path = ANSWERS) -> list[tuple[str, bool, str, str]]:
    """(kind, whether both mean the same, reference answer, response) of each line."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, relation, reference, answer = line.split("\t")
            response = (
                answer if kind == "several boxes" else f"So the answer is $\\boxed{{{answer}}}$."
            )
            rows.append((kind, relation == "same", reference, response))
    return rows


@app.command()
def confusion() -> None:
    """Answers that mean the same as the reference answer, and answers that do not, by kind."""
    rows = read_answers()
    with MathVerifier(timeout_s=20.0) as verifier:
        verdicts = verifier.grade([(response, reference) for _, _, reference, response in rows])
    counts: dict[str, Counter[tuple[bool, Verdict]]] = {}
    wrong = []
    for (kind, same, reference, response), verdict in zip(rows, verdicts, strict=True):
        counts.setdefault(kind, Counter())[same, verdict] += 1
        if (verdict is Verdict.CORRECT) != same:
            wrong.append(f"{kind}: {response!r} for {reference!r} is {verdict}")
    print("| kind | same, correct | same, incorrect | different, incorrect | different, correct |")
    print("|---|---|---|---|---|")
    for kind, count in counts.items():
        right, missed = count[True, Verdict.CORRECT], count[True, Verdict.INCORRECT]
        kept, let_in = count[False, Verdict.INCORRECT], count[False, Verdict.CORRECT]
        print(f"| {kind} | {right} | {missed} | {kept} | {let_in} |")
    print("\n".join(wrong) or "no answer is misjudged")


def algebra(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct pairs of (response, reference answer) that need algebra, half of them equal."""
    draw = random.Random(seed)
    items = []
    for i in range(count):
        a, b, c = draw.randint(2, 999), draw.randint(2, 999), draw.randint(2, 97)
        wrong = i % 2
        kinds = (
            (rf"\frac{{{c * a}}}{{{c * b}}}", f"{a}/{b + wrong}"),
            (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c + wrong}}}"),
            (f"{a / 8}", rf"\frac{{{a + wrong}}}{{8}}"),
            (rf"({a}+x)^2", f"x^2+{2 * a}x+{a * a + wrong}"),
            (rf"\left({a}, {b}\right)", rf"({a}, \frac{{{2 * b + wrong}}}{{2}})"),
        )
        said, meant = kinds[i // 2 % len(kinds)]
        items.append((rf"so $\boxed{{{said}}}$", meant))
    return items


@app.command()
def speed(
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    answers: Annotated[int, typer.Option(min=1, help="answers to grade")] = 5000,
    programs: Annotated[int, typer.Option(min=1, help="programs to run")] = 300,
) -> None:
    """Mathematical gradings a minute that need algebra, and sandboxed programs a second."""
    items = algebra(answers)
    with MathVerifier(timeout_s=20.0, workers=workers) as verifier:
        verifier.grade(algebra(4 * workers, seed=1))  # the processes have started
        started = time.perf_counter()
        verdicts = verifier.grade(items)
        seconds = time.perf_counter() - started
    correct = sum(v is Verdict.CORRECT for v in verdicts)
    print(f"{60 * answers / seconds:,.0f} gradings a minute ({correct} of {answers} correct)")
    tests = json.dumps({"inputs": ["3 4\n"], "outputs": ["7\n"]})
    code = "```python\nprint(sum(map(int, input().split())))\n```"
    with CodeVerifier(workers=workers) as runner:
        runner.grade([(code, tests)])
        started = time.perf_counter()
        verdicts = runner.grade([(code, tests)] * programs)
        seconds = time.perf_counter() - started
    correct = sum(v is Verdict.CORRECT for v in verdicts)
    print(f"{programs / seconds:.1f} programs a second ({correct} of {programs} correct)")


if __name__ == "__main__":
    app()
