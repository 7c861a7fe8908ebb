"""What performance claims stand on; RESULTS.md has the figures.

bench_loss          time, memory and collectives of the loss head against alternatives
loss_methods        those alternatives
loss_report         tables and the picture of bench_loss
bench_reshard       parameters to the engine: in memory, over the disk, after a full gather
bench_data           start on a million rows: cold, warm, memory per rank and node
bench_rollouts      what writing responses costs a training step
bench_view          how fast `view` opens a large run, and filters its responses
bench_checkpoint    what a checkpoint costs a training step
bench_switches      ten steps with each switch, and a resume of each
switches_fixed      ten updates with each switch on made-up responses, without an engine
quickstart_seeds    accuracy of the quickstart over several seeds
bench_step          steps of the algorithms, of naive passes and without grading, by turns
bench_peer          a step beside TRL's
bench_sampling      sampling in a step beside vLLM asked directly
bench_products      training over its bare matrix products
bench_balance       the deal's balance over replicas, padding of packs
bench_start         time and memory from the command to the first step
bench_async         engines on ranks of their own, a step ahead or not
bench_plan          the planner beside measured memory and published rows
bench_verify        gradings a minute
plan_published      pre-training that others measured, beside its plan
plan_steps          steps of reinforcement learning that others measured
plan_tables         the layouts of docs/planning.md
rounds              contestants that take turns; worker_scope and worker_trl are theirs
ready, imported     runs forked from a process that has imported what they need
products            the matrix products of a training step
lengths, models     prescribed lengths, random models
study               methods, tasks and seeds side by side
"""
