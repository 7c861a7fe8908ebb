"""What a run will need of memory and time, known beforehand: no GPU, no weights, no torch.

facts        sizes of models, figures of GPUs
seconds      passes, collectives and sampling: how long each takes
layout       how the models are cut over the ranks
workload     the responses of a step: how many, how long, how many are incorrect
activations  bytes that a layer keeps per token
models       what stands on the ranks: the student and frozen models, each in its layout
memory       bytes per rank by tenant and phase, the peak and its moment
estimate     a run as a whole
remedies     which settings would make a run fit, the cheapest first
search       the best layouts for so many GPUs
calibrate    efficiencies fitted to a run's metrics
warning      the line that check and launch print of a run that will not fit
report       a plan as data and as tables
picture      a plan as a figure: memory by phase, the time line of a step
"""
