"""The training step and the run around it. Every file stands on the step's route.

run           from the first step to the last: the loop
resume        what a run saves beside the training state, and how it goes on from it
finish        the exported student and the report
trainer       one step on one page
setup         everything a run is made of, built once
actor         samples, grades, sends parameters to the engine and proves that they arrived
learner       scores, weights and updates
update        one optimizer update: forward, losses and backward over packs
algorithms    which weight each response gets in which term
batch         graded responses and their scores
evaluate      an evaluation set over the replicas, while training
observe       the numbers of one step
nonfinite     losses and gradients that are not finite: no update
"""

import scope_megatron.parallel  # noqa: F401  before megatron-core: see parallel/optional.py
