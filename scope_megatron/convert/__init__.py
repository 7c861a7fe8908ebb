"""Parameters between Hugging Face files and Megatron shards, in both directions.

mapping           names and layouts of each parameter, read in both directions
gather            shards of all ranks -> full Hugging Face tensors, in buckets
hf                Hugging Face directories read into a sharded model and written from one
hf_write          a distributed checkpoint -> Hugging Face files, one parameter in memory
megatron_read     a distributed checkpoint read one parameter at a time
megatron_write    Hugging Face files -> a distributed checkpoint, one parameter in memory
pickles           torch's pickle files read lazily
workspace         where an output grows until it is complete; interrupted conversions go on
to_hf             hf_write as a process of its own
estimate          what a conversion would write, from config.json alone
"""
