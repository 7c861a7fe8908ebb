"""The rollout engine: vLLM in this process, and Megatron's parameters sent to it.

interface    what the trainer asks of a rollout engine
vllm         the engine: sample, score, sleep, take parameters
start        what vLLM finds around it while it starts: environment, ranks, a name
source       the student's parameters under Hugging Face's names, bucket by bucket
direct       parameters written into vLLM's own, shard to shard
parcels      the same between ranks of which none holds both
reshard      which slices of which rank make up each slice of the engine, and their exchange
tensors      what of the engine is counted as memory
placement    where each parameter's shards lie in Megatron and in the engine
"""
