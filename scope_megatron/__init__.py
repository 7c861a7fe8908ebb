"""Signal-calibrated on-policy distillation on Megatron-core and vLLM.

cli           the command scope-megatron: train, check, evaluate, report, doctor
commands      those of its commands that have files of their own: evaluate, regrade, compare
machine       CPU or CUDA, GPUs, installed builds, looked at without torch
family        one record per model family: names, mathematics, defaults, refused settings
config        settings: schema, loading, every check that needs no torch
types         what flows through a step: prompt, rollout, packed batch; the shape legend
exits         how a run ends: exit codes
outputs       names of everything in output_dir
disk          files and directories that are complete or absent
parallel      Megatron-core on this machine: process groups, optimizer, schedules
model         a GPT of Megatron-core for every family, and its output head
objective     routing, weights, losses over the vocabulary, packing: pure tensor code
convert       parameters between Hugging Face's files, Megatron's shards and its checkpoints
engine        vLLM in the same process, and the parameters sent to it
rollout       prompts, tokenizer, sampling, verifiers
checkpoint    a run's checkpoints: what they hold, how they are written, which are whole
job           the processes of a job: launcher, watchdog, interrupt, lock
report        numbers, lines on a terminal, a picture
learn         the learning half of a step: score, weigh, update
train         the training step and the run around it
evaluation    a model judged on sets of problems: samples, statistics, table, comparison
doctor        what of this machine works
"""
