"""One clock for all ranks of a job: rank 0's, in microseconds since 1970.

Processes of a node share a monotonic clock, so there what rank 0 says of its own holds exactly. A
rank on another node asks rank 0 for the time and takes the answer that came back quickest: it is
wrong by at most half of the way there and back (Cristian 1989). Where no answer comes, the node's
own time of day counts, as NTP keeps it. Each says in its file what it did.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ASKED = 16  # times
ANSWER_S = 0.2  # until a question counts as lost
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def node_name() -> str:
    """The same for processes that share a monotonic clock."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return os.uname().nodename


def offset_here() -> int:
    """Nanoseconds from this process's monotonic clock to its time of day."""
    before, now, after = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
    return now - (before + after) // 2


@dataclass(frozen=True)
class ClockAddress:
    """Where rank 0 answers, and what it says of itself, for the others."""

    host: str
    port: int
    node: str
    offset: int

    def encode(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, text: str | bytes) -> ClockAddress:
        return cls(**json.loads(text))


class ClockServer:
    """Rank 0's thread: whoever asks is told the time on the job's clock."""

    def __init__(self, host: str) -> None:
        """``host``: this machine's address on the job's network."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._offset = offset_here()
        port = int(self._socket.getsockname()[1])
        self.address = ClockAddress(host, port, node_name(), self._offset)
        threading.Thread(target=self._answer, name="clock", daemon=True).start()

    def _answer(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(64)
            now = time.perf_counter_ns() + self._offset
            try:
                self._socket.sendto(question + b" " + str(now).encode(), sender)
            except OSError:
                pass  # the way back is gone; it asks again or does without


class Clock:
    """The job's clock, as this rank knows it."""

    def __init__(self, address: ClockAddress | None = None, node: str | None = None) -> None:
        """``address``: rank 0's answers come from there; None: this process is the job."""
        self._address = address
        self._same = address is None or address.node == (node or node_name())
        self._offset = offset_here() if address is None or not self._same else address.offset
        self.error_ns: int | None = 0 if self._same else None  # at most; None: nobody knows

    def microseconds(self, perf_ns: int) -> int:
        """A reading of ``time.perf_counter_ns`` on the job's clock."""
        return (perf_ns + self._offset) // 1000

    def measure(self) -> None:
        """Ask rank 0 anew, where it is on another node: clocks drift."""
        if self._same or self._address is None:
            return
        best: tuple[int, int] | None = None  # (way there and back, offset)
        address = self._address.host, self._address.port
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(ANSWER_S)
            for number in range(ASKED):
                try:
                    found = _ask(asking, address, number)
                except OSError:
                    break  # nobody is there: do not wait for every question
                best = found if best is None else min(best, found)
        if best is None:
            self._offset, self.error_ns = offset_here(), None
        else:
            self._offset, self.error_ns = best[1], best[0] // 2

    def describe(self) -> str:
        """What is known of it, in words."""
        if self._same:
            return "rank 0's clock"
        if self.error_ns is None:
            return "this node's time of day: rank 0 did not answer"
        return f"rank 0's clock within {self.error_ns / 1000:.0f} us"


def _ask(asking: socket.socket, address: tuple[str, int], number: int) -> tuple[int, int]:
    """(way there and back, offset of rank 0's clock to this process's), nanoseconds. Raises OSError
    when no answer comes."""
    name = str(number).encode()
    begun = time.perf_counter_ns()
    asking.sendto(name, address)
    while True:
        heard = asking.recv(64)
        ended = time.perf_counter_ns()
        which, _, there = heard.partition(b" ")
        if which == name:  # else an answer to an earlier question
            return ended - begun, int(there) - (begun + ended) // 2
