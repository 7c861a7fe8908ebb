"""One pack, as megatron-core hands it to every layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from scope_megatron.parallel.context import ContextShare
from scope_megatron.types import PackedBatch


@dataclass
class PackedSequences(PackedSeqParams):
    """megatron-core's description of a pack, and what this project's own layers want besides.

    Transformer Engine is given megatron-core's fields alone.
    """

    bounds: list[int] = field(default_factory=list)  # cu_seqlens on the host
    position_ids: Tensor | None = None  # [t] of this rank's tokens
    share: ContextShare | None = None  # which of the pack's tokens those are; None: all

    @classmethod
    def of(cls, pack: PackedBatch, share: ContextShare | None = None) -> PackedSequences:
        positions = pack.position_ids if share is None else pack.position_ids[share.tokens]
        return cls(
            qkv_format="thd",
            cu_seqlens_q=pack.cu_seqlens,
            cu_seqlens_kv=pack.cu_seqlens,
            max_seqlen_q=pack.max_seqlen,
            max_seqlen_kv=pack.max_seqlen,
            bounds=pack.bounds,
            position_ids=positions,
            share=share,
        )
