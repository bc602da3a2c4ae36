"""Self-made prompts: what is shown, taken, rejected and why, and going on after a break."""

import itertools
import random
from collections import Counter

import pytest

from srlm_fast.data import Progress, PromptConfig, make_prompts, rouge, words
from srlm_fast.data.rouge import PlainIndex
from srlm_fast.data.selfmade import KEYWORDS, REASONS
from srlm_fast.records import Prompt

SEEDS = [f"Explain seed topic number {word} to a child" for word in "abcdefghij"]
CONFIG = PromptConfig(batch_requests=8)
NOUNS = ["rain", "snow", "iron", "salt", "trees", "tides", "bread", "maths", "chess", "glass"]
VERBS = ["Describe", "Compare", "Summarise", "Question", "Defend", "Sketch", "Rank", "Teach"]


def writer(requests):
    """A model of sorts: depends on each request alone, repeats itself now and then."""
    outputs = []
    for index, _ in requests:
        draw = random.Random(index)
        nouns = draw.sample(NOUNS, 3)
        outputs.append(
            f" {draw.choice(VERBS)} {nouns[0]} {draw.choice('xyz')} {nouns[1]} {nouns[2]}\n"
        )
    return outputs


def fixed(*outputs):
    """Gives these outputs in turn, then nothing."""

    def generate(requests):
        return [outputs[i] if i < len(outputs) else "" for i, _ in requests]

    return generate


def make(generate, count=5, config=CONFIG, **options):
    return make_prompts(generate, SEEDS, count, config, **options)


def test_makes_as_many_as_asked_and_counts_every_reject():
    made = make(writer, 40)
    texts = [prompt.text for prompt in made.prompts]
    assert len(texts) == 40 == len(set(texts))
    assert len({prompt.prompt_id for prompt in made.prompts}) == 40
    assert {prompt.source for prompt in made.prompts} == {"self-made"}
    assert all(text == text.strip() for text in texts)
    rejected = sum(made.progress.rejects.values())
    assert rejected > 0 and made.progress.requests == 40 + rejected
    assert set(made.progress.rejects) == set(REASONS)


def test_shows_six_seeds_and_two_of_its_own():
    seen = []

    def generate(requests):
        seen.extend(requests)
        return writer(requests)

    made = make(generate, 20)
    own = {prompt.text for prompt in made.prompts}
    first, later = seen[0][1], seen[-1][1]
    assert [index for index, _ in seen] == list(range(len(seen)))
    for text in (first, later):
        assert text.startswith("Come up with a series of tasks:\n\nTask 1: ")
        assert text.endswith("\nTask 9:")
    assert sum(seed in first for seed in SEEDS) == 8  # there are none of its own yet
    assert sum(seed in later for seed in SEEDS) == 6
    assert sum(text in later for text in own) == 2


def test_few_seeds_are_all_shown():
    seen = []

    def generate(requests):
        seen.extend(text for _, text in requests)
        return writer(requests)

    make_prompts(generate, SEEDS[:2], 1, CONFIG)
    assert all(seed in seen[0] for seed in SEEDS[:2]) and seen[0].endswith("Task 3:")


def test_the_layout_is_the_configuration():
    config = PromptConfig(header="Here are some tasks.\n", item="Task: {prompt}\n", tail="Task:")
    seen = []

    def generate(requests):
        seen.append(requests[0][1])
        return fixed(" name three of the best rivers\nTask: spell it")(requests)

    made = make_prompts(generate, ["one {n} {prompt}"] * 8, 1, config)
    assert seen[0] == "Here are some tasks.\n" + "Task: one {n} {prompt}\n" * 8 + "Task:"
    assert made.prompts[0].text == "name three of the best rivers"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (None, "truncated"),
        ("  \n", "empty"),
        ("Task 10: ", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        (") and then sort the list", "malformed"),
        ("Do it", "too_short"),
        ("word " * 151, "too_long"),
        ("Describe this Image in detail", "keyword"),
        ("Then go to the next shop", "keyword"),
        ("explain  SEED topic number a to a child", "duplicate"),
        ("Explain seed topic number a to a dog", "similar"),
        ("To a child, explain seed topic number a", "near_duplicate"),
        ("What is held out here?", "held_out"),
    ],
)
def test_reasons(output, reason):
    made = make(
        fixed(output), 1, PromptConfig(requests_per_prompt=1), exclude=["what is  HELD out here?"]
    )
    assert made.prompts == []
    counts = Counter(made.progress.rejects)
    assert counts[reason] == 1 and counts.total() == 1


def test_keywords_are_whole_words():
    made = make(fixed("Explain the imagery of a profile"), 1)
    assert made.prompts[0].text == "Explain the imagery of a profile"


def test_held_out_may_be_a_test():
    outputs = ("Tell me about odd rivers", "Bake something with eight eggs")
    made = make(fixed(*outputs), 1, exclude=lambda text: "odd" in text)
    assert [prompt.text for prompt in made.prompts] == [outputs[1]]
    assert made.progress.rejects["held_out"] == 1


def test_a_further_pool_counts_as_known():
    made = make(fixed("Bake something with eight eggs"), 1, pool=["bake something with eight eggs"])
    assert made.prompts == [] and made.progress.rejects["duplicate"] == 1


def test_similar_to_an_earlier_one_of_its_own():
    outputs = ("Bake something nice with eight eggs", "Bake something nice with seven eggs")
    assert make(fixed(*outputs), 2).progress.rejects["similar"] == 1
    loose = PromptConfig(similarity=0.9)
    assert len(make(fixed(*outputs), 2, loose).prompts) == 2


def test_the_threshold_itself_is_too_similar():
    """Seven of ten words in order: F = 0.7."""
    seed = "a b c d e f g h i j"
    made = make_prompts(fixed("a b c d e f g x y z"), [seed], 1, CONFIG)
    assert made.progress.rejects["similar"] == 1
    made = make_prompts(fixed("a b c d e f w x y z"), [seed], 1, CONFIG)
    assert len(made.prompts) == 1


def test_a_clause_that_has_moved_is_a_near_duplicate():
    """ROUGE-L 4/7, word pairs 5/6."""
    outputs = "Explain how rain forms in two lines", "In two lines, explain how rain forms"
    made = make(fixed(*outputs), 2)
    assert made.progress.rejects["near_duplicate"] == 1 and made.progress.rejects["similar"] == 0
    assert len(make(fixed(*outputs), 2, PromptConfig(near_duplicate=0.0)).prompts) == 2
    other = "Translate this from English to French", "Translate this from French to English"
    assert len(make(fixed(*other), 2, PromptConfig(similarity=0.9)).prompts) == 2


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("near_duplicate", [0.0, 0.5])
def test_a_batch_is_filtered_as_if_one_came_after_the_other(plain, near_duplicate, monkeypatch):
    """The twin and the native index give the same, with any batch."""
    if plain:
        monkeypatch.setattr(rouge, "_fastest", lambda: PlainIndex)
    outputs = list(map(" ".join, itertools.product(("Ask", "Tell"), *["xyz"] * 3)))
    random.Random(0).shuffle(outputs)
    outputs[20] = outputs[0]

    def account(batch_requests):
        config = PromptConfig(
            batch_requests=batch_requests, similarity=0.75, near_duplicate=near_duplicate
        )
        made = make(fixed(*outputs), len(outputs), config)
        counts = {name: n for name, n in made.progress.rejects.items() if name != "empty"}
        return [prompt.text for prompt in made.prompts], counts

    one_by_one = account(1)
    assert 5 < len(one_by_one[0]) < 50 and one_by_one[1]["duplicate"] == 1
    assert account(16) == account(64) == one_by_one


def test_the_keywords_are_those_of_the_papers():
    self_instruct = "image images graph graphs picture pictures file files map maps draw plot"
    assert {*self_instruct.split(), "go to"} <= set(KEYWORDS)
    assert len(KEYWORDS) == len(set(KEYWORDS))


def test_lists_give_as_many_as_allowed():
    output = " Name a big river\nTask 10: Bake nine round loaves\nTask 11: Draw up some plans"
    one = make(fixed(output), 3)
    assert [prompt.text for prompt in one.prompts] == ["Name a big river"]
    assert one.progress.rejects["surplus"] == 2
    two = make(fixed(output), 2, PromptConfig(per_request=2))
    assert [prompt.prompt_id for prompt in two.prompts] == ["made-0-000000-0", "made-0-000000-1"]


def test_gives_up_at_the_limit():
    made = make(fixed(), 5, PromptConfig(requests_per_prompt=3))
    assert made.prompts == [] and made.progress.requests == 15
    assert made.progress.rejects["empty"] == 15


def test_depends_on_the_seed_and_on_nothing_else():
    shown = []

    def generate(requests):
        shown.append(requests[0][1])
        return writer(requests)

    one, same, other = (make(generate, 12, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.prompts != other.prompts and len(set(shown)) > len(shown) // 2


def test_neighbouring_seeds_do_not_share_requests():
    """Request i of one seed is not request i - 1 of the next, as with seed + index."""
    shown = {}
    for seed in range(3):

        def generate(requests, seed=seed):
            shown.update({(seed, index): text for index, text in requests})
            return fixed()(requests)

        make(generate, 1, PromptConfig(requests_per_prompt=8), seed=seed)
    assert len(shown) == len(set(shown.values())) == 24


class BrokenOffError(Exception):
    pass


class Journal:
    """Keeps what a run wrote down; breaks off at a given batch, the account written or not."""

    def __init__(self, stop_at=None, lose_account=False):
        self.rows, self.progress, self.batches = [], None, 0
        self.stop_at, self.lose_account = stop_at, lose_account

    def __call__(self, rows, progress):
        self.rows += rows
        stop = self.batches == self.stop_at
        if not (stop and self.lose_account):
            self.progress = progress
        self.batches += 1
        if stop:
            raise BrokenOffError


@pytest.mark.parametrize("stop_at", [0, 1, 3])
@pytest.mark.parametrize("lose_account", [False, True])
@pytest.mark.parametrize("torn_rows", [0, 2])
def test_a_broken_run_ends_like_an_unbroken_one(stop_at, lose_account, torn_rows):
    if torn_rows and not lose_account:
        return  # rows reach the disk before the account does
    whole = Journal()
    wanted = make(writer, 30, on_batch=whole)
    broken = Journal(stop_at, lose_account)
    with pytest.raises(BrokenOffError):
        make(writer, 30, on_batch=broken)
    rows = broken.rows[: len(broken.rows) - torn_rows]
    after = Journal()
    account = broken.progress or Progress()
    got = make(writer, 30, accepted=rows, progress=account, on_batch=after)
    assert got == wanted
    assert rows + after.rows == whole.rows == wanted.prompts


def test_rows_alone_are_enough_to_go_on():
    wanted = make(writer, 30)
    for kept in (0, 1, 9, 29, 30):
        assert make(writer, 30, accepted=wanted.prompts[:kept]).prompts == wanted.prompts


def test_a_finished_set_asks_for_nothing():
    done = make(writer, 10)

    def never(requests):
        raise AssertionError("asked")

    assert make(never, 10, accepted=done.prompts, progress=done.progress) == done


def test_misuse_is_named():
    with pytest.raises(ValueError, match="seed_prompts"):
        make_prompts(writer, [], 1, CONFIG)
    with pytest.raises(ValueError, match="generate"):
        make(lambda requests: ["one"], 5)
    with pytest.raises(ValueError, match="accepted"):
        make(writer, 5, accepted=[Prompt("x", "Name a river", "file")])
    with pytest.raises(ValueError, match="item"):
        PromptConfig(item="Task:")
    with pytest.raises(ValueError, match="per_request"):
        PromptConfig(per_request=0)


def test_seeds_used_here_are_long_enough_for_the_filters():
    assert all(len(words(seed)) >= CONFIG.min_words for seed in SEEDS)
