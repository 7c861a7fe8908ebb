"""Ten answers that mean the same and ten that do not, for each of twelve kinds: all are judged
right, and docs/verifiers.md counts them so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.types import Verdict

ROOT = Path(__file__).parents[3]


def rows() -> list[tuple[str, str, str, str]]:
    """(kind, same or different, reference answer, response) of each line of the file."""
    lines = (ROOT / "tests" / "data" / "answers.tsv").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines[1:]:
        kind, relation, reference, answer = line.split("\t")
        if kind != "several boxes":
            answer = f"So the answer is $\\boxed{{{answer}}}$."
        found.append((kind, relation, reference, answer))
    return found


def test_every_answer_is_judged_right():
    cases = rows()
    counts = Counter((kind, relation) for kind, relation, _, _ in cases)
    assert len(counts) == 24 and set(counts.values()) == {10}
    with MathVerifier(timeout_s=30.0) as verifier:
        verdicts = verifier.grade([(response, reference) for _, _, reference, response in cases])
    expected = {"same": Verdict.CORRECT, "different": Verdict.INCORRECT}
    wrong = [
        (case, verdict)
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict is not expected[case[1]]
    ]
    assert wrong == []


def test_every_reference_answer_equals_itself():
    references = sorted({reference for _, _, reference, _ in rows()})
    with MathVerifier(timeout_s=30.0) as verifier:
        verdicts = verifier.grade([(f"\\boxed{{{text}}}", text) for text in references])
    assert verdicts == [Verdict.CORRECT] * len(references)


def test_the_docs_count_them():
    page = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8")
    for kind in {case[0] for case in rows()}:
        assert f"| {kind} | 10 | 0 | 10 | 0 |" in page
