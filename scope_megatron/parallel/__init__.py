"""Megatron-core on this machine: platform, process groups, models, optimizer, pipeline."""

import warnings

# megatron-core announces on import, several times a rank, that optional packages are missing.
warnings.filterwarnings("ignore", module=r"megatron\.core.*")
warnings.filterwarnings("ignore", message=r".*all_gather_into_tensor.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=r".*reduce_scatter_tensor.*", category=FutureWarning)
