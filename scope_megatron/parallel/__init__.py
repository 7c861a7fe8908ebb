"""Megatron-core on this machine.

platform     the one place that knows CUDA/NCCL from CPU/gloo
topology     process groups and ranks, as one frozen object
second       another layout of the same ranks, for a model that is cut otherwise
meeting      how the ranks of a job meet
gloo         one event loop for all gloo groups of a process
context      which tokens of a pack a context-parallel rank has
packed       one pack as the layers get it
agree        numbers, values and errors that all ranks share: all_max, from_main, raise_together
optimizer    gradient buffers, optimizer, learning-rate schedule
optional     Transformer Engine and Apex: used, or hidden from megatron-core
memory       tensors' memory by tenant and phase
offload      the optimizer's place between updates
chunks       the parts of a model that one stage of a virtual pipeline holds
pipeline     the only caller of megatron-core's schedules
"""

import warnings

from scope_megatron.parallel import optional, platform

optional.hide_unusable(cuda=platform.has_cuda())
# megatron-core announces on import, several times a rank, that optional packages are missing.
warnings.filterwarnings("ignore", module=r"megatron\.core.*")
warnings.filterwarnings("ignore", message=r".*all_gather_into_tensor.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=r".*reduce_scatter_tensor.*", category=FutureWarning)
