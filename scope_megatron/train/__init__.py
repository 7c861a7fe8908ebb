"""The training step and the run around it. Every file stands on the step's route.

run           from the first step to the last: resume, evaluate, save, report
trainer       one step on one page
setup         everything a run is made of, built once
actor         samples and grades; sync sends parameters to the engine and proves it
learner       scores, weights and updates; update is one optimizer update
algorithms    which weight each response gets in which term
batch         graded responses and their scores
evaluate      an evaluation set over the replicas, while training
observe       the numbers of one step
nonfinite     losses and gradients that are not finite: no update
"""

import scope_megatron.parallel  # noqa: F401  before megatron-core: see parallel/optional.py
