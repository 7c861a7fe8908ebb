"""Text to token ids and back, for Hugging Face directories and plain sentencepiece models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

# What a tokenizer is loaded from, beside tokenizer*; the chat template has a part of its own.
_FILES = ("vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json")

Message = Mapping[str, str]  # {"role": ..., "content": ...}


class Tokenizer(Protocol):
    """Interface of a tokenizer."""

    name_or_path: str
    vocab_size: int  # number of ids it can produce; a model's padded vocabulary may be larger
    eos_id: int  # the end token a supervised response gets
    eos_ids: frozenset[int]  # every token that ends a response while sampling

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: no begin or end token is added."""
        ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ``ids``. Ids at or above ``vocab_size`` (a model's padding rows) give no text."""
        ...

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, ready for the model to answer (generation prompt included).

        Raises ValueError when the template refuses the messages.
        """
        ...

    def parts(self) -> dict[str, Any]:
        """All that decides the ids of a conversation, by name: digests, and the template's
        variables. Equal parts give equal ids."""
        ...

    def token_map_fingerprint(self) -> str:
        """SHA-256 of the id -> token map. Two models can be compared token by token (teacher and
        student) only if their fingerprints are equal."""
        ...


class HFTokenizer:
    """A tokenizer saved by ``transformers`` in a local directory.

    A ``tokenizer.json`` is loaded exactly as it stands. ``AutoTokenizer`` is used only where there
    is none: in transformers 5 the model-specific classes it picks replace the file's own
    pre-tokenizer (a byte-level vocabulary declared as ``LlamaTokenizerFast`` loses all its spaces)
    and add end tokens with ids that the model's embedding does not have.
    """

    def __init__(
        self, directory: Path, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """``chat_template_kwargs``: variables that every conversation gives the chat template."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        exact = (directory / "tokenizer.json").is_file()
        loader = PreTrainedTokenizerFast if exact else AutoTokenizer
        try:
            self._tokenizer: Any = loader.from_pretrained(str(directory), local_files_only=True)
        except (
            Exception
        ) as error:  # OSError, ValueError, KeyError ...: by what is wrong in the files
            raise ValueError(
                f"model.tokenizer: cannot load {directory}: {type(error).__name__}: {error}"
            ) from error
        self.name_or_path = str(directory)
        self.vocab_size = len(self._tokenizer)
        self.eos_id, self.eos_ids = _end_tokens(
            directory, self._tokenizer.eos_token_id, self.vocab_size
        )
        self._variables = dict(chat_template_kwargs or {})
        _require_used(self._variables, self._tokenizer.chat_template, directory)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_tokenizer, (self.name_or_path, self._variables)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        known = [int(i) for i in ids if i < self.vocab_size]
        text: str = self._tokenizer.decode(
            known, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return text

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Without a template: the contents joined by newlines, with the begin token the tokenizer
        itself adds (an end token it adds is taken off again: the answer has yet to come)."""
        if not self._tokenizer.chat_template:
            ids: list[int] = self._tokenizer.encode(_joined(messages), add_special_tokens=True)
            return ids[:-1] if ids and ids[-1] in self.eos_ids else ids
        from jinja2.exceptions import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=True,
                **self._variables,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def parts(self) -> dict[str, Any]:
        template = json.dumps(self._tokenizer.chat_template)
        return {
            "chat template": hashlib.sha256(template.encode()).hexdigest(),
            "data.chat_template_kwargs": self._variables,
            "model.tokenizer": _files_digest(Path(self.name_or_path)),
            "end tokens": [self.eos_id, *sorted(self.eos_ids)],
        }

    def token_map_fingerprint(self) -> str:
        return _fingerprint((i, token) for token, i in self._tokenizer.get_vocab().items())


class SentencePieceTokenizer:
    """A plain sentencepiece ``.model``. Its prompts start with the model's begin token if it has
    one; it knows no chat template, so message contents are joined by newlines."""

    def __init__(self, model: Path, directory: Path | None = None) -> None:
        """``directory``: where to look for generation_config.json (more end tokens)."""
        from sentencepiece import SentencePieceProcessor

        try:
            self._model: Any = SentencePieceProcessor(model_file=str(model))
        except Exception as error:  # RuntimeError or OSError, by version
            raise ValueError(
                f"model.tokenizer: {model} is not a sentencepiece model: {error}"
            ) from error
        self.name_or_path = str(directory or model)
        self.vocab_size = int(self._model.get_piece_size())
        own = self._model.eos_id()
        self.eos_id, self.eos_ids = _end_tokens(
            directory or model, own if own >= 0 else None, self.vocab_size
        )

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Control pieces (<s>, </s>, <pad>) are left out, or written by name."""
        known = [int(i) for i in ids if i < self.vocab_size]
        if skip_special:
            return str(self._model.decode([i for i in known if not self._model.is_control(i)]))
        text, run = "", list[int]()
        for i in known:
            if self._model.is_control(i):
                text += self._model.decode(run) + self._model.id_to_piece(i)
                run = []
            else:
                run.append(i)
        return text + str(self._model.decode(run))

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        begin = self._model.bos_id()
        return ([begin] if begin >= 0 else []) + self.encode(_joined(messages))

    def __reduce__(self) -> tuple[Any, ...]:
        return load_tokenizer, (self.name_or_path,)

    def parts(self) -> dict[str, Any]:
        pieces = self._model.serialized_model_proto()
        return {
            "model.tokenizer": hashlib.sha256(pieces).hexdigest(),
            "end tokens": [self.eos_id, *sorted(self.eos_ids)],
        }

    def token_map_fingerprint(self) -> str:
        return _fingerprint((i, self._model.id_to_piece(i)) for i in range(self.vocab_size))


def load_tokenizer(
    path: str | Path, chat_template_kwargs: Mapping[str, Any] | None = None
) -> Tokenizer:
    """The tokenizer at ``path``: a Hugging Face directory (tokenizer.json or
    tokenizer_config.json), a sentencepiece ``.model`` file, or a directory whose only tokenizer
    file is ``tokenizer.model``. Raises ValueError naming ``model.tokenizer``, or
    ``data.chat_template_kwargs`` where it names what the template does not use."""
    path = Path(path)
    if path.is_dir():
        if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return HFTokenizer(path, chat_template_kwargs)
    _require_used(chat_template_kwargs or {}, None, path)
    if path.is_dir():
        if (path / "tokenizer.model").is_file():
            return SentencePieceTokenizer(path / "tokenizer.model", path)
        raise ValueError(
            f"model.tokenizer: {path} holds no tokenizer.json, tokenizer_config.json or "
            f"tokenizer.model (it holds: {', '.join(sorted(p.name for p in path.iterdir())[:20])})"
        )
    if not path.exists():
        raise ValueError(f"model.tokenizer: {path} does not exist")
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    raise ValueError(
        f"model.tokenizer: {path} is neither a directory nor a sentencepiece .model file"
    )


def _require_used(variables: Mapping[str, Any], template: Any, path: Path) -> None:
    """Raise ValueError unless the chat template mentions every variable that it is given."""
    if variables and not template:
        raise ValueError(
            f"data.chat_template_kwargs: {path} has no chat template; remove the setting"
        )
    for name in variables:
        if not re.search(rf"\b{re.escape(name)}\b", json.dumps(template)):
            raise ValueError(
                f"data.chat_template_kwargs: the chat template of {path} does not use {name}; "
                "correct the name or remove it"
            )


def _files_digest(directory: Path) -> str:
    """SHA-256 of the files that a tokenizer is loaded from, without the chat template."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        if path.name == "tokenizer_config.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            values.pop("chat_template", None)
            content = json.dumps(values, sort_keys=True).encode()
        elif path.name in _FILES or path.name.startswith("tokenizer"):
            content = path.read_bytes()
        else:
            continue
        digest.update(f"{path.name}\t{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _joined(messages: Sequence[Message]) -> str:
    return "\n".join(m["content"] for m in messages)


def _end_tokens(path: Path, own: int | None, vocab_size: int) -> tuple[int, frozenset[int]]:
    """The tokenizer's end token and the model's (generation_config.json: an id or a list)."""
    listed: list[int] = []
    settings = path / "generation_config.json"
    if settings.is_file():
        try:
            value = json.loads(settings.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"model.tokenizer: cannot read {settings}: {error}") from error
        listed = [] if value is None else [value] if isinstance(value, int) else list(value)
    ids = ([] if own is None else [own]) + listed
    if not ids:
        raise ValueError(
            f"model.tokenizer: {path} names no end token: set eos_token in tokenizer_config.json "
            "or eos_token_id in generation_config.json"
        )
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise ValueError(
            f"model.tokenizer: {path}: end tokens {outside} are not among its {vocab_size} ids"
        )
    return ids[0], frozenset(ids)


def _fingerprint(tokens: Iterable[tuple[int, str]]) -> str:
    digest = hashlib.sha256()
    for i, token in sorted(tokens):
        digest.update(f"{i}\t{token!r}\n".encode())
    return digest.hexdigest()
