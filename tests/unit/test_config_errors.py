"""Wrong settings end in one line that names the key and the fix.

The lines are in tests/golden/config_errors.txt. After a change of wording:
    UPDATE_GOLDEN=1 python -m pytest tests/unit/test_config_errors.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.family import FAMILIES
from tests.support.config_run import (
    append,
    index_of,
    leave,
    make_run,
    quantize,
    remove,
    rename_token,
    replace,
    sentencepiece,
    student,
    teacher,
    truncate,
    write,
    write_tokenizer,
)
from tests.unit.algorithm_error_cases import ALGORITHM_CASES
from tests.unit.logging_error_cases import LOGGING_CASES
from tests.unit.placement_error_cases import PLACEMENT_CASES, SURROUNDINGS
from tests.unit.teacher_error_cases import TEACHER_CASES

GOLDEN = Path(__file__).parents[1] / "golden" / "config_errors.txt"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))

GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "head_dim": 32}
GEMMA2 |= {"query_pre_attn_scalar": 32, "sliding_window": 64}

# name: (change of the files, overrides). The message is in the golden file under the name.
CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
    # keys and overrides
    "unknown_key": (leave, ["objective.tua=1"]),
    "unknown_key_in_file": (append("objective: {kll: sampled}\n"), []),
    "unknown_section": (append("optimiser: {lr: 1e-4}\n"), []),
    "unknown_deep_key": (leave, ["rollout.engine.tensr=2"]),
    "unknown_key_of_another_section": (leave, ["tau=2"]),
    "unknown_key_like_none": (leave, ["zzz=1"]),
    "unknown_and_missing": (replace("steps: 3", "stesp: 3"), []),
    "override_without_value": (leave, ["foo"]),
    "override_without_key": (leave, ["=5"]),
    "override_below_a_value": (leave, ["output_dir.x=1"]),
    "override_not_yaml": (leave, ["objective.tau=[1"]),
    # the file
    "no_file": (remove("run.yaml"), []),
    "not_yaml": (append("train: [\n"), []),
    "not_utf8": (write("run.yaml", b"seed: \xff\n"), []),
    "not_a_mapping": (write("run.yaml", "- seed\n"), []),
    "key_twice": (append("output_dir: other\n"), []),
    # types
    "tau_text": (leave, ["objective.tau=warm"]),
    "tau_quoted": (append("objective: {tau: '1.0'}\n"), []),
    "steps_fraction": (leave, ["train.steps=2.5"]),
    "shuffle_number": (leave, ["data.shuffle=1"]),
    "path_number": (leave, ["output_dir=5"]),
    "path_empty": (leave, ["model.student=''"]),
    "train_empty_list": (leave, ["data.train=[]"]),
    "section_is_value": (leave, ["parallel=2"]),
    "resume_bool": (leave, ["resume=no"]),
    "algorithm_typo": (leave, ["algorithm.name=scpoe"]),
    "kl_unknown": (leave, ["objective.kl=l2"]),
    "dtype_unknown": (leave, ["model.dtype=int4"]),
    "tensor_text": (leave, ["parallel.tensor=many"]),
    "pipeline_auto": (leave, ["parallel.pipeline=auto"]),
    "device_unknown": (leave, ["platform.device=gpu"]),
    "device_without_gpu": (leave, ["platform.device=cuda"]),
    "wandb_missing": (leave, ["logging.wandb_project=mine"]),
    # bounds
    "tau_zero": (leave, ["objective.tau=0"]),
    "lr_negative": (leave, ["optimizer.lr=-1e-4"]),
    "lr_nan": (leave, ["optimizer.lr=.nan"]),
    "lr_infinite": (leave, ["optimizer.lr=.inf"]),
    "temperature_zero": (leave, ["rollout.temperature=0"]),
    "evaluation_temperature_zero": (leave, ["evaluation.temperature=0.0"]),
    "teacher_temperature_negative": (leave, ["objective.teacher_temperature=-1"]),
    "teacher_temperature_infinite": (leave, ["objective.teacher_temperature=.inf"]),
    "teacher_temperature_text": (leave, ["objective.teacher_temperature=as_student"]),
    "top_p_above_one": (leave, ["rollout.top_p=1.5"]),
    "group_size_zero": (leave, ["rollout.group_size=0"]),
    "jsd_beta_one": (leave, ["objective.jsd_beta=1.0"]),
    "tis_clip_zero": (leave, ["objective.tis_clip=0"]),
    "keep_none": (leave, ["checkpoint.keep=0"]),
    "keep_best_negative": (leave, ["checkpoint.keep_best=-1"]),
    "samples_zero": (leave, ["evaluation.samples=0"]),
    "microbatch_zero": (leave, ["train.microbatch_tokens=0"]),
    "transfers_never_checked": (leave, ["rollout.engine.check_every=0"]),
    "old_logprobs_unknown": (leave, ["objective.old_logprobs=engine"]),
    # what must be there
    "model_missing": (replace("model: {student: student, teacher: teacher}\n", ""), []),
    "steps_missing": (replace("steps: 3, ", ""), []),
    "teacher_missing": (leave, ["model.teacher=null"]),
    "teacher_missing_opd": (leave, ["model.teacher=null", "algorithm.name=opd"]),
    "rollout_missing": (leave, ["rollout=null"]),
    "eval_missing": (leave, ["data.eval=null"]),
    "eval_missing_every": (
        leave,
        ["data.eval=null", "evaluation={every: 5, before: false, after: false}"],
    ),
    "kd_without_batch": (leave, ["algorithm.name=kd"]),
    "kd_evaluation_length": (
        leave,
        ["algorithm.name=kd", "train.batch_sequences=4", "rollout=null"],
    ),
    "reference_code_and_weight": (
        leave,
        ["objective={preset: reference_code, student_weight: perplexity}"],
    ),
    "batch_weights_of_opd": (leave, ["objective.weight_group=batch", "algorithm.name=opd"]),
    "constant_without_a_path": (leave, ["objective.incorrect=constant", "algorithm.name=opd"]),
    "no_incorrect_path_of_opd": (leave, ["objective.incorrect=none", "algorithm.name=opd"]),
    "constant_below_without_constant": (leave, ["objective.constant_below=0.1"]),
    "constant_below_one": (leave, ["objective={incorrect: constant, constant_below: 1.5}"]),
    "clip_dual_below_one": (leave, ["algorithm.clip_dual=0.5"]),
    "clip_high_zero": (leave, ["algorithm.clip_high=0"]),
    "states_and_distributed": (leave, ["optimizer={states: parameters, distributed: true}"]),
    "filter_without_groups": (leave, ["algorithm={name: opd, group_filter: mixed}"]),
    "pass_rate_without_groups": (leave, ["algorithm={name: opd, pass_rate_alpha: 1.0}"]),
    "overlong_without_reward": (leave, ["algorithm.overlong_buffer=10"]),
    "overlong_buffer_too_long": (leave, ["algorithm={name: grpo, overlong_buffer: 1000}"]),
    "kdrl_group_of_one": (leave, ["algorithm.name=kdrl", "rollout.group_size=1"]),
    "kdrl_teacher_missing": (leave, ["algorithm.name=kdrl", "model.teacher=null"]),
    "rlsd_exact": (leave, ["algorithm.name=rlsd", "objective.kl=reverse_kl"]),
    "iw_without_divergence": (leave, ["algorithm.name=grpo", "objective.iw_gamma=0.5"]),
    "prefix_without_teacher": (leave, ["objective={incorrect: constant, prefix_tokens: 64}"]),
    "topk_of_without_topk": (leave, ["objective.topk_of=union"]),
    "topk_tail_without_topk": (leave, ["objective={kl: jsd, topk_tail: true}"]),
    "entropy_threshold_without_kl": (leave, ["objective.entropy_threshold=1.5"]),
    "extrapolation_exact": (leave, ["objective={extrapolation: 1.25, kl: reverse_kl}"]),
    "extrapolation_without_teacher": (
        leave,
        ["algorithm.name=grpo", "objective.extrapolation=1.25"],
    ),
    "privileged_without_answer": (leave, ["teacher.privileged=think"]),
    "privileged_without_teacher": (leave, ["algorithm.name=grpo", "teacher.privileged='{answer}'"]),
    "overlong_unknown": (leave, ["data.overlong=truncate"]),
    "kernel_triton_on_cpu": (leave, ["objective.kernel=triton"]),
    "kernel_unknown": (leave, ["objective.kernel=cuda"]),
    "verifier_unknown": (leave, ["verifier.name=maths"]),
    "verifier_timeout_zero": (leave, ["verifier.timeout_s=0"]),
    "verifier_custom_missing": (leave, ["verifier.name=custom"]),
    "verifier_custom_no_function": (leave, ["verifier.custom=reward.py"]),
    "verifier_memory": (leave, ["verifier.code.memory_mib=1"]),
    "verifier_isolation_typo": (leave, ["verifier.code.run_without_isolatoin=true"]),
    "batch_without_kd": (leave, ["train.batch_sequences=4"]),
    "grpo_group_of_one": (leave, ["algorithm.name=grpo", "rollout.group_size=1"]),
    # sizes
    "prompts_over_data": (leave, ["parallel.data=3"]),
    "kd_batch_over_data": (
        leave,
        ["algorithm.name=kd", "train.batch_sequences=4", "parallel.data=3"],
    ),
    "updates_above_prompts": (leave, ["train.updates_per_batch=3", "parallel.data=2"]),
    "sequence_without_tensor": (leave, ["parallel.sequence=true"]),
    "context_pads_a_microbatch": (leave, ["parallel.context=2", "train.microbatch_tokens=400"]),
    "context_zero": (leave, ["parallel.context=0"]),
    "expert_no_divisor_with_context": (
        leave,
        ["parallel.context=2", "parallel.expert=3", "train.microbatch_tokens=500"],
    ),
    "virtual_without_pipeline": (leave, ["parallel.virtual_pipeline=2"]),
    "virtual_over_layers": (leave, ["parallel.virtual_pipeline=3", "parallel.pipeline=2"]),
    "recompute_unknown": (leave, ["parallel.recompute=ful"]),
    "recompute_layers_without_full": (leave, ["parallel.recompute_layers=1"]),
    "recompute_layers_above_stage": (
        leave,
        ["parallel.recompute=full", "parallel.recompute_layers=99"],
    ),
    "teacher_offload_without_one": (
        leave,
        ["algorithm.name=grpo", "algorithm.kl_coef=0", "teacher.offload=cpu"],
    ),
    "teacher_dtype_unknown": (leave, ["teacher.dtype=float16"]),
    "teacher_dtype_without_one": (
        leave,
        ["algorithm.name=grpo", "algorithm.kl_coef=0", "teacher.dtype=bfloat16"],
    ),
    **ALGORITHM_CASES,
    **TEACHER_CASES,
    **LOGGING_CASES,
    "offload_unknown": (leave, ["optimizer.offload=cpu"]),
    "overlap_without_distributed": (leave, ["optimizer.overlap=true"]),
    "moe_aux_loss_without_experts": (leave, ["objective.moe_aux_loss_coeff=0.01"]),
    "moe_aux_loss_negative": (leave, ["objective.moe_aux_loss_coeff=-1"]),
    "engine_tensor": (leave, ["rollout.engine.tensor=2"]),
    **PLACEMENT_CASES,
    "microbatch_below_sequence": (leave, ["train.microbatch_tokens=399"]),
    "model_len_below_sequence": (leave, ["rollout.engine.max_model_len=399"]),
    "model_len_below_evaluation": (
        leave,
        ["rollout.engine.max_model_len=400", "evaluation.max_response_tokens=301"],
    ),
    "sequence_above_positions": (
        leave,
        ["rollout.max_response_tokens=413", "train.microbatch_tokens=999"],
    ),
    "sequence_above_teacher_positions": (teacher(max_position_embeddings=399), []),
    "model_len_above_positions": (leave, ["rollout.engine.max_model_len=513"]),
    "evaluation_above_positions": (leave, ["evaluation.max_response_tokens=413"]),
    # models
    "heads_over_tensor": (
        student(num_attention_heads=6, head_dim=32, num_key_value_heads=6),
        ["parallel.tensor=4"],
    ),
    "key_value_heads_over_tensor": (
        student(num_attention_heads=4, head_dim=32),
        ["parallel.tensor=4"],
    ),
    "ffn_over_tensor": (student(intermediate_size=127), ["parallel.tensor=2"]),
    "teacher_ffn_over_tensor": (teacher(intermediate_size=127), ["parallel.tensor=2"]),
    "layers_over_pipeline": (leave, ["parallel.pipeline=3"]),
    "teacher_layers_over_pipeline": (teacher(num_hidden_layers=3), ["parallel.pipeline=2"]),
    "hidden_over_heads": (student(hidden_size=65), []),
    "heads_over_groups": (student(num_attention_heads=3, head_dim=32), []),
    "head_dim_on_cpu": (student(head_dim=16), []),
    "architecture_unknown": (student(architectures=["GPT2LMHeadModel"]), []),
    "architecture_missing": (teacher(architectures=None), []),
    "rope_unknown": (student(rope_scaling={"type": "dynamic", "factor": 4.0}), []),
    "rope_yarn_context": (student(rope_scaling={"type": "yarn", "factor": 4.0}), []),
    "rope_partial": (student(rope_parameters={"partial_rotary_factor": 0.75}), []),
    "quantized_config": (student(quantization_config={"bits": 4}), []),
    "sliding_window": (student(use_sliding_window=True), []),
    "gemma_size_missing": (student(architectures=["Gemma3ForCausalLM"], head_dim=32), []),
    "gemma_activation": (student(**GEMMA2, hidden_activation="gelu"), []),
    "gemma_yarn": (student(**GEMMA2, rope_scaling={"rope_type": "yarn", "factor": 2.0}), []),
    "gemma_layer_types": (student(**GEMMA2, layer_types=["full_attention"]), []),
    "gemma_cap": (student(**GEMMA2, attn_logit_softcapping=0), []),
    "mistral_window_zero": (student(architectures=["MistralForCausalLM"], sliding_window=0), []),
    "gemma_fused_head": (teacher(**GEMMA2), ["objective.head=fused"]),
    "experts_missing": (
        student(architectures=["Qwen3MoeForCausalLM"], moe_intermediate_size=64),
        [],
    ),
    "experts_over_tensor": (
        student(architectures=["Qwen3MoeForCausalLM"], num_experts=4, moe_intermediate_size=63),
        ["parallel.tensor=2", "parallel.sequence=true"],
    ),
    "experts_without_sequence": (
        student(architectures=["Qwen3MoeForCausalLM"], num_experts=4, moe_intermediate_size=64),
        ["parallel.tensor=2"],
    ),
    "expert_over_ranks": (leave, ["parallel.expert=3", "parallel.data=4"]),
    "expert_above_ranks": (leave, ["parallel.expert=2"]),
    "expert_without_experts": (leave, ["parallel.expert=2", "parallel.data=2"]),
    "experts_over_expert": (
        teacher(architectures=["Qwen3MoeForCausalLM"], num_experts=6, moe_intermediate_size=64),
        ["parallel.expert=4", "parallel.data=4"],
    ),
    "dense_layers_among_experts": (
        student(
            architectures=["Qwen3MoeForCausalLM"],
            num_experts=4,
            moe_intermediate_size=64,
            mlp_only_layers=[0],
        ),
        [],
    ),
    "llama_attention_bias": (
        student(architectures=["LlamaForCausalLM"], attention_bias=True),
        [],
    ),
    "size_missing": (student(num_hidden_layers=None), []),
    "student_missing": (leave, ["model.student=org/model"]),
    "student_is_file": (leave, ["model.student=train.jsonl"]),
    "model_config_missing": (remove("teacher/config.json"), []),
    "model_config_not_json": (write("student/config.json", "{"), []),
    "weights_missing": (remove("student/model.safetensors"), []),
    "weights_truncated": (truncate("teacher/model.safetensors", 4), []),
    "weights_empty": (write("student/model.safetensors", b""), []),
    "weights_header_truncated": (truncate("student/model.safetensors", 64 * 4 + 9), []),
    "weights_quantized": (quantize, []),
    "shard_missing": (index_of("model-2.safetensors", "w"), []),
    "tensor_missing": (index_of("model.safetensors", "model.norm.weight", "w"), []),
    "index_without_map": (write("student/model.safetensors.index.json", "{}"), []),
    "head_missing": (student(tie_word_embeddings=False), []),
    # tokenizers
    "tokenizer_missing": (remove("student/tokenizer.json"), []),
    "teacher_tokenizer_missing": (remove("teacher/tokenizer.json"), []),
    "tokenizer_without_vocabulary": (write("student/tokenizer.json", '{"model": {}}'), []),
    "tokenizers_differ": (rename_token, []),
    "tokenizers_differ_in_size": (lambda: write_tokenizer("teacher", 50), []),
    "sentencepiece_differ": (sentencepiece("student", "teacher"), []),
    "tokenizer_kinds_differ": (sentencepiece("teacher"), []),
    "tokenizer_above_embedding": (student(vocab_size=39), []),
    "chosen_tokenizer_missing": (leave, ["model.tokenizer=nowhere"]),
    "top_k_above_vocabulary": (leave, ["rollout.top_k=41"]),
    "evaluation_top_k_above_vocabulary": (leave, ["evaluation.top_k=41"]),
    "topk_above_vocabulary": (leave, ["objective.kl=topk"]),
    # data and output
    "train_missing": (leave, ["data.train=[train.jsonl, more.jsonl]"]),
    "train_unknown_format": (write("train.csv", "a,b\n"), ["data.train=train.csv"]),
    "train_empty": (write("train.jsonl", ""), []),
    "eval_file_missing": (remove("eval.jsonl"), []),
    "train_name_absent": (leave, ["data.train=org/data@v2"]),
    "train_folder_empty": (lambda: Path("folder").mkdir(), ["data.train=folder"]),
    "train_file_with_a_split": (leave, ["data.train={name: train.jsonl, split: test}"]),
    "train_file_with_a_revision": (leave, ["data.train={name: train.jsonl, revision: v2}"]),
    "train_revision_twice": (leave, ["data.train={name: org/data@v2, revision: v3}"]),
    "train_entry_unknown_key": (leave, ["data.train=[{name: train.jsonl, splt: test}]"]),
    "train_entry_without_name": (leave, ["data.train=[{split: test}]"]),
    "train_weight_zero": (leave, ["data.train=[{name: train.jsonl, weight: 0}]"]),
    "train_weights_of_some": (leave, ["data.train=[{name: train.jsonl, weight: 1}, eval.jsonl]"]),
    "eval_list": (leave, ["data.eval=[eval.jsonl]"]),
    "eval_set_name": (leave, ["data.eval={a b: eval.jsonl}"]),
    "eval_set_missing": (leave, ["data.eval={aime: eval.jsonl, math: none.jsonl}"]),
    "eval_weight": (leave, ["data.eval={name: eval.jsonl, weight: 1}"]),
    "columns_unknown": (leave, ["data.columns={question: problem}"]),
    "columns_number": (leave, ["data.columns={prompt: 5}"]),
    "columns_neither": (leave, ["data.columns=[prompt]"]),
    "columns_no_function": (leave, ["data.columns=problem"]),
    "columns_module_missing": (leave, ["data.columns=no_such_rows:convert"]),
    "columns_module_broken": (write("broken_rows.py", "1 / 0\n"), ["data.columns=broken_rows:f"]),
    "columns_function_missing": (leave, ["data.columns=json:convert"]),
    "filter_empty": (leave, ["data.train={name: train.jsonl, filter: {level: []}}"]),
    "filter_bound": (leave, ["data.train={name: train.jsonl, filter: {level: {least: 3}}}"]),
    "template_variable_taken": (leave, ["data.chat_template_kwargs={tokenize: true}"]),
    "cache_dir_number": (leave, ["data.cache_dir=5"]),
    "output_is_file": (write("run", "text"), []),
    "output_holds_a_run": (write("run/checkpoints/latest", "step_3"), []),
    "output_holds_a_checkpoint": (write("run/checkpoints/step_00000003/common.pt", ""), []),
    "output_holds_a_newer_checkpoint": (
        write("run/checkpoints/step_00000003/common.pt", ""),
        ["resume=student"],
    ),
    "resume_missing": (leave, ["resume=run/checkpoints/step_3"]),
    "resume_typo": (leave, ["resume=atuo"]),
}


def read_golden() -> dict[str, str]:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines() if GOLDEN.exists() else []
    return dict(line.split("\t", 1) for line in lines)


def write_golden(name: str, line: str) -> None:
    known = read_golden() | {name: line}
    text = "".join(f"{case}\t{known[case]}\n" for case in CASES if case in known)
    GOLDEN.write_text(text, encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_bad_setting(name: str, run: Path) -> None:
    change, overrides = CASES[name]
    change()
    before = sorted(run.rglob("*"))
    with SURROUNDINGS.get(name, nullcontext)():
        result = CliRunner().invoke(cli.app, ["train", "run.yaml", *overrides])
    assert result.exit_code == 2, result.exception
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    assert result.stdout == ""
    assert sorted(run.rglob("*")) == before, "a refused run leaves no trace"
    line = result.stderr.rstrip("\n").replace(", ".join(FAMILIES), "<architectures>")
    if UPDATE:
        write_golden(name, line)
    assert line == read_golden()[name]


def test_golden_file_has_exactly_the_cases() -> None:
    assert list(read_golden()) == list(CASES)
