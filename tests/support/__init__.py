"""What several tests and benchmarks share. They import from here, never from each other.

harness              a function on several processes that form one torch.distributed world
preload              what the server that forks their ranks has imported
tiny_hf              tiny models of every family as Hugging Face directories
config_run           a directory with everything a configuration names
kd_run               a short supervised run in a process of its own, to be killed and resumed
hub_server           a hub on the loopback address
convert_tool         the conversion program, in this process and in one of its own
checkpoint_tensors   every tensor of a checkpoint, by name
steps                one step of a learner on given rollouts, without an engine
heads                the loss head's functions by keywords
losses               the token loss by keywords
doc_commands         the commands that the pages name, and whether they parse
viewed_runs          runs made up for the page
browser              the page in a real browser, and its server
training_state       a student with random weights and a filled optimizer
memory               the memory that a piece of work needs at its peak
"""
