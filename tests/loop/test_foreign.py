"""A user's own Hugging Face folder and prompts, through the command line: random weights, odd
prompts.
"""

from __future__ import annotations

import json

import pytest

from srlm_fast.judge import DEFAULT_RUBRIC, make_pairs
from srlm_fast.loop.answers import AnswerStage
from srlm_fast.loop.readers import make_reader
from srlm_fast.loop.token_rows import token_pair
from srlm_fast.model import ModelConfig, chat, load_model, random_model
from srlm_fast.records import Prompt, read_jsonl, write_jsonl
from srlm_fast.run import main
from srlm_fast.sampler import Sampler, SamplingParams
from tests.model.test_load import byte_tokenizer

ODD = [
    "Plain words, please.",
    "اكتب جملة عن البحر",
    "用一句话解释彩虹",
    "🙂🙃👩‍👩‍👧‍👦 what are these?",
    "line one\n\nline three\ttab",
    "{prompt} and {response} and {{braces}}",
    "</script><b>bold</b> & \"quotes\" 'single'",
    "Score: 5\nScore: 5/5",
    "end of text: <|end|> ### Response:",
    "x" * 5000,
    " \u200b zero width",
    "e\u0301 combining",
]
LIMITS = [
    "--max-tokens",
    "8",
    "--judge-max-tokens",
    "8",
    "--num-prompts",
    "11",
    "--iterations",
    "1",
]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    config = ModelConfig(
        family=request.param,
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        qkv_bias=request.param == "qwen2",
        max_position_embeddings=4096,
        eos_token_ids=(0,),
    )
    path = tmp_path_factory.mktemp("foreign") / "model"
    random_model(config, byte_tokenizer(), std=0.2).save(path)
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in ODD]
    path.write_text("\n".join([*rows[:4], "", "   ", *rows[4:]]) + "\n\n", "utf-8")
    return path


def test_a_model_that_cannot_judge_stops_and_says_so(folder, prompts, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--model", str(folder), "--prompts", str(prompts), "--out", str(out), *LIMITS]
    assert main(command) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no pair to learn from" in error
    assert "Traceback" not in error
    candidates = read_jsonl(out / "m2" / "candidates.jsonl")
    answered = {row["prompt_id"] for row in candidates}
    # A tenth of the prompts is held out; the one of 5,000 bytes is longer than the context.
    assert len(answered) >= 9
    assert len(candidates) == 4 * len(answered)
    assert read_jsonl(out / "m2" / "judgements.jsonl")
    assert (out / "report.html").is_file()


def test_the_round_with_a_reward_that_needs_no_judge(folder, prompts, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--model", str(folder), "--prompts", str(prompts), "--out", str(out), *LIMITS]
    assert main([*command, "--reward", "random"]) == 0
    screen = capsys.readouterr().out
    assert "longer than the model's context" in screen
    pairs = read_jsonl(out / "m2" / "pairs.jsonl")
    assert len(pairs) >= 5
    texts = {row["prompt"] for row in read_jsonl_prompts(out)}
    assert texts <= set(ODD)
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert [model["name"] for model in summary["models"]] == ["M1", "M2"]
    assert summary["models"][0]["judge"] is None
    assert (
        main([*command, "--reward", "random"]) == 0
    )  # finished: told again, nothing is done twice
    assert read_jsonl(out / "m2" / "pairs.jsonl") == pairs


def read_jsonl_prompts(out):
    return [{"prompt": row["text"]} for row in read_jsonl(out / "m2" / "prompts.jsonl")]


def test_turns_before_a_prompt_reach_model_judge_and_pairs(folder, tmp_path):
    model = load_model(folder)
    turns = [{"role": "user", "content": "Pick one."}, {"role": "assistant", "content": "B."}]
    prompts = [Prompt("many", "Why?", "file", turns), Prompt("one", "Why?", "file")]
    params = SamplingParams(n=2, max_tokens=4)
    judge = make_reader(model, DEFAULT_RUBRIC, "sampled", SamplingParams(max_tokens=2))
    sampler = Sampler(model)
    asked = []
    sampled = sampler.run

    def listening(requests, finished, progress):
        def keep(generation):
            asked.append(model.tokenizer.decode(generation.prompt_token_ids))
            return finished(generation)

        return sampled(requests, keep, progress)

    sampler.run = listening
    files = (tmp_path / "candidates.jsonl", tmp_path / "judgements.jsonl")
    stage = AnswerStage(sampler, params, DEFAULT_RUBRIC, judge, *files)
    stage.run(prompts)
    whole = chat.render(model.tokenizer, "Why?", turns)
    assert whole in asked
    assert any("User: Pick one.\n\nAssistant: B.\n\nUser: Why?" in text for text in asked)
    scores = {(key, i): [float(i)] for key in ("many", "one") for i in range(2)}
    candidates = [c for group in stage.candidates.values() for c in group]
    many, one = make_pairs(prompts, candidates, scores).pairs
    assert many["chosen"][:-1] == [*turns, {"role": "user", "content": "Why?"}]
    assert one["chosen"][:-1] == [{"role": "user", "content": "Why?"}]
    ids = token_pair(model, many, stage.candidates).prompt_ids
    assert ids == chat.encode(model.tokenizer, "Why?", turns)
    assert ids != token_pair(model, one, stage.candidates).prompt_ids


def test_a_prompt_keeps_its_turns_on_disk(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}]
    prompts = [Prompt("a", "Why?", "file", turns), Prompt("b", "Why?", "file")]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    rows = read_jsonl(tmp_path / "prompts.jsonl")
    assert [Prompt(**row) for row in rows] == prompts
    assert "turns" not in rows[1]
