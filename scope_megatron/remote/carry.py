"""Groups that a step leaves for the next one (``rollout.carry_over``), and the record of them.

Which groups are complete when a step may begin its update is a matter of time. So it is written
down, in ``carried.jsonl``: a resumed run leaves the same groups in the steps that it makes again.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from scope_megatron import outputs
from scope_megatron.config import Config
from scope_megatron.parallel.agree import from_all, from_main
from scope_megatron.remote.inflight import sampled_as


class CarryOver:
    """Which of its groups a replica waits for. Groups are named by their place in their step."""

    def __init__(self, config: Config, is_main: bool) -> None:
        """Read what an earlier process wrote (collective). ``is_main``: this rank writes."""
        rollout = config.rollout
        assert rollout is not None
        self.most = config.carried_groups  # of a replica
        self._steps = config.train.steps
        # decisions under other settings are not repeated
        self._settings = [*sampled_as(config), rollout.carry_over] if self.most else []
        self._path = config.output_dir / outputs.CARRIED if is_main else None
        self._known: dict[int, frozenset[int]] = {}
        if self.most:
            keep = config.resume != "never"
            self._known = from_main(lambda: self._read() if keep else self._begin())

    def waits_for(self, step: int, groups: Collection[int]) -> frozenset[int]:
        """Those of a replica's ``groups`` that the step needs, by what an earlier process left:
        all, where none decided."""
        last = step == self._steps  # nothing comes after it
        return frozenset(groups) - (frozenset() if last else self._known.get(step, frozenset()))

    def spared(self, step: int) -> int:
        """How many of these it may leave."""
        return 0 if step in self._known or step == self._steps else self.most

    def note(self, step: int, left: Collection[int]) -> None:
        """The step's update begins without the replica's groups ``left`` (collective)."""
        if not self.most or step in self._known:
            return
        self._known[step] = frozenset().union(*from_all(frozenset(left)))
        if self._path is not None:
            row = {"step": step, "left": sorted(self._known[step]), "settings": self._settings}
            _append(self._path, json.dumps(row))

    def _read(self) -> dict[int, frozenset[int]]:
        assert self._path is not None
        known = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill, before that step's update
            if row["settings"] == self._settings:
                known[int(row["step"])] = frozenset(row["left"])
        return known

    def _begin(self) -> dict[int, frozenset[int]]:
        assert self._path is not None
        self._path.unlink(missing_ok=True)
        return {}


def _append(path: Path, line: str) -> None:
    """A disk that does not take it stops nothing: that step could then not be repeated."""
    try:
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("ab") as file:
            file.write(b"\n" * torn + line.encode() + b"\n")
    except OSError as error:
        print(f"warning: rollout.carry_over: {path} was not written: {error}", flush=True)
