"""Tests that run programs need a machine that isolates them; elsewhere they are skipped."""

from __future__ import annotations

import pytest

from scope_megatron.rollout.verify.sandbox import NoIsolation, require_isolation


def why_not() -> str:
    """Why programs cannot be isolated here; "" if they can."""
    try:
        require_isolation()
    except NoIsolation as error:
        return str(error)
    return ""


needs_isolation = pytest.mark.skipif(bool(why_not()), reason=why_not())
