"""Tokenizers: what the files say is what comes out, for both kinds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from scope_megatron.data.tokenizer import (
    HFTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)

TEXT = ["What is 12 + 7 ? The answer is 19 .", "the cat sat on the mat", "x = 3 and y = 4"] * 20
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user') %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USER = [{"role": "user", "content": "What is 12 + 7 ?"}]


def make_hf(
    directory: Path, template: str | None = None, adds: str | None = None, **settings: object
) -> RustTokenizer:
    """A byte-level BPE tokenizer saved the way Hugging Face models ship theirs. ``adds``: what it
    puts around a text on its own, as "<bos> $A <eos>"."""
    special = ["<pad>", "<bos>", "<eos>", "<end>", "<|system|>", "<|user|>", "<|assistant|>"]
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(TEXT, trainer)
    if adds:
        ids = [(t, special.index(t)) for t in ("<bos>", "<eos>")]
        rust.post_processor = processors.TemplateProcessing(single=adds, special_tokens=ids)
    directory.mkdir(parents=True, exist_ok=True)
    rust.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<eos>", "chat_template": template} | settings
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return rust


def make_sentencepiece(path: Path, **settings: object) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def test_hf_round_trip_and_special_tokens(tmp_path):
    rust = make_hf(tmp_path, TEMPLATE)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, HFTokenizer)
    ids = tokenizer.encode("the answer is  19 .\n")
    assert ids == rust.encode("the answer is  19 .\n", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "the answer is  19 .\n"
    assert tokenizer.vocab_size == rust.get_vocab_size()
    assert tokenizer.eos_id == rust.token_to_id("<eos>")
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == "the answer is  19 .\n"
    assert tokenizer.decode([*ids, tokenizer.eos_id], skip_special=False).endswith("<eos>")
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "the answer is  19 .\n"


def test_chat_template_with_generation_prompt(tmp_path):
    make_hf(tmp_path, TEMPLATE)
    tokenizer = load_tokenizer(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    text = tokenizer.decode(tokenizer.apply_chat_template(messages), skip_special=False)
    assert text == "<|system|>Be brief.<eos><|user|>What is 12 + 7 ?<eos><|assistant|>"
    with pytest.raises(ValueError, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_without_a_template_contents_are_joined(tmp_path):
    rust = make_hf(tmp_path, adds="<bos> $A <eos>")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *USER])
    assert ids[0] == rust.token_to_id("<bos>")
    assert tokenizer.decode(ids, skip_special=False) == "<bos>Be brief.\nWhat is 12 + 7 ?"
    assert tokenizer.encode("19") == rust.encode("19", add_special_tokens=False).ids


@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"]
)
def test_the_declared_class_does_not_change_the_files_tokens(tmp_path, name):
    """transformers' own Llama class would drop every space of a byte-level vocabulary."""
    rust = make_hf(tmp_path, tokenizer_class=name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = load_tokenizer(tmp_path)
    text = " the  cat sat"
    assert tokenizer.encode(text) == rust.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == rust.get_vocab_size()


def test_end_tokens_of_tokenizer_and_model(tmp_path):
    rust = make_hf(tmp_path)
    eos, end = rust.token_to_id("<eos>"), rust.token_to_id("<end>")
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [end, eos]}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (eos, {eos, end})
    settings.write_text(json.dumps({"eos_token_id": 100000}))
    with pytest.raises(ValueError, match=r"model\.tokenizer.*100000"):
        load_tokenizer(tmp_path)
    settings.unlink()
    make_hf(tmp_path, eos_token=None)
    with pytest.raises(ValueError, match=r"model\.tokenizer.*no end token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("begin", [1, -1])
def test_sentencepiece(tmp_path, begin):
    path = tmp_path / "words.model"
    make_sentencepiece(path, bos_id=begin)
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = tokenizer.encode("the answer is 19 .")
    assert ids == reference.encode("the answer is 19 .")
    assert tokenizer.decode([*ids, tokenizer.eos_id, 10**6]) == "the answer is 19 ."
    whole = [*ids, tokenizer.eos_id]
    assert tokenizer.decode(whole, skip_special=False) == "the answer is 19 .</s>"
    expected = ([begin] if begin >= 0 else []) + reference.encode("What is 12 + 7 ?")
    assert tokenizer.apply_chat_template(USER) == expected
    assert tokenizer.eos_ids == {reference.eos_id()}
    assert tokenizer.vocab_size == reference.get_piece_size()


def test_a_directory_with_only_a_sentencepiece_model(tmp_path):
    make_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.eos_ids == {2, 7}


def test_fingerprint_tells_token_maps_apart(tmp_path):
    make_hf(tmp_path / "a", TEMPLATE)
    make_hf(tmp_path / "b")  # another template, the same tokens
    make_hf(tmp_path / "c")
    vocabulary = json.loads((tmp_path / "c/tokenizer.json").read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["!"], tokens["#"] = tokens["#"], tokens["!"]
    (tmp_path / "c/tokenizer.json").write_text(json.dumps(vocabulary))
    a, b, c = (load_tokenizer(tmp_path / d).token_map_fingerprint() for d in "abc")
    assert a == b != c
    make_sentencepiece(tmp_path / "d/tokenizer.model")
    assert load_tokenizer(tmp_path / "d").token_map_fingerprint() not in (a, c)


def test_what_is_no_tokenizer(tmp_path):
    (tmp_path / "weights.bin").touch()
    (tmp_path / "bad.model").write_text("not a model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{")
    for path, what in [
        (tmp_path, "weights.bin"),
        (tmp_path / "weights.bin", "neither a directory"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "bad.model", "not a sentencepiece model"),
        (tmp_path / "broken", "cannot load"),
    ]:
        with pytest.raises(ValueError, match=rf"model\.tokenizer.*{what}"):
            load_tokenizer(path)
