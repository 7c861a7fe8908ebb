"""The table: one record per architecture. What a record leaves out is as in Llama."""

from __future__ import annotations

from dataclasses import replace

from scope_megatron.family.record import (
    FIXED,
    OFF,
    ROPE_TYPES,
    Caps,
    Experts,
    Family,
    Norms,
    Windows,
)

_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA2 = Family(
    "Gemma2ForCausalLM",
    "Gemma 2",
    norms=Norms(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    activation="gelu_pytorch_tanh",
    activation_key="hidden_activation",
    zero_centered_norms=True,
    scaled_embeddings=True,
    scale_key="query_pre_attn_scalar",
    windows=Windows(full_every=2),
    caps=Caps(attention=50.0, logits=30.0),
    tied=True,
    required=("head_dim", "query_pre_attn_scalar", "sliding_window"),
    rope_types=tuple(kind for kind in ROPE_TYPES if kind != "yarn"),
    engine_output_layer=False,
)

_RECORDS = (
    Family("LlamaForCausalLM", "Llama 2, 3, 3.x"),
    Family(
        "Qwen2ForCausalLM",
        "Qwen 2, 2.5, R1-Distill-Qwen",
        qkv_bias=True,
        off=tuple(key for key in OFF if key != "attention_bias"),
    ),
    Family("Qwen3ForCausalLM", "Qwen 3 dense", qk_norms=_QK_NORMS),
    Family("MistralForCausalLM", "Mistral, its window included", windows=Windows(default=4096)),
    Family(
        "Qwen3MoeForCausalLM",
        "Qwen 3 MoE",
        qk_norms=_QK_NORMS,
        experts=Experts(
            module="mlp",
            gate_up=("gate_proj", "up_proj"),
            down="down_proj",
            count_key="num_experts",
            ffn_key="moe_intermediate_size",
            per_token=8,
            normalized=False,
        ),
        off=(*OFF, "mlp_only_layers"),
        fixed=(*FIXED, ("decoder_sparse_step", 1)),
    ),
    Family(
        "MixtralForCausalLM",
        "Mixtral",
        experts=Experts(
            module="block_sparse_moe",
            gate_up=("w1", "w3"),
            down="w2",
            count_key="num_local_experts",
        ),
        norm_eps=1e-5,
        windows=Windows(),
        rope_theta=1000000.0,
    ),
    _GEMMA2,
    replace(
        _GEMMA2,
        name="Gemma3ForCausalLM",
        title="Gemma 3, text",
        qk_norms=_QK_NORMS,
        windows=Windows(
            full_every=6,
            full_every_keys=("sliding_window_pattern", "_sliding_window_pattern"),
        ),
        caps=Caps(),
        rope_theta=1000000.0,
        window_rope_theta=10000.0,
        engine_output_layer=True,
    ),
    Family(
        "Phi3ForCausalLM",
        "Phi 3, Phi 4 (not those with longrope)",
        qkv=("self_attn.qkv_proj",),
        gate_up=("mlp.gate_up_proj",),
        norm_eps=1e-5,
        windows=Windows(),
        rope_types=("default",),
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _RECORDS}
