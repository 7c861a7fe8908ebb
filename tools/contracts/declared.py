"""Uses that no AST shows, and where the packages pass keywords on.

A table has classes, each followed by what is asked of its objects; ``name(a, b)`` is a call with
these keywords. A test keeps the tables honest: every name must occur in this project's source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tools.contracts.uses import Call, Use


@dataclass(frozen=True)
class Contract:
    """A distribution whose sources are read."""

    distribution: str  # its name in setup.py and in the index
    package: str  # first part of its modules' names
    roots: tuple[str, ...]  # what counts as its modules
    declared: str = ""  # class: names and calls on its objects
    mentioned: str = ""  # module: words that its code must have
    forwards: dict[str, str] = field(default_factory=dict)  # -> who takes its **kwargs
    through: dict[str, tuple[str, ...]] = field(default_factory=dict)  # megatron-core's own uses
    demanded: tuple[str, ...] = ()  # needed although megatron-core goes on without them

    def uses(self) -> Iterator[Use]:
        """The declared uses on objects."""
        for owner, name, keywords in _entries(self.declared):
            given = tuple(re.findall(r"\w+", keywords))
            call = Call(0, given, partial=True) if keywords else None
            yield Use(owner, True, (name,), call, "declared")

    def words(self) -> Iterator[tuple[str, str]]:
        """(module, word) of what its code must mention."""
        for module, word, _ in _entries(self.mentioned):
            yield module, word


def _entries(table: str) -> Iterator[tuple[str, str, str]]:
    """(owner, name, keywords in brackets or nothing) of a table."""
    owner = ""
    for found in re.finditer(r"([\w.]+):|(\w+)(\([^)]*\))?", table):
        if found[1]:
            owner = found[1]
        else:
            yield owner, found[2], found[3] or ""


_RELOAD = "vllm.v1.worker.gpu_model_runner.GPUModelRunner.reload_weights"

VLLM = Contract(
    "vllm",
    "vllm",
    ("vllm",),
    # The engine is in this process: its objects are used beyond what LLM offers.
    declared="""
        vllm.outputs.RequestOutput: outputs prompt_logprobs finished request_id
        vllm.outputs.CompletionOutput: token_ids logprobs finish_reason
        vllm.logprobs.FlatLogprobs: start_indices token_ids logprobs
        vllm.v1.engine.llm_engine.LLMEngine:
            abort_request(internal) output_processor step()
            has_unfinished_requests() engine_core
        vllm.v1.engine.core_client.InprocClient: engine_core
        vllm.v1.engine.core.EngineCore: batch_queue
        vllm.v1.engine.output_processor.OutputProcessor: request_states
        vllm.v1.worker.gpu_worker.Worker: get_model() reload_weights(weights_iterator)
        vllm.v1.worker.gpu_model_runner.GPUModelRunner:
            get_model() reload_weights(weights_iterator) execute_model_state
        vllm.v1.worker.gpu.model_runner.GPUModelRunner:
            get_model() reload_weights(weights_iterator) execute_model_state
        vllm.model_executor.layers.linear.ColumnParallelLinear:
            input_size_per_partition output_size_per_partition quant_method
        vllm.model_executor.layers.linear.RowParallelLinear:
            input_size_per_partition output_size_per_partition quant_method
        vllm.model_executor.layers.linear.LinearMethodBase:
            apply() process_weights_after_loading()
        vllm.model_executor.models.qwen2.Qwen2ForCausalLM: packed_modules_mapping lm_head
        vllm.model_executor.models.llama.LlamaForCausalLM: packed_modules_mapping lm_head
        vllm.model_executor.models.qwen3.Qwen3ForCausalLM: packed_modules_mapping lm_head
    """,
    forwards={
        "vllm.LLM": "vllm.engine.arg_utils.EngineArgs",
        # 0.26's second runner hands everything to the first
        "vllm.v1.worker.gpu_worker.Worker.reload_weights": _RELOAD,
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner.reload_weights": _RELOAD,
    },
)

MEGATRON = Contract(
    "megatron-core",
    "megatron",
    ("megatron.core",),
    declared="""
        megatron.core.transformer.transformer_config.TransformerConfig:
            finalize_model_grads_func no_sync_func
        megatron.core.transformer.spec_utils.ModuleSpec: submodules module params
        megatron.core.transformer.transformer_layer.TransformerLayerSubmodules:
            input_layernorm pre_mlp_layernorm self_attention self_attn_bda mlp_bda
        megatron.core.transformer.attention.SelfAttentionSubmodules:
            core_attention q_layernorm k_layernorm
        megatron.core.transformer.attention.SelfAttention:
            core_attention get_query_key_value_tensors()
        megatron.core.distributed.param_and_grad_buffer._ParamAndGradBuffer: grad_data
        megatron.core.optimizer.optimizer.ChainedOptimizer: chained_optimizers
        megatron.core.optimizer.optimizer.MixedPrecisionOptimizer: optimizer param_groups
        megatron.core.optimizer.optimizer.FP32Optimizer: optimizer param_groups
        megatron.core.optimizer.distrib_optimizer.DistributedOptimizer:
            optimizer param_groups model_param_group_index_map
            _set_main_param_and_optimizer_states()
        megatron.core.models.common.embeddings.rotary_pos_embedding.RotaryEmbedding:
            get_rotary_seq_len()
        megatron.core.dist_checkpointing.mapping.ShardedTensor:
            key data replica_id global_offset global_shape allow_shape_mismatch
        megatron.core.dist_checkpointing.mapping.ShardedObject: data
        megatron.core.dist_checkpointing.strategies.filesystem_async.FileSystemWriterAsync:
            write_buckets
        megatron.core.transformer.moe.token_dispatcher.MoEAlltoAllTokenDispatcher:
            input_splits output_splits output_splits_tp
    """,
    mentioned="""
        megatron.core.models.gpt.gpt_model:
            get_rotary_seq_len rotary_pos_emb
    """,
    forwards={
        "megatron.core.dist_checkpointing.strategies.filesystem_async.FileSystemWriterAsync": (
            "torch.distributed.checkpoint.FileSystemWriter"
        ),
        "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlanner": (
            "torch.distributed.checkpoint.DefaultSavePlanner"
        ),
    },
)

_EXTENSION = "megatron.core.extensions.transformer_engine"

TRANSFORMER_ENGINE = Contract(
    "transformer-engine",
    "transformer_engine",
    ("transformer_engine",),
    # Used through megatron-core: what its modules import, and the layers that this project builds.
    # "" is what runs at import.
    through={
        _EXTENSION: (
            "",
            "_get_extra_te_kwargs",
            "TENorm.__new__",
            "TELinear.__init__",
            "TELinear.forward",
            "TELayerNormColumnParallelLinear.__init__",
            "TELayerNormColumnParallelLinear.forward",
            "TEColumnParallelLinear.__init__",
            "TERowParallelLinear.__init__",
            "TEDotProductAttention.__init__",
            "TEDotProductAttention.forward",
            "fused_apply_rotary_pos_emb",
            "fused_apply_rotary_pos_emb_thd",
        ),
        "megatron.core.optimizer": ("", "_get_megatron_optimizer_based_on_param_groups"),
        "megatron.core.optimizer.optimizer": ("",),
        "megatron.core.optimizer.clip_grads": ("",),
        "megatron.core.optimizer.distrib_optimizer": ("",),
        "megatron.core.tensor_parallel.random": ("",),
        "megatron.core.tensor_parallel.layers": ("",),
        "megatron.core.transformer.attention": ("",),
        "megatron.core.transformer.transformer_block": ("",),
        "megatron.core.models.gpt.gpt_layer_specs": ("",),
        "megatron.core.fp8_utils": ("",),
        "megatron.core.utils": ("",),
        "megatron.core.dist_checkpointing.strategies.torch": ("",),
    },
    forwards={
        "transformer_engine.pytorch.RMSNorm": "transformer_engine.pytorch.ops.RMSNorm",
        "transformer_engine.pytorch.LayerNorm": "transformer_engine.pytorch.ops.LayerNorm",
    },
    # Without these megatron-core falls back to having no Transformer Engine, or to slow kernels.
    demanded=(
        "transformer_engine.pytorch.fp8.FP8GlobalStateManager",
        "transformer_engine.pytorch.fp8.fp8_autocast",
        "transformer_engine.pytorch.optimizers.FusedAdam",
        "transformer_engine.pytorch.optimizers.multi_tensor_applier",
        "transformer_engine.pytorch.optimizers.multi_tensor_l2norm",
        "transformer_engine.pytorch.optimizers.multi_tensor_scale",
    ),
)

CONTRACTS = (VLLM, MEGATRON, TRANSFORMER_ENGINE)
