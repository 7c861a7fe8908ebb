"""Connections between the first rank of every replica and every sampling rank.

Objects travel over them, one kind's to the other's; tensors have the bridge. A connection that
breaks off says at once that a process is gone. The addresses, and the key without which nobody is
let in, are in the job's store.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import deque
from multiprocessing.connection import (
    Connection,
    answer_challenge,
    deliver_challenge,
    wait,
)
from typing import Any

import torch.distributed as dist

from scope_megatron.parallel.meeting import own_address
from scope_megatron.remote.messages import SamplerHello

_KEY, _ADDRESS = "remote/key", "remote/address/{}"


class PeerGone(RuntimeError):
    """The process at the other end of a connection is gone."""

    def __init__(self, who: str) -> None:
        # the words by which the run knows that it is to be asked who went away
        super().__init__(f"connection closed by peer: {who}")


class TrainerPost:
    """A replica's side: one connection to each sampling rank."""

    def __init__(self, store: dist.Store, replica: int, sampling: int, timeout_s: float) -> None:
        """Open the door, and wait until all have come through it. Raises TimeoutError."""
        if replica == 0:
            store.set(_KEY, secrets.token_hex(16))
        key = store.get(_KEY)
        deadline = time.monotonic() + timeout_s
        self.hellos: dict[int, SamplerHello] = {}
        self._ends: dict[int, Connection] = {}
        self._waiting: deque[tuple[int, Any]] = deque()
        with socket.create_server((own_address(), 0), backlog=sampling) as door:
            host, port = door.getsockname()[:2]
            store.set(_ADDRESS.format(replica), f"{host} {port}")
            while len(self._ends) < sampling:
                door.settimeout(max(0.1, deadline - time.monotonic()))
                accepted, _ = door.accept()
                accepted.setblocking(True)
                end = _connection(accepted)
                deliver_challenge(end, key)
                answer_challenge(end, key)
                hello: SamplerHello = end.recv()
                self.hellos[hello.rank], self._ends[hello.rank] = hello, end

    def send(self, message: Any, rank: int | None = None) -> None:
        """To one sampling rank, or to all (None). Raises :class:`PeerGone`."""
        for number, end in self._ends.items():
            if rank in (None, number):
                try:
                    end.send(message)
                except (OSError, ValueError) as error:
                    raise PeerGone(f"sampling rank {number} ({error})") from None

    def receive(self, timeout_s: float | None = None) -> tuple[int, Any] | None:
        """(sampling rank, message) of the next one to arrive; None: none came in that time.

        Raises :class:`PeerGone`.
        """
        if not self._waiting:
            ranks = {end: number for number, end in self._ends.items()}
            for end in wait(list(ranks), timeout_s):
                number = ranks[end]  # type: ignore[index]
                try:
                    self._waiting.append((number, self._ends[number].recv()))
                except (EOFError, OSError):
                    raise PeerGone(f"sampling rank {number}") from None
        return self._waiting.popleft() if self._waiting else None

    def pending(self) -> bool:
        """Whether :meth:`receive` would not have to wait."""
        return bool(self._waiting) or bool(wait(list(self._ends.values()), 0))

    def close(self) -> None:
        for end in self._ends.values():
            end.close()


class SamplerPost:
    """A sampling rank's side: one connection to each replica. The first is for commands too."""

    def __init__(self, store: dist.Store, hello: SamplerHello, replicas: int) -> None:
        self._ends = []
        key = store.get(_KEY)
        for replica in range(replicas):
            host, port = store.get(_ADDRESS.format(replica)).decode().split()
            end = _connection(socket.create_connection((host, int(port))))
            answer_challenge(end, key)
            deliver_challenge(end, key)
            end.send(hello)
            self._ends.append(end)

    def send(self, message: Any, replica: int = 0) -> None:
        """Raises :class:`PeerGone`."""
        try:
            self._ends[replica].send(message)
        except (OSError, ValueError) as error:
            raise PeerGone(f"replica {replica} ({error})") from None

    def receive(self) -> Any:
        """The next message of rank 0. Raises :class:`PeerGone`."""
        try:
            return self._ends[0].recv()
        except (EOFError, OSError):
            raise PeerGone("rank 0") from None

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _connection(connected: socket.socket) -> Connection:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connected.detach())
