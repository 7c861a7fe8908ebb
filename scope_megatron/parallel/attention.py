"""Causal attention over packed sequences, for the layer spec without Transformer Engine.

megatron-core's local ``DotProductAttention`` refuses packed sequences; this one takes them. Each
sequence runs through torch's scaled_dot_product_attention on its own, so no token ever pays for
padding or for another sequence.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional


class PackedCausalAttention(MegatronModule):
    """``core_attention`` over cu_seqlens (THD layout), grouped queries included."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self" and config.context_parallel_size == 1
        self.softmax_scale = softmax_scale  # None: 1 / sqrt(head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [T, heads/tp, d], key and value [T, groups/tp, d] -> [T, heads/tp * d]."""
        assert packed_seq_params is not None, "the trainer always packs its sequences"
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        lengths = [end - start for start, end in pairwise(bounds)]
        outputs = [
            functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                is_causal=True,
                scale=self.softmax_scale,
                enable_gqa=query.size(1) != key.size(1),
            )[0].transpose(0, 1)
            for q, k, v in zip(
                query.split(lengths), key.split(lengths), value.split(lengths), strict=True
            )
        ]
        return torch.cat(outputs).reshape(query.size(0), -1)
