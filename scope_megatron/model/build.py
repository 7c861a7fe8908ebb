"""A Hugging Face config -> megatron-core's GPTModel: the student, and the frozen teacher."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from scope_megatron.config import ParallelConfig
from scope_megatron.family import ModelShape, is_tied
from scope_megatron.model.attention import PackedCausalAttention, RotatedAttention
from scope_megatron.model.norm import NormedResidual, RMSNorm
from scope_megatron.model.rope import PackedRope, inverse_frequencies, yarn_scale
from scope_megatron.parallel import platform
from scope_megatron.parallel.topology import Topology

VOCAB_MULTIPLE = 128  # per tensor rank, as Megatron's --make-vocab-size-divisible-by


def read_hf_config(directory: Path | str) -> dict[str, Any]:
    """``config.json`` of a Hugging Face model directory."""
    hf: dict[str, Any] = json.loads((Path(directory) / "config.json").read_text())
    return hf | {"tie_word_embeddings": True} if is_tied(hf) else hf


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """The vocabulary rounded up so that every tensor rank holds a multiple of VOCAB_MULTIPLE."""
    multiple = VOCAB_MULTIPLE * tensor
    return math.ceil(vocab_size / multiple) * multiple


def transformer_config(
    shape: ModelShape,
    topology: Topology,
    dtype: torch.dtype,
    parallel: ParallelConfig | None = None,
    aux_loss: bool = False,
) -> TransformerConfig:
    """megatron-core's TransformerConfig of a ``config.json``."""
    family = shape.family
    bf16 = dtype == torch.bfloat16
    virtual = 1 if parallel is None else parallel.virtual_pipeline
    config = TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.query_groups,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        layernorm_epsilon=shape.norm_eps,
        normalization="RMSNorm",
        activation_func=_ACTIVATIONS[family.activation],
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=family.qkv_bias,
        qk_layernorm=family.qk_norms is not None,
        layernorm_zero_centered_gamma=family.zero_centered_norms,
        softmax_scale=shape.softmax_scale,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=topology.tp_size,
        pipeline_model_parallel_size=topology.pp_size,
        context_parallel_size=topology.cp_size,
        sequence_parallel=topology.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=bf16,
        variable_seq_lengths=topology.pp_size > 1,  # packs differ: parallel/pipeline.py knows how
        moe_token_dispatcher_type="alltoall",  # asked for by variable_seq_lengths, dense or not
        # interleaved, both directions are under way at once, between two stages with one peer
        overlap_p2p_comm=virtual > 1,
        batch_p2p_comm=platform.has_cuda() and virtual == 1,
        calculate_per_token_loss=True,  # weights arrive normalised: nobody divides again
        use_cpu_initialization=not platform.has_cuda(),
        perform_initialization=True,  # also marks the tensor-parallel parameters
        cp_comm_type=None,  # of Transformer Engine's attention
        persist_layer_norm=bf16 and platform.has_transformer_engine(),
        bias_activation_fusion=fuses_activation(shape),
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        # its kernel knows no scale of cosines and sines, which YaRN wants
        apply_rope_fusion=_takes_engine_layers(shape, dtype, topology) and yarn_scale(shape) == 1.0,
        gradient_accumulation_fusion=False,
        deallocate_pipeline_outputs=True,
        **_expert_settings(shape, topology, aux_loss),
        **_recompute_settings(parallel, shape),
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
    )
    config.logit_softcap = shape.logits_cap
    return config


def _takes_engine_layers(shape: ModelShape, dtype: torch.dtype, topology: Topology) -> bool:
    """Whether the layers are Transformer Engine's.

    Its packed attention is half precision, and has no softcap. Under context parallelism it cuts
    every sequence by itself, each padded; packs here are cut as a whole, without padding.
    """
    norms = shape.family.norms
    ours = any(shape.windows) or shape.attention_cap or norms.after_attention or norms.after_mlp
    return (
        dtype == torch.bfloat16
        and platform.has_transformer_engine()
        and not ours
        and topology.cp_size == 1
    )


def fuses_activation(shape: ModelShape) -> bool:
    """Whether SwiGLU is one compiled kernel: the same numbers with fewer roundings, and half of the
    activations kept. On CUDA, for the MLPs that are SwiGLU (Gemma's are not)."""
    compiles = platform.has_cuda() and find_spec("triton") is not None
    return compiles and shape.family.activation == "silu"


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS = {"silu": functional.silu, "gelu_pytorch_tanh": _gelu}


def _expert_settings(shape: ModelShape, topology: Topology, aux_loss: bool) -> dict[str, Any]:
    """TransformerConfig's settings of a mixture of experts; none for a dense model."""
    if not shape.experts:
        return {}
    return {
        "num_moe_experts": shape.experts,
        "moe_ffn_hidden_size": shape.ffn,
        "moe_router_topk": shape.experts_per_token,
        # softmax after the choice: the chosen experts' weights sum to one
        "moe_router_pre_softmax": not shape.experts_normalized,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if aux_loss else "none",
        "moe_aux_loss_coeff": 0.0,  # learn/balance.py sets it before every update
        "expert_model_parallel_size": topology.ep_size,
        "expert_tensor_parallel_size": topology.tp_size if topology.ep_size == 1 else 1,
    }


def _recompute_settings(parallel: ParallelConfig | None, shape: ModelShape) -> dict[str, Any]:
    """TransformerConfig's settings of the activations that the backward computes again."""
    if parallel is None or parallel.recompute == "none":
        return {}
    if parallel.recompute == "selective":
        modules = ["core_attn", "moe" if shape.experts else "mlp"]
        return {"recompute_granularity": "selective", "recompute_modules": modules}
    layers = shape.layers if parallel.recompute_layers is None else parallel.recompute_layers
    return {
        "recompute_granularity": "full",
        "recompute_method": "block",  # each of a stage's first layers by itself
        "recompute_num_layers": layers,
    }


def build_model(
    hf: dict[str, Any],
    topology: Topology,
    dtype: torch.dtype,
    *,
    trainable: bool,
    padded_vocab: int | None = None,
    materialize: bool = True,
    hollow: bool = False,
    parallel: ParallelConfig | None = None,
    aux_loss: bool = False,
    chunk: int | None = None,
) -> GPTModel:
    """This rank's shard of the model, with weights not yet loaded.

    A model that is not trainable has no gradients and no buffers for them, and is in eval mode.
    ``parallel`` says which activations of a trained model are computed again; with ``aux_loss`` its
    routers have a load-balancing loss. ``chunk``: only this one of ``parallel.virtual_pipeline``.
    One that is not materialized has names and shapes only (on the CPU; CUDA has the memory); a
    ``hollow`` one on CUDA too.
    """
    shape = ModelShape.of(hf)
    config = transformer_config(shape, topology, dtype, parallel, aux_loss)
    last_chunk = 0
    if chunk is not None and parallel is not None:
        last_chunk = parallel.virtual_pipeline - 1
    whole = not hollow and (materialize or platform.has_cuda())
    device = platform.device() if whole else torch.device("meta")
    if hollow:  # no parameter is made on the GPU, by megatron-core's layers or by TE's
        config.use_cpu_initialization, config.init_model_with_meta_device = True, True
    with nullcontext() if device.type != "meta" else device:
        model = (_HollowModel if hollow else GPTModel)(
            config=config,
            transformer_layer_spec=_block_spec(config, shape, topology, chunk),
            vocab_size=padded_vocab or padded_vocab_size(shape.vocab, topology.tp_size),
            max_sequence_length=shape.max_positions,
            pre_process=topology.is_first_stage and not chunk,
            post_process=topology.is_last_stage and (chunk or 0) == last_chunk,
            vp_stage=chunk,
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope",
            rotary_base=shape.ropes[0]["rope_theta"],
        )
    model.rotary_pos_emb = PackedRope(
        inverse_frequencies(shape).to(platform.device()),
        kinds=len(shape.ropes),
        dtype=dtype,
        scale=yarn_scale(shape),
        fused=config.apply_rope_fusion,
    )
    _add_hooks(model, shape, dtype)
    model.to(device)
    if dtype == torch.bfloat16:
        model.bfloat16()
    if not trainable:
        model.requires_grad_(False)
        model.eval()
    return model


class _HollowModel(GPTModel):
    """Without values the first and the last stage have none of tied embeddings to agree on."""

    def _is_in_embd_group(self) -> bool:
        return False


def _add_hooks(model: GPTModel, shape: ModelShape, dtype: torch.dtype) -> None:
    """Scaled embeddings and capped logits, which megatron-core does not have."""
    cap = shape.logits_cap
    if model.pre_process and shape.family.scaled_embeddings:
        scale = torch.tensor(shape.hidden**0.5, dtype=dtype).item()  # rounded as transformers does
        model.embedding.register_forward_hook(lambda module, args, output: output * scale)
    if model.post_process and cap is not None:
        model.output_layer.register_forward_hook(
            lambda module, args, output: ((output[0] / cap).tanh() * cap, output[1])
        )


def _block_spec(
    config: TransformerConfig, shape: ModelShape, topology: Topology, chunk: int | None
) -> TransformerBlockSubmodules:
    if _takes_engine_layers(shape, config.params_dtype, topology):
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm
        )
        norm: Any = TENorm
    else:
        layer = _local_layer_spec(config, shape)
        norm = RMSNorm
    if not config.apply_rope_fusion:
        layer.submodules.self_attention.module = RotatedAttention
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=chunk), layer_norm=norm
    )


def _local_layer_spec(config: TransformerConfig, shape: ModelShape) -> ModuleSpec:
    """megatron-core's local layer, with packed attention and a norm for sequence parallelism.

    Where the family has them, layers have a norm behind attention and MLP as well.
    """
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        qk_layernorm=config.qk_layernorm,
        normalization="RMSNorm",
    )
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = partial(
        PackedCausalAttention,
        windows=shape.windows,
        softcap=shape.attention_cap,
    )
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    sizes = {"hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
    normed = ModuleSpec(NormedResidual, params={"config": config, **sizes})
    if shape.family.norms.after_attention:
        layer.submodules.self_attn_bda = normed
    if shape.family.norms.after_mlp:
        layer.submodules.mlp_bda = normed
    return layer
