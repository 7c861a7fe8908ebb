"""Tests of programs have to test something: how each kind is run, and what becomes of those that
nothing could fail."""

from __future__ import annotations

import json

import pytest

from scope_megatron.rollout.verify.programs import CodeVerifier
from scope_megatron.rollout.verify.sandbox import Limits
from scope_megatron.types import Verdict
from tests.sandbox.isolation import needs_isolation

pytestmark = needs_isolation
C, W, R = Verdict.CORRECT, Verdict.INCORRECT, Verdict.REFUSED

PYTEST = """
def test_small():
    assert double(2) == 4

def test_large(factor=100):
    assert double(factor) == 2 * factor
"""
PYTEST_CLASS = """
class TestDouble:
    def setup_method(self):
        self.two = 2
    def test_small(self):
        assert double(self.two) == 4
"""
UNITTEST = """
import unittest
class Doubling(unittest.TestCase):
    def setUp(self):
        self.two = 2
    def test_small(self):
        self.assertEqual(double(self.two), 4)
"""
RAISES = """
import unittest
class Doubling(unittest.TestCase):
    def test_none(self):
        with self.assertRaises(TypeError):
            double([], [])
"""
EXPECTED_TO_RAISE = """
try:
    double([], [])
    assert False
except TypeError:
    pass
"""
SKIPPED = UNITTEST.replace("class", "@unittest.skip('later')\nclass")
MAIN = "if __name__ == '__main__':\n    "
RIGHT = "def double(x): return 2 * x"
WRONG = "def double(x, *more): return 2 * x + [1] if more else 2 * x + (x == 2)"
NO_PYTHON = "The double of x is 2x."
RUN = {
    "pytest's functions": PYTEST,
    "pytest's class": PYTEST_CLASS,
    "unittest": UNITTEST,
    "unittest's main": f"{UNITTEST}\n{MAIN}unittest.main()",
    "unittest expects an exception": RAISES,
    "main": f"{MAIN}assert double(2) == 4",
    "main that ends": "import sys\nif double(2) != 4: raise ValueError\nsys.exit()",
    "main that fails": "import sys\nassert double(3) == 6\nif double(2) != 4: sys.exit('wrong')",
    "numpy": "import numpy as np\nnp.testing.assert_allclose(double(2), 4)",
    "an exception": EXPECTED_TO_RAISE,
    "a condition": "if not double(2) == 4:\n    raise AssertionError",
    "a helper": "def same(a, b):\n    assert a == b\nsame(double(2), 4)",
}
NOTHING = {
    "nothing": [""],
    "a comment": ["# assert double(2) == 4"],
    "a call": ["double(2)"],
    "a comparison that nobody looks at": ["double(2) == 4", "print(double(2) == 4)"],
    "check without entry_point": ["def check(candidate):\n    assert candidate(2) == 4\n"],
    "a function that nobody calls": ["def examine():\n    assert double(2) == 4\n"],
    "a constant": ["assert True"],
    "an empty loop": ["for x, y in []:\n    assert double(x) == y"],
    "a swallowed failure": ["try:\n    assert double(2) == 5\nexcept AssertionError:\n    pass"],
    "every failure swallowed": ["try:\n    assert double(2) == 5\nexcept Exception:\n    print(1)"],
    "pytest's fixtures": ["def test_double(tmp_path):\n    assert double(2) == 4"],
    "pytest": [f"import pytest\n{PYTEST}"],
    "a module of theirs": ["from solution import double\nassert double(2) == 4"],
    "a skipped test": [SKIPPED],
}


# Helpers that are named as tests are, and come before the program.
HELPERS = """
class Bits:
    def test(self, bit): return bit
class TestBed:
    def test_none(self): assert False
def test_all(bits): return bits
def double(x):
    '''Twice x.'''
"""


@pytest.fixture(scope="module")
def verifier():
    with CodeVerifier(Limits(timeout_s=20.0)) as v:
        yield v


def graded(verifier, code, tests):
    return verifier.grade([(f"```python\n{code}\n```", json.dumps(tests))])[0]


@pytest.mark.parametrize("name", RUN)
def test_are_really_run(verifier, name):
    found = [graded(verifier, code, {"tests": [RUN[name]]}) for code in (RIGHT, WRONG, NO_PYTHON)]
    assert found == [C, W, W]


def test_helpers_are_no_tests(verifier):
    check = "def check(candidate):\n    assert candidate(2) == 4\n"
    tests = {"prompt": HELPERS, "entry_point": "double", "test": check}
    assert [graded(verifier, code, tests) for code in (RIGHT, WRONG)] == [C, W]
    tests = {"tests": ["class Bits:\n    def test(self, bit): return bit", "assert double(2) == 4"]}
    assert [graded(verifier, code, tests) for code in (RIGHT, WRONG)] == [C, W]


@pytest.mark.parametrize("name", NOTHING)
def test_that_nothing_could_fail_are_refused(verifier, name):
    assert graded(verifier, RIGHT, {"tests": NOTHING[name]}) is R
    assert graded(verifier, RIGHT, NOTHING[name]) is R
    assert graded(verifier, NO_PYTHON, {"tests": NOTHING[name]}) is not C


def test_no_output_at_all_is_expected(verifier):
    assert graded(verifier, "pass", {"inputs": ["1", "2"], "outputs": ["", "\n"]}) is R
    assert graded(verifier, "pass", {"inputs": ["1", "2"], "outputs": ["", "2"]}) is W


def test_exceptions_of_no_program_prove_nothing(verifier):
    """The tests catch whatever a call raises; a program that is none has no calls."""
    tests = {"tests": ["try:\n    double([], [])\nexcept:\n    pass\nelse:\n    assert False"]}
    assert graded(verifier, RIGHT, tests) is C
    assert graded(verifier, NO_PYTHON, tests) is W
    assert graded(verifier, f"{RIGHT}\n1 / 0", tests) is W


def test_what_is_not_finite_is_compared_exactly(verifier):
    call = {"entry_point": "f", "inputs": [[]], "outputs": [float("inf")]}
    listed = {"entry_point": "f", "inputs": [[]], "outputs": [[1.5, float("nan")]]}
    printed = {"inputs": [""], "outputs": ["1e999"]}
    for tests, right, wrong in (
        (call, "float('inf')", "5.0"),
        (call, "float('inf')", "float('-inf')"),
        (listed, "[1.5, float('nan')]", "[1.5, 2.0]"),
        (printed, "'1e999'", "5"),
        (printed, "'1e999'", "'1e998'"),
    ):
        assert graded(verifier, f"def f(): return {right}\nprint({right})", tests) is C
        assert graded(verifier, f"def f(): return {wrong}\nprint({wrong})", tests) is W


def test_an_exception_of_the_program_ends_no_loop_of_the_tests(verifier):
    tests = {"tests": ["assert all(map(lambda x: double(x) == 2 * x, range(3)))"]}
    assert graded(verifier, RIGHT, tests) is C
    assert graded(verifier, "def double(x): raise StopIteration", tests) is W
