"""Weights in torch's pickle files, read as safetensors are: lazily, and only when asked for."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class PickleFile:
    """A ``.bin`` file mapped into memory, with the methods of ``safe_open`` that are used here."""

    def __init__(self, path: Path) -> None:
        """No code of the file runs: torch's weights-only loader. ValueError if it refuses."""
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ValueError(f"{path}: not a complete file of weights ({reason})") from error
        if not isinstance(tensors, dict) or not all(
            isinstance(tensor, Tensor) for tensor in tensors.values()
        ):
            raise ValueError(f"{path}: holds something else than a table of tensors")
        self._tensors: dict[str, Tensor] = tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> PickledTensor:
        return PickledTensor(self._tensors[name])


class PickledTensor:
    """A tensor of which nothing is read before it is indexed."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """safetensors' name of it, or torch's for one that is refused."""
        return _DTYPES.get(self._tensor.dtype, str(self._tensor.dtype).removeprefix("torch."))

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensor[index].clone()  # a view would keep the file open
