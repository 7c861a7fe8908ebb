"""Settings that are read only with another one, whatever the algorithm."""

from __future__ import annotations

from scope_megatron.algorithm import Condition

READ_WITH = {
    "parallel.sequence": Condition("parallel.tensor", above=1),
    "parallel.virtual_pipeline": Condition("parallel.pipeline", above=1),
    "parallel.recompute_layers": Condition("parallel.recompute", "full"),
    "rollout.ranks": Condition("rollout.placement", "separate"),
    "rollout.engine.sleep": Condition("rollout.placement", "colocated"),
    "rollout.engine.check_every": Condition("rollout.engine.check_samples"),
    "rollout.engine.logprob_tolerance": Condition("rollout.engine.check_samples"),
    "optimizer.overlap": Condition("optimizer.distributed", True),
    "logging.rollouts.groups": Condition("logging.rollouts.select", "some"),
    "logging.rollouts.alternatives": Condition("logging.rollouts.every"),
}
