"""Ctrl-C and SIGTERM: remembered, and acted on by all ranks together at the end of a step."""

from __future__ import annotations

import signal

from scope_megatron.parallel.agree import all_max


class Interrupt:
    """Once installed, the first SIGINT or SIGTERM asks to stop; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self._signum = 0

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._remember)

    @property
    def received(self) -> int:
        """The signal that this rank received, 0 for none."""
        return self._signum

    def told(self, signum: int) -> None:
        """A rank of another kind received ``signum`` (0: none)."""
        self._signum = self._signum or signum

    def _remember(self, signum: int, frame: object) -> None:
        if self._signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signum = signum

    def agreed(self) -> int:
        """The signal that any rank has received, 0 for none (collective over all ranks)."""
        return int(all_max([self._signum])[0])
