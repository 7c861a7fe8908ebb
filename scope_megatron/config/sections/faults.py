"""The section of the configuration on faults of ranks, updates and machines."""

from __future__ import annotations

from pydantic import Field

from scope_megatron.config.sections.section import Section


class FaultsConfig(Section):
    """Faults noticed during a run, and the reaction to each (docs/faults.md)."""

    heartbeat_timeout_s: float = Field(
        25.0,
        ge=0,
        description="a rank whose process gives no sign of life for so long (stopped, dead, its "
        "machine gone) ends the run, which names it; 0: no watchdog",
    )
    hang_timeout_s: float = Field(
        1800.0,
        gt=0,
        description="a rank that is alive but stays in one phase of a step for so long ends the "
        "run; more than the longest rollout or evaluation takes",
    )
    nonfinite_updates: int = Field(
        3,
        ge=1,
        description="an update whose loss or gradient is not finite is skipped on every rank; "
        "after so many in a row the run stops",
    )
    restarts: int = Field(
        0,
        ge=0,
        description="how often `train` on this machine starts its ranks again, from the last "
        "checkpoint, after a lost or hung rank or a failed engine",
    )
