"""The section of the configuration for traces."""

from __future__ import annotations

from pydantic import Field

from scope_megatron.config.sections.section import Section


class ProfileConfig(Section):
    """Traces of single steps."""

    steps: list[int] = Field(
        [],
        description="steps, from 1, of which each rank writes a torch profiler trace to "
        "output_dir/profile (open in chrome://tracing or Perfetto)",
    )
