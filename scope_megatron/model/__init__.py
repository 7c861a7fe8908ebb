"""A Hugging Face config.json as megatron-core's GPTModel.

build        TransformerConfig, layer specs and this rank's shard of the model
attention    packed causal attention of the local layers; two ropes by layer
norm         RMSNorm that knows sequence parallelism; norms around residuals
rope         inverse frequencies of every supported rope type
streamed     parameters that come to the device a layer at a time
head         what lies between the last hidden states and the logits
"""

import scope_megatron.parallel  # noqa: F401  before megatron-core: see parallel/optional.py
