"""The training step and the run around it. Every file stands on the step's route.

run           from the first step to the last: the loop
resume        what a run saves beside the training state, and how it goes on from it
identity      what must not change between the parts of a run, and between its ranks
finish        the exported student
trainer       one step on one page
profile       torch's profiler around single steps
setup         everything a run is made of, built once
acting        what a step asks of whoever samples for it
actor         samples, grades, sends parameters to the engine and proves that they arrived
remote        the same for engines on other ranks: asks, collects, sends
sampler       a rank that only samples
responses     the responses of a step, handed to the thread that writes them down
evaluate      an evaluation set over the replicas, while training
"""

import scope_megatron.parallel  # noqa: F401  before megatron-core: see parallel/optional.py
