"""Settings that nobody reads, for ``test_config_errors.py``."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.config_run import leave
from tests.unit.placement_error_cases import APART

# name: (change of the files, overrides)
ALGORITHM_CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
    "unread_srpo_beta": (leave, ["algorithm={name: grpo, srpo_beta: 2.0}"]),
    "unread_rlsd_lambda": (leave, ["algorithm={name: grpo, rlsd_lambda: 0.9}"]),
    "unread_teacher_coef": (leave, ["algorithm={name: grpo, teacher_coef: 0.1}"]),
    "unread_kl_coef": (leave, ["algorithm={name: scope, kl_coef: 0.1}"]),
    "unread_tau": (leave, ["algorithm.name=opd", "objective.tau=3"]),
    "unread_student_weight": (leave, ["algorithm.name=opd", "objective.student_weight=uniform"]),
    "unread_kl": (leave, ["algorithm.name=grpo", "objective.kl=jsd"]),
    "unread_topk_tail": (leave, ["algorithm.name=rlsd", "objective.topk_tail=true"]),
    "unread_tis_clip": (
        leave,
        ["algorithm.name=kd", "train.batch_sequences=4", "objective.tis_clip=2.0"],
    ),
    "unread_group_filter": (
        leave,
        ["algorithm={name: kd, group_filter: mixed}", "train.batch_sequences=4"],
    ),
    "unread_teachers": (
        leave,
        ["algorithm.name=grpo", "model.teacher=null", "model.teachers={a: teacher}"],
    ),
    "unread_teacher_layout": (
        leave,
        ["algorithm.name=kd", "train.batch_sequences=4", "teacher.parallel={tensor: 2}"],
    ),
    "clip_of_a_single_update": (leave, ["algorithm.clip_eps=0.3"]),
    "clip_of_an_exact_divergence": (
        leave,
        ["algorithm={name: opd, clip_high: 0.28}", "objective.kl=jsd", "train.updates_per_batch=2"],
    ),
    "ratio_of_an_exact_divergence": (
        leave,
        ["algorithm.name=opd", "objective={kl: reverse_kl, tis_clip: 2.0}"],
    ),
    "teacher_weight_without_teacher": (
        leave,
        ["objective={incorrect: constant, teacher_weight: uniform}"],
    ),
    "teacher_temperature_without_teacher": (
        leave,
        ["objective={incorrect: constant, teacher_temperature: 0.6}"],
    ),
    "jsd_beta_without_jsd": (leave, ["objective={kl: reverse_kl, jsd_beta: 0.3}"]),
    "teacher_gap_exact": (leave, ["objective={kl: reverse_kl, teacher_gap: old}"]),
    "constant_advantage_without_constant": (leave, ["objective.constant_advantage=0.1"]),
    "overlong_penalty_without_buffer": (leave, ["algorithm={name: grpo, overlong_penalty: 0.5}"]),
    "teacher_offload_of_the_student": (
        leave,
        ["teacher={source: student, privileged: ' ({answer})', offload: cpu}"],
    ),
    "tau_of_uniform_weights": (
        leave,
        ["objective={tau: 2.0, student_weight: uniform, teacher_weight: uniform}"],
    ),
    # whatever the algorithm
    "sleep_of_separate_engines": (leave, [*APART, "rollout.engine.sleep=false"]),
    "check_every_without_checks": (
        leave,
        ["rollout.engine.check_samples=0", "rollout.engine.check_every=2"],
    ),
    "tolerance_without_checks": (
        leave,
        ["rollout.engine.check_samples=0", "rollout.engine.logprob_tolerance=0.1"],
    ),
    "rollouts_groups_of_all": (
        leave,
        ["logging.rollouts.select=all", "logging.rollouts.groups=8"],
    ),
    "verifier_custom_of_another": (
        leave,
        ["verifier.name=math", "verifier.custom=tools.make_smollm2:names_answer"],
    ),
    "verifier_code_of_another": (leave, ["verifier.name=exact", "verifier.code.memory_mib=512"]),
    "verifier_workers_of_text": (leave, ["verifier.name=exact", "verifier.workers=2"]),
}
