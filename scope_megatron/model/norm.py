"""RMSNorm for the local layer spec, which works with sequence parallelism.

megatron-core's torch norm refuses sequence parallelism because nobody sums the weight's gradient
over the tensor ranks; a weight marked ``sequence_parallel`` is summed by ``finalize_model_grads``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from scope_megatron.parallel import platform


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; by Apex when it imports.

    With ``config.layernorm_zero_centered_gamma`` (Gemma) the factor is 1 + weight, computed in
    float32.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object
    ) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        start = torch.zeros if self.zero_centered else torch.ones
        self.weight = torch.nn.Parameter(start(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self._apex = platform.has_apex()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> the same shape and dtype."""
        if self.zero_centered:
            factor = 1.0 + self.weight.float()
            return functional.rms_norm(x.float(), factor.shape, factor, self.eps).type_as(x)
        if self._apex and x.is_cuda:
            from apex.normalization.fused_layer_norm import fused_rms_norm_affine

            return fused_rms_norm_affine(x, self.weight, self.weight.shape, self.eps)
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class NormedResidual(RMSNorm):
    """In the place of megatron-core's bias-dropout-add: residual + norm(output of the block)."""

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:  # type: ignore[override]
        """The function that a layer calls with (output, bias), the residual and a dropout of 0."""

        def add(output: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            assert output[1] is None and dropout == 0.0
            return residual + super(NormedResidual, self).forward(output[0])

        return add
