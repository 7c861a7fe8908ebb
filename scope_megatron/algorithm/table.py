"""The table: one record per algorithm."""

from __future__ import annotations

from scope_megatron.algorithm.record import AlgorithmSpec, Condition, Reads


def _settings(section: str, names: str, *where: Condition) -> Reads:
    return {f"{section}.{name}": where for name in names.split()}


def _only(reads: Reads, *where: Condition) -> Reads:
    """The same settings, read only where these conditions hold as well."""
    return {key: (*where, *others) for key, others in reads.items()}


def _kl(value: str) -> Condition:
    return Condition("objective.kl", value)


_EVERY = _settings("algorithm", "name") | _settings(
    "objective", "preset normalization moe_aux_loss_coeff head kernel"
)
_SAMPLING = {
    **_settings("algorithm", "group_filter pass_rate_alpha pass_rate_beta"),
    **_settings("objective", "truncated old_logprobs"),
}
_RATIOS = _settings("objective", "tis_clip")
_CLIP = _settings("algorithm", "clip_eps clip_high clip_dual")
_LATER_CLIP = _only(_CLIP, Condition("train.updates_per_batch", above=1))
_REWARDS = {
    **_CLIP,
    **_RATIOS,
    **_settings("algorithm", "overlong_buffer"),
    **_settings("algorithm", "overlong_penalty", Condition("algorithm.overlong_buffer")),
}
_FROZEN = _settings("teacher", "offload dtype parallel")
_TEACHER = {
    **_settings("teacher", "source privileged"),
    **_only(
        _FROZEN | _settings("model", "teachers"),
        Condition("teacher.source", "model"),
    ),
    **_settings("objective", "teacher_temperature"),
}
_DIVERGENCE = {  # of the teacher's term
    **_settings("objective", "kl iw_gamma prefix_tokens"),
    **_settings("objective", "teacher_gap extrapolation", _kl("sampled")),
    **_settings("objective", "jsd_beta", _kl("jsd")),
    **_settings("objective", "topk topk_of topk_tail", _kl("topk")),
    **_settings("objective", "entropy_threshold", _kl("entropy_kl")),
}
_COEFFICIENT = _settings("algorithm", "teacher_coef")
_TAUGHT = Condition("objective.incorrect", "teacher")

ALGORITHM_SPECS: dict[str, AlgorithmSpec] = {
    "scope": AlgorithmSpec(
        _EVERY
        | _SAMPLING
        | _RATIOS
        | _LATER_CLIP
        | _only(_TEACHER | _DIVERGENCE | _settings("objective", "teacher_weight"), _TAUGHT)
        | _settings("objective", "tau student_weight weight_group likelihood incorrect")
        | _settings(
            "objective",
            "constant_advantage constant_below",
            Condition("objective.incorrect", "constant"),
        ),
    ),
    "opd": AlgorithmSpec(
        _EVERY
        | _SAMPLING
        | _only(_RATIOS | _LATER_CLIP, _kl("sampled"))  # exact divergences have no ratio
        | _TEACHER
        | _DIVERGENCE,
    ),
    "grpo": AlgorithmSpec(
        _EVERY
        | _SAMPLING
        | _REWARDS
        | _settings("algorithm", "kl_coef")
        | _only(_FROZEN, Condition("algorithm.kl_coef")),
        rewards=True,
    ),
    "kd": AlgorithmSpec(_EVERY | _settings("train", "batch_sequences"), samples=False),
    "kdrl": AlgorithmSpec(
        _EVERY | _SAMPLING | _REWARDS | _TEACHER | _DIVERGENCE | _COEFFICIENT,
        rewards=True,
    ),
    "rlsd": AlgorithmSpec(
        _EVERY | _SAMPLING | _REWARDS | _TEACHER | _settings("algorithm", "rlsd_lambda rlsd_eps"),
        rewards=True,
    ),
    "sdar": AlgorithmSpec(
        _EVERY | _SAMPLING | _REWARDS | _TEACHER | _COEFFICIENT,
        rewards=True,
    ),
    "srpo": AlgorithmSpec(
        _EVERY
        | _SAMPLING
        | _REWARDS
        | _TEACHER
        | _DIVERGENCE
        | _COEFFICIENT
        | _settings("algorithm", "srpo_beta"),
        rewards=True,
    ),
}


def readers_of(key: str) -> list[str]:
    """The algorithms that read a setting."""
    return [name for name, spec in ALGORITHM_SPECS.items() if key in spec.reads]
