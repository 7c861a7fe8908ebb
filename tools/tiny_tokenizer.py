"""Build the quickstart's tokenizer: one token a character, in Hugging Face's fast format.

The vocabulary is printable ASCII and the newline, `\\boxed{` as one token, and five special tokens:
102 entries, on purpose no multiple of 128, so that every use exercises vocabulary padding. With
``numbers`` 10 to 99 are one token each as well: 192 entries, and much shorter responses.
"""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
BOX = "\\boxed{"
SPECIALS = (PAD, EOS, USER, ASSISTANT, UNK)
CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    + ASSISTANT
    + "{{ message['content'] }}"
    + EOS
    + "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def vocabulary(numbers: bool = False) -> dict[str, int]:
    """Token to id: the special tokens, `\\boxed{`, the characters, and maybe 10 to 99."""
    more = map(str, range(10, 100)) if numbers else ()
    return {token: index for index, token in enumerate([*SPECIALS, BOX, *CHARACTERS, *more])}


def make_tokenizer(out_dir: Path, numbers: bool = False) -> PreTrainedTokenizerFast:
    """Write the tokenizer's directory (tokenizer.json, tokenizer_config.json, ...) and return it.

    Encoding then decoding gives back any printable ASCII text, spaces and newlines included; any
    other character becomes `<unk>`.
    """
    core = Tokenizer(models.WordLevel(vocabulary(numbers), unk_token=UNK))
    pieces = r"\\boxed\{|[1-9][0-9]|[\s\S]" if numbers else r"\\boxed\{|[\s\S]"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out_dir, save_jinja_files=False)
    return tokenizer
