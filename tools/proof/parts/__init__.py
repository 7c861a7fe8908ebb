"""The parts of the proof; each function writes into a record.Proof and raises where it cannot.

kernels     the loss kernels against float64
scorer      log-probabilities behind a busy stream
update      updates against transformers, on one GPU and over NCCL
engine      rollout engine: sleep, wake, mismatch, speed of the weight transfer
step        a whole step: time, memory, FLOPs
head        the loss head's time and bandwidth
layers      local layers and Transformer Engine's
save        asynchronous save and resume
quickstart  the run of `make quickstart`
"""

from __future__ import annotations
