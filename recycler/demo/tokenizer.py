"""The demo's own tokenizer: one token for each number word, digit or letter.

Short sequences are what makes the demo quick.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recycler.demo.skills import ENGLISH_ONES, ENGLISH_TENS, PROGRAMS, SPANISH_ONES, SPANISH_TENS

WORDS = [*ENGLISH_ONES, *ENGLISH_TENS, *SPANISH_ONES, *SPANISH_TENS, "plus", "mas", "y"]
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789()=+-.,"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: a word and the space after it are one token, and so are 'rev(' and ') ='.

    All else has a token for each character. Decoding returns the text that was encoded. A prompt
    starts with <s>; </s> ends an answer.
    """
    pieces = sorted(
        {f"{word} " for word in WORDS} | {f"{name}(" for name in PROGRAMS} | {" =", ") ="},
        key=lambda piece: (-len(piece), piece),
    )
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *pieces, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("|".join(map(re.escape, pieces)) + r"|[\s\S]"), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
