"""The script that makes M0: its tokenizer, its batches, and a whole run made very short."""

import random

import pytest
import torch

from srlm_fast.model import chat, load_model
from srlm_fast.tiny import documents, make_m0, tokenizer

MIXTURE = documents.Mixture(question=0.3, review=0.4, tasks=0.1, compare=0.1, copy=0.1)


@pytest.fixture(scope="module", autouse=True)
def small_pools():
    before, make_m0.POOL_DOCUMENTS = make_m0.POOL_DOCUMENTS, 256
    yield
    make_m0.POOL_DOCUMENTS = before


@pytest.fixture(scope="module")
def tiny_tokenizer():
    return tokenizer.train_tokenizer(count=1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_m0.main(["--out", str(folder), "--steps-scale", "0.0001"])
    return folder


def test_words_looked_up_once_are_the_tokens_of_the_whole_text(tiny_tokenizer):
    encoder = tokenizer.DocumentEncoder(tiny_tokenizer)
    for doc in documents.documents(random.Random(1), MIXTURE, 200):
        text = "".join(text for text, _ in doc)
        ids, weights = encoder.encode(doc)
        assert ids == tiny_tokenizer(text)["input_ids"]
        assert len(ids) == len(weights)


@pytest.mark.parametrize(
    "text", ["", "naïve café", "数えて", "🙂👩‍🚀", "a\tb\n\n c  d", "Bot:\nUser:"]
)
def test_any_text_comes_back(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text


def test_chat_form(tiny_tokenizer):
    assert chat.render(tiny_tokenizer, "Spell fox.") == "User: Spell fox.\nBot:\n"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    text = tiny_tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == f"User: Hi.\nBot:\nYes.{documents.END}"


def test_batches_are_full_and_padding_has_no_weight(tiny_tokenizer):
    source = make_m0.batches(tiny_tokenizer, MIXTURE, 0)
    for _ in range(5):
        batch = next(source)
        assert batch.token_ids.shape == batch.weights.shape
        assert batch.token_ids.numel() <= make_m0.BATCH_TOKENS
        ends = (batch.token_ids == tiny_tokenizer.eos_token_id).int().argmax(1)
        for row, end in zip(batch.weights, ends.tolist(), strict=True):
            assert not row[end + 1 :].any()


def test_rate_warms_up_and_ends_near_zero():
    rates = [make_m0._rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) <= 1.0
    assert rates[-1] < 0.01


def test_a_stage_lowers_the_loss(tiny_tokenizer):
    model = make_m0.random_model(make_m0.tiny_config(tiny_tokenizer), tiny_tokenizer).train()
    batch = next(make_m0.batches(tiny_tokenizer, MIXTURE, 9))
    with torch.no_grad():
        before = make_m0.loss_of(model, batch).item()
    tokens = make_m0.run_stage(model, make_m0.Stage("t", 12, 3e-3, MIXTURE), 12, seed=0)
    with torch.no_grad():
        after = make_m0.loss_of(model, batch).item()
    assert after < before - 0.5
    assert tokens > 12 * make_m0.BATCH_TOKENS * 0.6


def test_a_short_run_writes_a_folder_that_loads(made):
    model = load_model(str(made / "m0"), dtype=torch.float32)
    assert model.config.vocab_size == tokenizer.VOCAB_SIZE
    assert model.tokenizer.eos_token_id in model.eos_token_ids
    assert (made / "m0" / "model.safetensors").stat().st_size < 4_000_000


def test_a_second_run_goes_on_from_the_stages_that_are_there(made, capsys):
    before = (made / "m0" / "model.safetensors").read_bytes()
    make_m0.main(["--out", str(made), "--steps-scale", "0.0001"])
    assert (made / "m0" / "model.safetensors").read_bytes() == before


def test_a_run_is_reproducible(made, tmp_path):
    make_m0.main(["--out", str(tmp_path), "--steps-scale", "0.0001"])
    ours, theirs = (f / "m0" / "model.safetensors" for f in (tmp_path, made))
    assert ours.read_bytes() == theirs.read_bytes()
