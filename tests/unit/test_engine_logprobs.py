"""Log-probabilities as vLLM's flat lists hold them."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("vllm")
from vllm.logprobs import FlatLogprobs, create_prompt_logprobs, create_sample_logprobs

from scope_megatron.engine.vllm import _logprobs_of


def append(flat: FlatLogprobs, tokens: list[int], values: list[float]) -> None:
    flat.append_fast(tokens, values, itertools.count(1), [None] * len(tokens))


def test_the_sampled_token_comes_first():
    flat = create_sample_logprobs(True)
    append(flat, [7], [-0.5])
    append(flat, [3, 9], [-2.0, -0.1])  # with a likelier one beside it
    append(flat, [7], [-0.25])
    assert _logprobs_of([7, 3, 7], flat) == [-0.5, -2.0, -0.25]
    assert _logprobs_of([], create_sample_logprobs(True)) == []


def test_the_first_token_of_a_prompt_has_none():
    flat = create_prompt_logprobs(True)
    append(flat, [4], [-1.0])
    append(flat, [5], [-3.0])
    assert _logprobs_of([4, 5], flat, first=1) == [-1.0, -3.0]


def test_other_tokens_than_those_asked_for_are_refused():
    flat = create_sample_logprobs(True)
    append(flat, [7], [-0.5])
    for tokens in ([8], [7, 7], []):
        with pytest.raises(ValueError, match="other tokens"):
            _logprobs_of(tokens, flat)
