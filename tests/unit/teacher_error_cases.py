"""Wrong settings of the teacher and of several teachers, for test_config_errors.py."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.config_run import leave, rename_token, teacher

# name: (change of the files, overrides)
TEACHER_CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
    "teachers_beside_a_teacher": (leave, ["model.teachers={a: teacher}"]),
    "self_without_privilege": (leave, ["teacher.source=student"]),
    "self_exact": (
        leave,
        ["teacher={source: student, privileged: ' ({answer})'}", "objective.kl=jsd"],
    ),
    "teachers_beside_the_student_as_its_own": (
        leave,
        [
            "model.teacher=null",
            "model.teachers={a: teacher}",
            "teacher={source: student, privileged: ' ({answer})'}",
        ],
    ),
    "teachers_compared_over_the_batch": (
        leave,
        [
            "model.teacher=null",
            "model.teachers={a: teacher, b: student}",
            "objective.weight_group=batch",
        ],
    ),
    "teachers_empty": (leave, ["model.teacher=null", "model.teachers={}"]),
    "teachers_list": (leave, ["model.teacher=null", "model.teachers=[teacher]"]),
    "teachers_tag": (leave, ["model.teacher=null", "model.teachers={a b: teacher}"]),
    "teachers_key_unknown": (
        leave,
        ["model.teacher=null", "model.teachers={a: {path: teacher, ofload: cpu}}"],
    ),
    "teachers_path_missing": (leave, ["model.teacher=null", "model.teachers={a: {dtype: auto}}"]),
    "teachers_offload_unknown": (
        leave,
        ["model.teacher=null", "model.teachers={a: {path: teacher, offload: disk}}"],
    ),
    "teachers_one_in_two_ways": (
        leave,
        ["model.teacher=null", "model.teachers={a: teacher, b: {path: ./teacher, offload: cpu}}"],
    ),
    "teachers_one_is_absent": (
        leave,
        ["model.teacher=null", "model.teachers={a: teacher, b: none/such/one}"],
    ),
    "teachers_tokens_differ": (
        rename_token,
        ["model.teacher=null", "model.teachers={a: student, b: teacher}"],
    ),
    # ids that the student may sample, and that its teacher has no column for
    "teacher_vocabulary_below_the_students": (teacher(vocab_size=63), []),
    "one_teachers_vocabulary_below_the_students": (
        teacher(vocab_size=40),
        ["model.teacher=null", "model.teachers={a: student, b: teacher}"],
    ),
    "teacher_layout_without_one": (
        leave,
        ["algorithm.name=grpo", "algorithm.kl_coef=0", "teacher.parallel={tensor: 2}"],
    ),
    "teacher_layout_over_ranks": (
        leave,
        ["teacher.parallel={tensor: 2, pipeline: 2}", "parallel.data=2"],
    ),
    "teacher_layout_sequence": (leave, ["teacher.parallel.sequence=true", "parallel.data=2"]),
    "teacher_layout_context": (leave, ["teacher.parallel.context=2", "parallel.data=2"]),
    "teacher_layout_heads": (
        teacher(num_key_value_heads=1),
        ["teacher.parallel.tensor=2", "parallel.data=2"],
    ),
    "teacher_layout_layers": (
        teacher(num_hidden_layers=3),
        ["teacher.parallel.pipeline=2", "parallel.data=2"],
    ),
    "teacher_layout_expert": (leave, ["teacher.parallel.expert=2", "parallel.data=2"]),
    "teacher_layout_expert_over_ranks": (
        leave,
        ["teacher.parallel.expert=3", "parallel.data=2"],
    ),
    "teacher_layout_key": (leave, ["teacher.parallel.tensr=2"]),
    "teachers_one_in_two_layouts": (
        leave,
        [
            "model.teacher=null",
            "model.teachers={a: teacher, b: {path: teacher, parallel: {tensor: 2}}}",
            "parallel.data=2",
        ],
    ),
    "set_without_teachers": (leave, ["data.train={name: train.jsonl, teacher: a}"]),
    "set_with_an_unknown_teacher": (
        leave,
        [
            "model.teacher=null",
            "model.teachers={a: teacher}",
            "data.train={name: train.jsonl, teacher: b}",
        ],
    ),
    "eval_set_with_a_teacher": (leave, ["data.eval={name: eval.jsonl, teacher: a}"]),
}
