"""What the trainer asks of a rollout engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from scope_megatron.types import Prompt, Rollout

Member = tuple[Prompt, int]  # a prompt and the number of its sample
Finished = Callable[[int, Rollout], None]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. ``top_k`` -1 and ``top_p`` 1 mean the whole distribution."""

    samples: int
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = -1
    logprobs: bool = True  # of the sampled tokens, with each response
    seed: int = 0  # random numbers depend on (seed, prompt, sample) alone, not on the layout


class Engine(Protocol):
    """Interface of a rollout engine. Each call is collective over an engine replica's ranks."""

    def generate(
        self, prompts: list[Prompt], sampling: Sampling, finished: Finished | None = None
    ) -> list[Rollout]:
        """``sampling.samples`` responses for each prompt, in order: whole groups, side by side.

        ``finished`` is told each response as soon as it ends, with its number in that order.
        """
        ...

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """Log-probability (temperature 1) of every token after the first, for each sequence."""
        ...

    def send_parameters(self, source: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Give the engine new parameters and drop what it cached under the old ones.

        Hugging Face names and full tensors; :class:`ModelParameters` may be taken shard by shard.
        """
        ...

    def sleep(self) -> None:
        """Free parameters and cache while training runs (where the platform can)."""
        ...

    def close(self) -> None:
        """Release the engine."""
        ...


def request_seed(*parts: object) -> int:
    """A 31-bit seed that depends on nothing but its parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
