"""Model families: one record per architecture, without torch; the one place that names them.

record    Family: the columns of the table, each with the value that most architectures have
table     FAMILIES: one record per architecture of Hugging Face's
shape     ModelShape: a config.json read through its family's record
"""

from __future__ import annotations

from scope_megatron.family.record import Experts, Family, LayerKind, Norms, Windows
from scope_megatron.family.shape import ModelShape, ShapeError, family_of, is_tied
from scope_megatron.family.table import FAMILIES

__all__ = [
    "FAMILIES",
    "Experts",
    "Family",
    "LayerKind",
    "ModelShape",
    "Norms",
    "ShapeError",
    "Windows",
    "family_of",
    "is_tied",
]
