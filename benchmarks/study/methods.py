"""Every method as overrides of one configuration. All have the same number of sampled responses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

PROMPTS, GROUP, STEPS = 16, 16, 30
RESPONSES = PROMPTS * GROUP  # a step, whatever the method
Settings = dict[str, Any]  # dotted setting -> value


@dataclass(frozen=True)
class Method:
    """``tuned_as``: the method whose learning rate this one takes; its own when it is itself.
    ``tasks``: where it is asked for; None: on all. ``seeds``: the most of a profile's that it has.
    """

    name: str
    label: str
    settings: Settings
    tuned_as: str
    tasks: tuple[str, ...] | None = None
    seeds: int = 5

    @property
    def algorithm(self) -> str:
        return str(self.settings.get("algorithm.name", "scope"))


def _scope(name: str, label: str, tasks: tuple[str, ...] | None = None, **objective: Any) -> Method:
    settings = {f"objective.{key}": value for key, value in objective.items()}
    return Method(name, label, {"algorithm.name": "scope", **settings}, "scope", tasks)


BASE = Method("base", "base student", {}, "base")
KD = Method("kd", "KD (supervised on the teacher's responses)", {"algorithm.name": "kd"}, "kd")
GRPO = Method("grpo", "GRPO", {"algorithm.name": "grpo"}, "grpo")
_OPD: Settings = {
    "algorithm.name": "opd",
    "rollout.group_size": 1,
    "rollout.prompts_per_step": RESPONSES,
}
OPD = Method("opd", "OPD", _OPD, "opd")
SCOPE = _scope("scope", "SCOPE")
ABLATIONS = (
    _scope("no_student", "no student weights", student_weight="uniform"),
    _scope("no_teacher", "no teacher weights", teacher_weight="uniform"),
    _scope("no_weights", "no weights", student_weight="uniform", teacher_weight="uniform"),
    _scope("student_reversed", "student weights reversed", student_weight="reversed"),
    _scope("teacher_reversed", "teacher weights reversed", teacher_weight="reversed"),
)
TAUS = (_scope("tau_0.5", "tau 0.5", tau=0.5), _scope("tau_2", "tau 2", tau=2.0))
EXACT = (
    _scope("scope_exact", "SCOPE, exact reverse KL", kl="reverse_kl"),
    Method(
        "opd_exact", "OPD, exact reverse KL", {**_OPD, "objective.kl": "reverse_kl"}, tuned_as="opd"
    ),
)
OTHERS = (
    _scope("batch", "weights over the batch", weight_group="batch"),
    _scope("reference", "reference code's preset", preset="reference_code"),
    _scope("constant", "no teacher: a constant on incorrect responses", incorrect="constant"),
)
# do the teacher's weights choose, or do they only damp the largest gradients? These are bounded
_JSD: Settings = {"tasks": ("walk",), "kl": "jsd"}
BOUNDED = (
    _scope("jsd", "SCOPE, Jensen-Shannon", **_JSD),
    _scope(
        "jsd_no_teacher", "Jensen-Shannon, no teacher weights", **_JSD, teacher_weight="uniform"
    ),
)
# what of SCOPE's gain is the teacher's, and what of OPD's is its sixteen times as many prompts
_GROUPS: Settings = {"rollout.group_size": GROUP, "rollout.prompts_per_step": PROMPTS}
CONTROLS = (
    replace(_scope("mle_only", "correct path alone", incorrect="none"), seeds=3),
    Method("opd_groups", "OPD, 16 prompts x 16", {**_OPD, **_GROUPS}, "opd", seeds=3),
    Method(
        "opd_exact_groups",
        "OPD, exact reverse KL, 16 prompts x 16",
        {**EXACT[1].settings, **_GROUPS},
        "opd",
        seeds=3,
    ),
)


def _at_grpos_rate(method: Method, *tasks: str) -> Method:
    """The same run at the learning rate of GRPO, where SCOPE's is another."""
    name, label = f"{method.name}_at_grpo", f"{method.label}, at GRPO's rate"
    return replace(method, name=name, label=label, tuned_as="grpo", tasks=tasks, seeds=3)


AT_GRPOS_RATE = (
    *(_at_grpos_rate(m, "walk", "countdown") for m in (SCOPE, CONTROLS[0], OTHERS[2])),
    *(_at_grpos_rate(m, "walk") for m in (OTHERS[0], BOUNDED[0])),
)
# how the two paths are weighed against each other: normalizations, each at its own best rate
NORMALIZATIONS = tuple(
    replace(_scope(name, name, normalization=name), tuned_as=name)
    for name in ("sequence_mean", "prompt_sum")
)
# what of their differences is the learning rate's
HARD_RATES = (
    replace(
        CONTROLS[0],
        name="mle_only_tuned",
        label="correct path alone, at its own rate",
        tuned_as="mle_only_tuned",
        tasks=("walk_hard",),
    ),
    replace(
        NORMALIZATIONS[1],
        name="prompt_sum_at_scope",
        label="prompt_sum, at SCOPE's rate",
        tuned_as="scope",
        tasks=("walk_hard",),
        seeds=3,
    ),
)
MAIN = (BASE, KD, GRPO, OPD, SCOPE)
FULL = (*MAIN, *ABLATIONS, *TAUS, *EXACT, *OTHERS, *BOUNDED, *CONTROLS, *AT_GRPOS_RATE)
METHODS: dict[str, Method] = {m.name: m for m in (*FULL, *NORMALIZATIONS, *HARD_RATES)}
TUNED = tuple(m.name for m in (*MAIN, *NORMALIZATIONS, HARD_RATES[0]) if m is not BASE)
RATES = (3e-5, 1e-4, 3e-4, 1e-3)  # tried for each of TUNED
