"""The verifiers that compare text: exact, choice, gsm8k, string."""

from __future__ import annotations

import pytest

from scope_megatron.rollout.verify import text
from scope_megatron.rollout.verify.hendrycks import canonical
from scope_megatron.types import Verdict

CASES = {
    "exact": [
        (" Paris\n", "Paris", True),
        (r"It is \boxed{Paris}.", "Paris", True),
        ("paris", "Paris", False),
        ("It is Paris", "Paris", False),
    ],
    "choice": [
        (r"So \boxed{C}", "C", True),
        (r"So $\boxed{\text{(C)}}$", "(C)", True),
        (r"So \boxed{\textbf{(C) } 12}", "C", True),
        (r"\boxed{CD}", "C", False),
        (r"\boxed{C. Twelve}", "C", True),
        ("The answer is (B).", "B", True),
        ("**Answer: B**", "B", True),
        ("the correct option is $B$", "B", True),
        ("Answer: A\nNo, the answer is D.", "D", True),
        ("Answer: A\nNo, the answer is D.", "A", False),
        ("A or B?\n(B)", "B", True),
        ("The answer is Bern", "B", False),
        ("A long text about A and B", "A", False),
    ],
    "gsm8k": [
        ("4 * 18 = 72\n#### 72", "So 4*18=<<4*18=72>>72\n#### 72", True),
        ("#### $1,234.00", "1234", True),
        (r"\boxed{\$1{,}234}", "1234", True),
        ("The answer is 18 dollars a day.", "18", True),
        ("the final answer is: 3 + 4 = 7", "7", True),
        (r"\boxed{\frac{3}{4}}", "0.75", True),
        ("#### 3\nwait\n#### 4", "4", True),
        ("#### 3\nwait\n#### 4", "3", False),
        ("#### -5", "5", False),
        ("72", "72", False),  # not said to be the answer
        ("#### none", "72", False),
        ("#### 1/0", "72", False),
        ("#### 9", "9" * 1_100_000, False),  # more than a Decimal holds
    ],
    "string": [
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", "1/2", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{5\text{ cm}}", "5", True),
        (r"\boxed{90^\circ}", "90", True),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{\left(1,2\right)}", "(1, 2)", True),
        (r"\boxed{\sqrt3}", r"\sqrt{3}", True),
        (r"\boxed{.25}", "0.25", True),
        (r"\boxed{0.25}", r"\frac{1}{4}", False),  # no algebra
        (r"\boxed{2+x}", "x+2", False),
        ("5", "5", False),
    ],
}


@pytest.mark.parametrize(
    ("name", "response", "answer", "same"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_graded(name, response, answer, same):
    verifier = text.TextVerifier(getattr(text, name))
    verdicts = verifier.grade([(response, answer), (response, ("~", answer))])
    assert verdicts == [Verdict.CORRECT if same else Verdict.INCORRECT] * 2


def test_canonical_spelling():
    assert canonical(r"\tfrac1{2} \text{ cm}") == r"\frac{1}{2}"
    assert canonical(r"\frac{a}{b}") == r"\frac{a}{b}"
    assert canonical("07/8") == "07/8"
