"""The loss head: log-probabilities and divergences over a vocabulary cut over ranks.

logits            from logits, differentiable, one exchange
hidden            from hidden states: fused with the output projection, chunk by chunk
statistics        scalars per token of each shard, exchanged and merged
topk              the divergence on a few tokens of either model
best              the likeliest tokens with their log-probabilities
gradient          the closed-form gradient of a shard's logits
shard             the columns that a rank holds
spec              settings of the head: temperatures, divergence, kernel
kernels           whether Triton or torch computes
triton_kernels    the Triton kernels
"""
