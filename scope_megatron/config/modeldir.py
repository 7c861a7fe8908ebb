"""A Hugging Face model directory, read as JSON and safetensors headers only: no torch.

Everything here raises ModelDirError with what is wrong and the fix; the caller adds the key.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_megatron.config.errors import shown
from scope_megatron.config.family import GEMMA, LAYER_KINDS, softcap, window

KNOWN_ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    *GEMMA,
)
KNOWN_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # vLLM's CPU attention
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOAD = "give a directory with a Hugging Face model's files"


class ModelDirError(ValueError):
    """`<what is wrong>; <what to do>`."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes in config.json that decide whether a model can be cut and served."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    query_groups: int
    head_dim: int
    vocab: int  # rows of the embedding; may be padded beyond the tokenizer
    max_positions: int
    tied: bool | None  # None: config.json does not say
    experts: int = 0  # per layer; 0: a dense model
    capped: bool = False  # logits are squeezed by a tanh

    @property
    def ffn_name(self) -> str:
        return _ffn_name(self.architecture)

    def divided(self) -> dict[str, int]:
        """Sizes that parallelism divides, under config.json's names."""
        return {
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.query_groups,
            self.ffn_name: self.ffn,
            "num_hidden_layers": self.layers,
        }


def _ffn_name(architecture: str) -> str:
    moe = architecture == "Qwen3MoeForCausalLM"  # the others' experts have intermediate_size
    return "moe_intermediate_size" if moe else "intermediate_size"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelDirError(f"{path} cannot be read ({error.strerror}); {DOWNLOAD}") from None
    except ValueError:
        raise ModelDirError(f"{path} is not JSON; copy the file again") from None
    if not isinstance(values, dict):
        raise ModelDirError(f"{path} holds no JSON object; copy the file again")
    return values


def require_directory(path: Path) -> None:
    """The directory exists."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ModelDirError(f"{path} {what}; {DOWNLOAD}")


def read_shape(directory: Path) -> ModelShape:
    """config.json, refused where the model is one that would silently be built differently."""
    path = directory / "config.json"
    hf = _read_json(path)
    architectures = hf.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if architecture not in KNOWN_ARCHITECTURES:
        known = ", ".join(KNOWN_ARCHITECTURES)
        raise ModelDirError(f"{path} has architecture {shown(architecture)}; use one of {known}")
    _refuse_variants(path, hf, architecture)
    heads, hidden = _size(path, hf, "num_attention_heads"), _size(path, hf, "hidden_size")
    if not hf.get("head_dim") and hidden % heads:
        raise ModelDirError(
            f"{path} has hidden_size {hidden}, not a multiple of num_attention_heads {heads}; "
            "correct config.json"
        )
    return ModelShape(
        architecture=architecture,
        layers=_size(path, hf, "num_hidden_layers"),
        hidden=hidden,
        ffn=_size(path, hf, _ffn_name(architecture)),
        heads=heads,
        query_groups=_size(path, hf, "num_key_value_heads", heads),
        head_dim=_size(path, hf, "head_dim", hidden // heads),
        vocab=_size(path, hf, "vocab_size"),
        max_positions=_size(path, hf, "max_position_embeddings"),
        tied=hf.get("tie_word_embeddings"),
        experts=_experts(path, hf, architecture),
        capped=softcap(hf, "final_logit_softcapping") is not None,
    )


def _experts(path: Path, hf: dict[str, Any], architecture: str) -> int:
    names = {"Qwen3MoeForCausalLM": "num_experts", "MixtralForCausalLM": "num_local_experts"}
    if architecture not in names:
        return 0
    # transformers 5 writes the second name for both
    return _size(path, hf, names[architecture], hf.get("num_local_experts"))


def _size(path: Path, hf: dict[str, Any], name: str, default: Any = None) -> int:
    value = hf.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelDirError(f"{path} has no positive {name}; copy the file again")
    return value


def _refuse_variants(path: Path, hf: dict[str, Any], architecture: str) -> None:
    """Settings of config.json that change the mathematics and are not implemented."""
    gemma = architecture in GEMMA
    known = tuple(kind for kind in KNOWN_ROPE_TYPES if kind != "yarn" or not gemma)
    for rope in _ropes(path, hf):
        _refuse_rope(path, rope, known)
    if gemma:
        _check_gemma(path, hf)
    elif window(hf) is not None:
        _size(path, hf, "sliding_window", window(hf))
    moe = architecture == "Qwen3MoeForCausalLM"
    activation = hf.get("hidden_activation" if gemma else "hidden_act")
    activation_name = "hidden_activation" if gemma else "hidden_act"
    wrong = {
        "quantization_config": bool(hf.get("quantization_config")),
        "use_sliding_window": bool(hf.get("use_sliding_window")),
        "use_bidirectional_attention": bool(hf.get("use_bidirectional_attention")),
        "mlp_only_layers": moe and bool(hf.get("mlp_only_layers")),
        "decoder_sparse_step": moe and hf.get("decoder_sparse_step", 1) != 1,
        "mlp_bias": bool(hf.get("mlp_bias")),
        "attention_bias": bool(hf.get("attention_bias")) and architecture != "Qwen2ForCausalLM",
        activation_name: activation not in (None, "gelu_pytorch_tanh" if gemma else "silu"),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise ModelDirError(
                f"{path} has {name} {shown(hf[name])}, not supported; use a model without it"
            )


def _check_gemma(path: Path, hf: dict[str, Any]) -> None:
    for name in ("head_dim", "query_pre_attn_scalar", "sliding_window"):
        _size(path, hf, name)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = softcap(hf, name)
        if cap is not None and not (isinstance(cap, int | float) and cap > 0):
            raise ModelDirError(f"{path} has {name} {shown(cap)}; set it to null or above 0")
    kinds, layers = hf.get("layer_types"), _size(path, hf, "num_hidden_layers")
    if kinds is None:
        return
    if not isinstance(kinds, list) or [kind in LAYER_KINDS for kind in kinds] != [True] * layers:
        raise ModelDirError(
            f"{path} has layer_types that do not say {' or '.join(LAYER_KINDS)} for each of "
            f"{layers} layers; correct config.json"
        )


def _ropes(path: Path, hf: dict[str, Any]) -> list[dict[str, Any]]:
    """The rope settings in config.json: one, or one per kind of layer."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):  # older and newer style
        value = hf.get(name) or {}
        if not isinstance(value, dict):
            raise ModelDirError(f"{path} has no mapping at {name}; copy the file again")
        rope |= value
    kinds = [value for value in rope.values() if isinstance(value, dict)]
    return kinds or [rope]


def _refuse_rope(path: Path, rope: dict[str, Any], known: tuple[str, ...]) -> None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in known:
        raise ModelDirError(
            f"{path} has rope_type {shown(rope_type)}; use a model with one of {', '.join(known)}"
        )
    for name in ("factor", "original_max_position_embeddings"):
        if rope_type == "yarn" and not rope.get(name):
            raise ModelDirError(f"{path} has rope_type 'yarn' without {name}; correct config.json")


def check_weights(directory: Path, tied: bool | None) -> None:
    """Every safetensors file is whole, unquantized, and holds the tensors its index names."""
    names: set[str] = set()
    for path, expected in _shards(directory).items():
        held = _tensor_names(path)
        if missing := sorted(expected - held):
            raise ModelDirError(
                f"{path} lacks tensor {missing[0]} that {INDEX} names; copy the model again"
            )
        names |= held
    if tied is False and "lm_head.weight" not in names:
        raise ModelDirError(
            f"{directory} has no lm_head.weight although config.json says "
            "tie_word_embeddings false; correct config.json or copy the weights again"
        )


def count_parameters(directory: Path) -> int:
    """Numbers in all safetensors files, as their whole headers say."""
    total = 0
    for path in _shards(directory):
        _tensor_names(path)
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        shapes = (entry["shape"] for name, entry in header.items() if name != "__metadata__")
        total += sum(math.prod(shape) for shape in shapes)
    return total


def _shards(directory: Path) -> dict[Path, set[str]]:
    """Each safetensors file, with the tensors the index (if any) expects in it."""
    if not (directory / INDEX).is_file():
        if not (directory / SINGLE).is_file():
            raise ModelDirError(f"{directory} has neither {SINGLE} nor {INDEX}; {DOWNLOAD}")
        return {directory / SINGLE: set()}
    shards: dict[Path, set[str]] = {}
    weight_map = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelDirError(f"{directory / INDEX} has no weight_map; copy the file again")
    for name, file in weight_map.items():
        shards.setdefault(directory / str(file), set()).add(name)
    for path in sorted(shards):
        if not path.is_file():
            raise ModelDirError(f"{path} is missing although {INDEX} names it; copy the shard")
    return shards


def _tensor_names(path: Path) -> set[str]:
    """Names in a safetensors header, after checking the header against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        raw = file.read(length) if 8 + length <= size and length <= LONGEST_HEADER else b""
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        dtypes = {entry["dtype"] for entry in tensors.values()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelDirError(
            f"{path} has no whole safetensors header; copy the file again"
        ) from None
    if size != 8 + length + end:
        raise ModelDirError(
            f"{path} has {size} bytes but its header describes {8 + length + end}; "
            "copy the file again"
        )
    if other := sorted(dtypes.difference(WEIGHT_DTYPES)):
        raise ModelDirError(
            f"{path} holds {other[0]} tensors; use weights in {', '.join(WEIGHT_DTYPES)}"
        )
    return set(tensors)


def tokenizer_file(path: Path) -> Path:
    """tokenizer.json or tokenizer.model of a directory, or the .model file itself."""
    if path.is_file() and path.suffix == ".model":
        return path
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    raise ModelDirError(f"{path} has no tokenizer.json and no tokenizer.model; copy one there")


def token_map(path: Path) -> dict[int, str]:
    """id -> token of a tokenizer.json, added tokens included."""
    values = _read_json(path)
    try:
        vocab = values["model"]["vocab"]
        if isinstance(vocab, dict):  # BPE, WordPiece, WordLevel
            tokens = {int(index): token for token, index in vocab.items()}
        else:  # Unigram: [[token, score], ...]
            tokens = {index: entry[0] for index, entry in enumerate(vocab)}
        for added in values.get("added_tokens") or []:
            tokens[int(added["id"])] = added["content"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise ModelDirError(f"{path} holds no vocabulary; copy the file again") from None
    return tokens


def first_difference(one: dict[int, str], other: dict[int, str]) -> int | None:
    """The lowest id that does not stand for the same token in both maps."""
    ids = sorted(one.keys() | other.keys())
    return next((index for index in ids if one.get(index) != other.get(index)), None)
