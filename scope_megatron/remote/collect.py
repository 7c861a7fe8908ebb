"""Graded responses gathered for the replica that asked for them."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection
from typing import Any, TypeVar

from scope_megatron.remote.messages import Errand, ErrandDone, GradedResponse
from scope_megatron.remote.post import TrainerPost

_M = TypeVar("_M")


class Inbox:
    """What the sampling ranks tell a replica's first rank, sorted: they are never waited for while
    something else of theirs is in the way."""

    def __init__(self, post: TrainerPost) -> None:
        self.post = post
        self._responses: defaultdict[Errand, list[GradedResponse]] = defaultdict(list)
        self._done: defaultdict[Errand, list[ErrandDone]] = defaultdict(list)
        self._other: deque[Any] = deque()

    def responses(self, errand: Errand, count: int) -> list[GradedResponse]:
        """All ``count`` of this replica's, by position and sample, once they are here."""
        self.wait(errand, count)
        return sorted(self._responses.pop(errand), key=lambda r: (r.position, r.sample))

    def finished_groups(
        self, errand: Errand, samples: int, wanted: Collection[int]
    ) -> list[GradedResponse]:
        """The responses of all groups among ``wanted`` that are complete, by position and sample;
        waits for one. They stay."""
        while True:
            held = self._responses[errand]
            counts = Counter(response.position for response in held)
            new = {p for p, count in counts.items() if count == samples and p in wanted}
            if new and not self.post.pending():
                chosen = [response for response in held if response.position in new]
                return sorted(chosen, key=lambda r: (r.position, r.sample))
            self._receive()

    def wait(self, errand: Errand, count: int) -> None:
        """Until all ``count`` of this replica's responses are here. They stay."""
        while len(self._responses[errand]) < count:
            self._receive()

    def keep(self, errand: Errand, positions: Collection[int]) -> None:
        """Of the errand's responses only those of some groups stay."""
        held = self._responses.pop(errand, [])
        if positions:
            self._responses[errand] = [r for r in held if r.position in positions]

    def held(self, errand: Errand) -> list[GradedResponse]:
        """The errand's responses that are here. They stay."""
        return list(self._responses[errand])

    def put(self, responses: list[GradedResponse]) -> None:
        """Responses of an earlier process."""
        for response in responses:
            self._responses[response.errand].append(response)

    def done(self, errand: Errand, count: int) -> list[ErrandDone]:
        """The last word of so many sampling ranks on the errand (rank 0)."""
        while len(self._done[errand]) < count:
            self._receive()
        return self._done.pop(errand)

    def next(self, kinds: type[_M]) -> _M:
        """The next of the other messages, which has to be of a kind."""
        while not self._other:
            self._receive()
        message: _M = self._other.popleft()
        assert isinstance(message, kinds), message
        return message

    def _receive(self) -> None:
        received = self.post.receive()
        assert received is not None
        _, message = received
        if isinstance(message, GradedResponse):
            self._responses[message.errand].append(message)
        elif isinstance(message, ErrandDone):
            self._done[message.errand].append(message)
        else:
            self._other.append(message)
