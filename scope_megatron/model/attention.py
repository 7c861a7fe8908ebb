"""Causal attention over packed sequences, for the layer spec without Transformer Engine.

megatron-core's local ``DotProductAttention`` refuses packed sequences; this one takes them. No
token ever pays for padding or for another sequence: in half precision on a GPU a pack is one launch
of torch's variable-length FlashAttention, elsewhere each sequence runs through torch's
scaled_dot_product_attention on its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

from scope_megatron.model.rope import rotate
from scope_megatron.parallel.context import ContextShare, Launch
from scope_megatron.parallel.packed import PackedSequences

_HALF = (torch.bfloat16, torch.float16)
_VARLEN = inspect.signature(varlen_attn).parameters  # torch 2.11 and 2.13 differ in their names


class PackedCausalAttention(MegatronModule):
    """``core_attention`` over cu_seqlens (THD layout), grouped queries included.

    ``windows`` has an entry per layer of the whole model: how many of the last tokens, itself
    included, a token sees; None: all. With ``softcap`` the scaled scores s become
    softcap tanh(s / softcap), and memory grows with the square of the longest sequence.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        windows: Sequence[int | None] = (),
        softcap: float | None = None,
        **_: object,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self"
        self.softmax_scale = softmax_scale  # None: 1 / sqrt(head_dim)
        self.window = windows[layer_number - 1] if windows else None
        self.softcap = softcap

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """query [T, heads/tp, d], key and value [T, groups/tp, d] -> [T, heads/tp * d].

        With context parallelism all three have this rank's tokens, and the output too.
        """
        pack = packed_seq_params
        assert pack is not None, "the trainer always packs its sequences"
        if pack.share is not None:
            return self._attend_share(query, key, value, pack.share)
        if self._takes_varlen(query):
            assert pack.cu_seqlens_q is not None and pack.max_seqlen_q is not None
            launch = Launch(pack.cu_seqlens_q, pack.max_seqlen_q)
            return self._attend_varlen(query, key, value, launch, launch)
        lengths = [end - start for start, end in pairwise(pack.bounds)]
        parts = (tensor.transpose(0, 1).split(lengths, dim=1) for tensor in (query, key, value))
        outputs = [self._attend(q, k, v).transpose(0, 1) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(outputs).reshape(query.size(0), -1)

    def _attend_share(
        self, query: Tensor, key: Tensor, value: Tensor, share: ContextShare
    ) -> Tensor:
        """This rank's queries; keys and values of all tokens come from the other ranks, in one
        all-gather. Every segment sees its sequence up to its own end."""
        key, value = share.gather(torch.cat((key, value), dim=1)).chunk(2, dim=1)
        if self._takes_varlen(query):
            # what two segments of a sequence see is there twice; never more: any order of adding
            # the two gradients gives the same bits
            key, value = (tensor.index_select(0, share.seen) for tensor in (key, value))
            return self._attend_varlen(query, key, value, share.queries, share.keys)
        outputs = [
            self._attend(
                query[s.first : s.first + s.end - s.begin].transpose(0, 1),
                key[s.start : s.end].transpose(0, 1),
                value[s.start : s.end].transpose(0, 1),
            ).transpose(0, 1)
            for s in share.segments
        ]
        return torch.cat(outputs).reshape(query.size(0), -1)

    def _takes_varlen(self, query: Tensor) -> bool:
        width = query.size(-1)
        return (
            "window_size" in _VARLEN
            and query.is_cuda
            and query.dtype in _HALF
            and self.softcap is None
            and (width <= 256 and width % 8 == 0)  # what FlashAttention's kernels take
            and not torch.are_deterministic_algorithms_enabled()  # its backward adds by atomics
        )

    def _attend_varlen(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Launch, keys: Launch
    ) -> Tensor:
        """The whole pack in one launch, without asking the device for the lengths. Where a part has
        more keys than queries, these are the last of its tokens."""
        # 2.13 wants to be told of grouped queries; 2.11 hands them to the same kernel untold
        told = {"enable_gqa": query.size(1) != key.size(1)} if "enable_gqa" in _VARLEN else {}
        output = varlen_attn(
            query,
            key,
            value,
            queries.bounds,
            keys.bounds,
            queries.longest,
            keys.longest,
            scale=self.softmax_scale,
            # (left, right): tokens seen on both sides of a token's own
            window_size=(-1 if self.window is None else self.window - 1, 0),
            **told,
        )
        return output.reshape(query.size(0), -1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One sequence, or the last n of its L tokens: query [heads, n, d], key and value
        [groups, L, d] -> [heads, n, d]."""
        if self.softcap is not None:
            return self._attend_capped(query, key, value, self.softcap)
        count, length = query.size(1), key.size(1)
        masked = (self.window is not None and self.window < length) or count < length
        return functional.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=self._visible(count, length, query.device) if masked else None,
            is_causal=not masked,
            scale=self.softmax_scale,
            enable_gqa=query.size(0) != key.size(0),
        )[0]

    def _attend_capped(self, query: Tensor, key: Tensor, value: Tensor, cap: float) -> Tensor:
        heads, count, width = query.shape
        grouped = query.unflatten(0, (key.size(0), -1))  # [groups, heads of one, L, d]
        scale = width**-0.5 if self.softmax_scale is None else self.softmax_scale
        scores = (grouped @ key[:, None].mT * (scale / cap)).tanh() * cap
        hidden = ~self._visible(count, key.size(1), query.device)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32)
        return (weights.to(value.dtype) @ value[:, None]).reshape(heads, count, width)

    def _visible(self, count: int, length: int, device: torch.device) -> Tensor:
        """[n, L]: which key (column) each of the last n tokens (row) sees."""
        before = length - count
        seen = torch.ones(count, length, dtype=torch.bool, device=device).tril(before)
        return seen if self.window is None else seen.triu(before + 1 - self.window)


class RotatedAttention(SelfAttention):
    """Self-attention that turns queries and keys by a rotation of every token of the pack.

    ``rotary_pos_emb`` is what :class:`~scope_megatron.model.rope.PackedRope` gives. Where layers
    with and without a window turn differently, ``core_attention`` knows which kind this is.
    """

    _rotation: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        """As megatron-core's, with ``rotary_pos_emb`` [kinds, 2, T, d]."""
        rotations = kwargs.pop("rotary_pos_emb")
        assert isinstance(rotations, Tensor)
        second = len(rotations) > 1 and self.core_attention.window is not None
        self._rotation = rotations[int(second)]
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            self._rotation = None

    def get_query_key_value_tensors(
        self, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query [T, 1, heads/tp, d], key and value [T, 1, groups/tp, d]; the first two turned."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        assert self._rotation is not None, "called by forward"
        return rotate(query, self._rotation), rotate(key, self._rotation), value

    def _checkpointed_attention_forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: object,
    ) -> Tensor:
        """Attention that its backward computes again (``parallel.recompute: selective``).

        megatron-core's way hands the gradients on in another memory layout, in which the norms of
        queries and keys sum in another order. Nothing here is random: no state is set back.
        """
        kwargs.pop("rotary_pos_emb", None)
        return checkpoint(
            self.core_attention,
            query,
            key,
            value,
            attention_mask,
            use_reentrant=False,
            preserve_rng_state=False,
            **kwargs,
        )
