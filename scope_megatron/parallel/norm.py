"""RMSNorm for the local layer spec, which works with sequence parallelism.

megatron-core's torch norm refuses sequence parallelism because nobody sums the weight's gradient
over the tensor ranks; a weight marked ``sequence_parallel`` is summed by ``finalize_model_grads``.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from scope_megatron.parallel import platform


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; by Apex when it imports."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self._apex = platform.has_apex()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> the same shape and dtype."""
        if self._apex and x.is_cuda:
            from apex.normalization.fused_layer_norm import fused_rms_norm_affine

            return fused_rms_norm_affine(x, self.weight, self.weight.shape, self.eps)
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
