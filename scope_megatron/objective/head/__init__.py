"""The loss head: log-probabilities and divergences over a vocabulary cut over ranks.

logits            from logits, differentiable, one exchange
hidden            from hidden states: fused with the output projection, chunk by chunk
statistics        scalars per token of each shard, exchanged and merged
gradient          the closed-form gradient of a shard's logits
shard             which columns a rank holds, and what is asked of them
kernels           whether Triton or torch computes
triton_kernels    the Triton kernels
"""
