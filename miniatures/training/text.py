"""The miniature's text side: a word-level tokenizer and a frozen, random UMT5 encoder.

Forty words need no trained language model: random vectors keep them apart, and the video transformer learns
what they mean.
"""

from __future__ import annotations

import torch
from common import DEVICE
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from vidaccel_miniatures.captions import MAX_TOKENS, vocabulary

SEED = 7


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words in lower case, one token each, `</s>` at the end; a word it does not know becomes `<unk>`."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z ]"), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def build_text_encoder() -> UMT5EncoderModel:
    """The seeded encoder, its weights already rounded to float16 as they are stored, computing in float32."""
    torch.manual_seed(SEED)
    config = UMT5Config(
        vocab_size=len(vocabulary()) + 3, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return UMT5EncoderModel(config).half().float().eval().requires_grad_(False)


@torch.no_grad()
def embed(texts: list[str]) -> torch.Tensor:
    """What WanPipeline's transformer gets for `texts`: `[N, MAX_TOKENS, 64]`, zero beyond each text's end."""
    tokenizer, encoder = build_tokenizer(), build_text_encoder().to(DEVICE)
    batch = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    ids, mask = batch.input_ids.to(DEVICE), batch.attention_mask.to(DEVICE)
    return encoder(ids, mask).last_hidden_state * mask[..., None]
