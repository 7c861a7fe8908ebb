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
"""
