"""The miniatures' text side: a word-level tokenizer, and encoders with frozen random weights.

A world of sixty words needs no trained language model: random vectors keep them apart, and the video transformer learns
what they mean. A word's number and vector never change when words are added, so trained weights stay valid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vidaccel_miniatures.captions import MAX_TOKENS, vocabulary

SEED, FIRST = 7, 40
SPECIAL = ("<pad>", "</s>", "<unk>")
WIDTH = 64
"""Channels of every encoder's output."""


def build_tokenizer(max_tokens: int = MAX_TOKENS) -> PreTrainedTokenizerFast:
    """Words in lower case, one token each, `</s>` at the end; a word it does not know becomes `<unk>`."""
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words())}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z ]"), " ")])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_tokens,
        padding_side="right",
    )  # fmt: skip


def words() -> list[str]:
    """What the tokenizer knows, in the order of the tokens' numbers."""
    return [*SPECIAL, *vocabulary()]


def frozen(build: Callable[[int], Any]) -> Any:
    """An encoder whose weights are seeded and rounded to float16, as they are stored; it computes in float32.

    Args:
        build: makes the encoder for a number of words.
    """
    torch.manual_seed(SEED)
    encoder = build(FIRST)
    first = encoder.get_input_embeddings().weight.data
    since = [torch.randn(first.shape[1], generator=torch.Generator().manual_seed(index)) * first.std()
             for index in range(FIRST, len(words()))]  # fmt: skip
    encoder.resize_token_embeddings(len(words()), mean_resizing=False)
    encoder.get_input_embeddings().weight.data.copy_(torch.stack([*first, *since]))
    return encoder.half().float().eval().requires_grad_(False)


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and mask `[N, model_max_length]` of `texts`, padded on the right."""
    batch = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask
