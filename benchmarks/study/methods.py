"""Every method as overrides of one configuration. All have the same number of sampled responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROMPTS, GROUP, STEPS = 16, 16, 30
RESPONSES = PROMPTS * GROUP  # a step, whatever the method
Settings = dict[str, Any]  # dotted setting -> value


@dataclass(frozen=True)
class Method:
    """``tuned_as``: the method whose learning rate this one takes; its own when it is itself.
    ``tasks``: where it is asked for; None: on all."""

    name: str
    label: str
    settings: Settings
    tuned_as: str
    tasks: tuple[str, ...] | None = None

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
MAIN = (BASE, KD, GRPO, OPD, SCOPE)
METHODS: dict[str, Method] = {
    m.name: m for m in (*MAIN, *ABLATIONS, *TAUS, *EXACT, *OTHERS, *BOUNDED)
}
TUNED = tuple(m.name for m in MAIN if m is not BASE)
RATES = (3e-5, 1e-4, 3e-4, 1e-3)  # tried for each of TUNED
