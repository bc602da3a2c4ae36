"""Stop strings and texts, over a byte-level and a SentencePiece-style vocabulary."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from srlm_fast.judge import compile_pattern
from srlm_fast.kernels.token_bytes import byte_alphabet
from srlm_fast.model import random_model
from srlm_fast.sampler import Sampler, SamplingParams
from srlm_fast.sampler.token_bytes import decode, token_bytes

from .helpers import CONFIGS

PIECES = ["he", "llo", "ab", "ba", "ab ab", "é", "猫", "🐈", " the", " end", "nd.", "\n\n"]


def byte_level():
    letter = {byte: char for char, byte in byte_alphabet().items()}
    words = [letter[b] for b in range(256)]
    words += ["".join(letter[b] for b in piece.encode()) for piece in PIECES]
    backend = Tokenizer(models.BPE({word: i + 3 for i, word in enumerate(words)} | {"<s>": 0}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend)


def sentence_piece():
    words = [f"<0x{b:02X}>" for b in range(256)]
    words += [piece.replace(" ", "▁") for piece in PIECES] + ["▁", "a", "b"]
    vocab = {word: i + 3 for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab | {"<s>": 0}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return wrapped(backend)


def wrapped(backend):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens(["<note>"])
    return tokenizer


@pytest.fixture(params=[byte_level, sentence_piece], scope="module")
def model(request):
    tokenizer = request.param()
    config = CONFIGS["llama"].replace(vocab_size=len(tokenizer), eos_token_ids=())
    return random_model(config, tokenizer, std=0.02)  # nearly flat: every token is drawn


def test_the_table_is_what_the_tokenizer_decodes(model):
    table = token_bytes(model.tokenizer)
    assert (
        b"".join(table[model.tokenizer.convert_tokens_to_ids(t)] for t in ("he", "llo")) == b"hello"
    )
    assert table[0] == b"" and b"<note>" in table
    assert "猫".encode() in table and b" the" in table


def test_a_tokenizer_without_fixed_bytes_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="<s>"))
    backend.decoder = decoders.CTC()  # its decoding drops what stands twice
    with pytest.raises(ValueError, match="stop_token_ids"):
        token_bytes(wrapped(backend))


STOPS = ["ab", "bab", "é", "ella", "a", " ", "hea"]


def test_text_ends_before_the_first_stop(model):
    free = SamplingParams(n=64, max_tokens=120, ignore_eos=True, seed=3)
    params = SamplingParams(n=64, max_tokens=120, ignore_eos=True, seed=3, stop=STOPS[:4])
    whole = Sampler(model).generate([[1, 2, 5]], free)[0].samples
    ended = Sampler(model).generate([[1, 2, 5]], params)[0].samples
    across = 0
    table = token_bytes(model.tokenizer)
    for long, short in zip(whole, ended, strict=True):
        assert long.token_ids[: len(short.token_ids)] == short.token_ids
        text = b"".join(table[i] for i in long.token_ids)
        found = [at for at in (text.find(s.encode()) for s in STOPS[:4]) if at >= 0]
        assert (short.finish_reason == "stop") == bool(found)
        if not found:
            assert short.text == long.text
            continue
        assert not any(stop in short.text for stop in STOPS[:4])
        # Not one token more than the stop needs.
        before = b"".join(table[i] for i in short.token_ids[:-1])
        assert not any(s.encode() in before for s in STOPS[:4])
        cut = b"".join(table[i] for i in short.token_ids)
        cut = cut[: min(at for at in (cut.find(s.encode()) for s in STOPS[:4]) if at >= 0)]
        text = cut.decode(errors="replace")
        assert short.text in (text, text.removeprefix(" "))
        across += len(cut) < len(before)
    assert across > 0, "no stop string began in one token and ended in another"


def test_an_early_stop_string_is_passed_over_until_min_tokens(model):
    params = SamplingParams(n=32, max_tokens=200, min_tokens=100, seed=3, stop="a")
    samples = Sampler(model).generate([[1, 2, 5]], params)[0].samples
    assert all(len(s.token_ids) >= 100 for s in samples)
    stopped = [s for s in samples if s.finish_reason == "stop"]
    assert any("a" in s.text for s in stopped)  # the early ones stay in the text


def test_the_text_is_the_tokenizers(model):
    params = SamplingParams(n=16, max_tokens=40, seed=9, ignore_eos=True)
    for sample in Sampler(model).generate([[1, 2, 5]], params)[0].samples:
        assert sample.text == decode(model.tokenizer, sample.token_ids)


def test_the_token_of_a_stop_id_is_not_in_the_text(model):
    stop_id = model.tokenizer.convert_tokens_to_ids("he")
    params = SamplingParams(n=200, max_tokens=100, seed=1, stop_token_ids=[stop_id])
    samples = Sampler(model).generate([[1, 2, 5]], params)[0].samples
    stopped = [s for s in samples if s.finish_reason == "stop" and s.token_ids[-1] == stop_id]
    assert stopped
    for sample in stopped:
        assert sample.text == decode(model.tokenizer, sample.token_ids[:-1])


def test_prompts_of_text_are_taken_as_they_are(model):
    greedy = SamplingParams(temperature=0, max_tokens=5)
    ids = model.tokenizer("abba")["input_ids"]
    text, tokens = (Sampler(model).generate([p], greedy)[0] for p in ("abba", ids))
    assert text.prompt_token_ids == ids
    assert text.samples == tokens.samples
    with pytest.raises(ValueError, match="prompts: a string"):
        Sampler(model).generate("abba")


def test_the_tiny_tokenizer_has_fixed_bytes():
    from srlm_fast.model import find_folder
    from srlm_fast.model.load import read_tokenizer

    tokenizer = read_tokenizer(find_folder("tiny"))
    assert any(token_bytes(tokenizer))


def test_torch_is_not_asked_for_more_than_inference(model):
    assert torch.is_grad_enabled()
    model.train()
    Sampler(model).generate([[1]], SamplingParams(max_tokens=2))
    assert model.training and torch.is_grad_enabled()
    model.eval()


def test_ids_beyond_the_tokenizer_have_no_text(model):
    """Vocabularies are filled up to round numbers; the model may draw from what fills them."""
    config = model.config.replace(vocab_size=len(model.tokenizer) + 40)
    wide = random_model(config, model.tokenizer, std=0.02)
    last = len(model.tokenizer) + 39
    params = SamplingParams(
        n=4, max_tokens=40, stop=("ab",), allowed_token_ids=(last, piece_id(model, "he"))
    )
    for sample in Sampler(wide).generate([[5, 6]], params)[0].samples:
        assert set(sample.text) == {"h", "e"} and last in sample.token_ids


def piece_id(model, piece):
    return model.tokenizer.convert_tokens_to_ids(piece)


def test_a_special_token_as_a_stop_string_is_its_id(model):
    allowed = (0, piece_id(model, "he"))
    params = SamplingParams(n=8, max_tokens=60, stop=("<s>",), allowed_token_ids=allowed)
    for sample in Sampler(model).generate([[5, 6]], params)[0].samples:
        assert sample.finish_reason == "stop" and sample.token_ids[-1] == 0
        assert sample.text == "he" * (len(sample.token_ids) - 1)


def test_a_start_token_in_the_text_is_not_doubled(model, monkeypatch):
    tokenizer = model.tokenizer
    seen = []

    def encode(text, add_special_tokens=True):
        seen.append(add_special_tokens)
        return {"input_ids": [5]}

    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, *a, **k: encode(*a, **k))
    sampler = Sampler(model)
    assert [sampler._encode(text) for text in ("<s>he", "he")] == [[5], [5]]
    assert seen == [False, True]


def test_a_sample_ends_with_the_first_line_that_holds_a_score(model):
    """What is drawn does not change, only where it ends."""
    table = compile_pattern(model.tokenizer, "he")
    pieces = {data: i for i, data in enumerate(table.token_bytes) if data}
    allowed = [pieces[data] for data in (b"he", b"4", b"7", b"\n", b"a")]
    whole = SamplingParams(n=8, max_tokens=30, allowed_token_ids=allowed, seed=1)
    prompts = [[5, 6], [pieces[b"he"]], [7]]
    long = Sampler(model).generate(prompts, whole)
    short = Sampler(model).generate(prompts, replace(whole, stop_score_line=table))
    early = 0
    for one, other in zip(long, short, strict=True):
        for full, cut in zip(one.samples, other.samples, strict=True):
            kept = table.first_line(full.token_ids)
            assert cut.token_ids == full.token_ids[:kept]
            ended = kept < len(full.token_ids) or cut.text.endswith("\n")
            assert ended or cut.finish_reason == "length"
            early += kept < len(full.token_ids)
    assert early > 12 and any("he4" in s.text for g in short for s in g.samples)
