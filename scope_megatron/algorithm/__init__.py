"""Algorithms: one record per ``algorithm.name``, without torch: the settings each reads, its needs.

record    AlgorithmSpec: the columns of the table; Condition: when a setting is read
table     ALGORITHM_SPECS: one record per algorithm
"""

from __future__ import annotations

from scope_megatron.algorithm.record import AlgorithmSpec, Condition
from scope_megatron.algorithm.table import ALGORITHM_SPECS, readers_of

__all__ = ["ALGORITHM_SPECS", "AlgorithmSpec", "Condition", "readers_of"]
