"""Verifiers: which responses are correct.

registry       every verifier by its name, and which one a row gets
mathematics    boxed answers, compared as mathematics
answer         boxes, and what text alone decides
worker         the process that runs Math-Verify
text           exact text, multiple choice, GSM8K's number
hendrycks      equivalence of LaTeX as text
programs       code that passes tests
sandbox/       processes in which programs of a model run
custom         a function of the user's
custom_worker  the process that calls it
children       grader processes that can be killed
"""

from __future__ import annotations

from scope_megatron.rollout.verify.registry import VERIFIERS, Verifier, Verifiers, verifier_for

__all__ = ["VERIFIERS", "Verifier", "Verifiers", "verifier_for"]
