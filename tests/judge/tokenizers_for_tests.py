"""Small tokenizers of the kinds that models have, made on the spot."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "Score: 4\nScore: 10 Score: **3**/5 out of 5. The score is 2, not 4.5 or -1.",
    "Relevance: yes. Coverage: yes. Usefulness: no. Score: 1 Score: 0 Score: 5",
] * 4


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE: every byte is a token, and merges such as " 4" and "Score" exist."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def sentencepiece() -> Tokenizer:
    """The Llama 2 layout: a space is U+2581, bytes outside the vocabulary are <0xNN>."""
    alphabet = ["▁", *"\nScore:0123456789*/.-outfRl", "▁S", "▁Sc", "co", "▁4", "re", "▁1", "10"]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    merges = [("▁", "S"), ("▁S", "c"), ("c", "o"), ("▁", "4"), ("r", "e"), ("▁", "1"), ("1", "0")]
    model = models.BPE(
        {token: at for at, token in enumerate(dict.fromkeys(vocabulary))},
        merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@cache
def wordpiece() -> Tokenizer:
    """Pieces behind the first of a word start with ##; unknown words are [UNK]."""
    pieces = ["[UNK]", *"Score:0123456789*/.,-", *(f"##{char}" for char in "Score0123456789")]
    pieces += ["Score", "10", "out", "of", "Well", "points", "or", "##ll"]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer
