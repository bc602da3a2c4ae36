"""The C++ scheduler against its Python twin on random traffic, and both against the rules of the
house.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_fast.kernels.judge_score import ANY_LINE, NUMBER_LINE, OUTCOME_SHIFT
from srlm_fast.kernels.native import native
from srlm_fast.sampler.noise import mix64
from srlm_fast.sampler.scheduler import HIDDEN, PLAN_FIELDS, SAMPLE, SCORE, Scheduler

BYTES = [bytes([97 + i]) for i in range(6)]
# A score table of two states: token 3 leads to the second, where 4 is a number; 5 ends a line; 0
# is a number and the end of its line at once.
MAPS = np.array(
    [
        [0, 1],
        [1, 1],
        [0, 2 << OUTCOME_SHIFT],
        [ANY_LINE, ANY_LINE],
        [0, 3 << OUTCOME_SHIFT | NUMBER_LINE | ANY_LINE],
    ],
    np.int32,
)
TOKEN_MAPS = np.array([4, 0, 0, 1, 2, 3], np.int32)


def both(**options):
    pair = (native().Scheduler(**options), Scheduler(**options))
    for scheduler in pair:
        scheduler.set_token_bytes(BYTES)
        scheduler.add_score_table(TOKEN_MAPS, MAPS, 0)
    return pair


requests = st.lists(
    st.fixed_dictionaries(
        {
            "step": st.integers(0, 12),
            # Few different tokens and a common head: prefixes repeat, within a batch and over time.
            "prompt": st.tuples(
                st.sampled_from([0, 0, 3, 4, 8, 9, 17]), st.lists(st.integers(0, 2), max_size=9)
            ).map(lambda parts: ([1, 2] * 9)[: parts[0]] + parts[1] or [1]),
            "n": st.integers(1, 4),
            "kind": st.sampled_from([SAMPLE] * 4 + [SCORE, HIDDEN]),
            "read_from": st.floats(0, 1),
            "mask": st.sampled_from([-1, -1, 2]),
            "max_tokens": st.integers(1, 9),
            "min_tokens": st.integers(0, 2),
            "penalty": st.sampled_from([1.0, 1.3]),
            "ignore_eos": st.booleans(),
            "stop_ids": st.sampled_from([[], [4]]),
            "stops": st.sampled_from([[], [b"cb"], [b"aa", b"bab"]]),
            "score_table": st.sampled_from([-1, -1, 0]),
        }
    ),
    max_size=14,
)


def add(scheduler, request):
    """The id, or the refusal."""
    prompt, kind = request["prompt"], request["kind"]
    if kind == SCORE and len(prompt) < 2:
        prompt = [*prompt, 1]
    last = len(prompt) - 1 - (kind == SCORE)
    try:
        return scheduler.add(
            np.array(prompt, np.int32),
            {SAMPLE: request["n"], SCORE: 1, HIDDEN: 0}[kind],
            0.5,
            3,
            0.75,
            0.25,
            request["penalty"] if kind == SAMPLE else 1.0,
            request["max_tokens"],
            min(request["min_tokens"], request["max_tokens"]),
            request["ignore_eos"],
            2**64 - 3,
            request["stop_ids"],
            request["stops"],
            request["mask"],
            -1 if kind == SAMPLE else round(request["read_from"] * last),
            kind,
            request["score_table"] if kind == SAMPLE else -1,
        )
    except ValueError as error:
        return str(error)


class Pages:
    """What stands in the pages, as the forward would write it: token and position of every slot.

    The tokens that a plan does not know yet are put in from the step before, as a device does.
    """

    def __init__(self, page_tokens):
        self.size, self.held = page_tokens, {}
        self.last = np.zeros(0, np.int32)

    def run(self, plan):
        before = dict(self.held)
        for source, target in plan.copies.tolist():
            for offset in range(self.size):
                self.held[target * self.size + offset] = before.get(source * self.size + offset)
        slots = plan.slots.tolist()
        assert len(set(slots)) == len(slots), "two rows write one slot"
        tokens = [t if t >= 0 else int(self.last[-1 - t]) for t in plan.token_ids.tolist()]
        for slot, token, position in zip(slots, tokens, plan.positions, strict=True):
            self.held[slot] = (token, int(position))
        self.last = draws(plan)
        return self.last

    def check(self, plan, sequences):
        """Pages that are written have one writer, and what a row sees is what was planned for its
        own sequence.
        """
        writers = {}
        for s, sequence in enumerate(sequences):
            rows = slice(plan.row_starts[s], plan.row_starts[s + 1])
            for page in set((plan.slots[rows] // self.size).tolist()):
                assert writers.setdefault(page, s) == s, "two owners write one page"
            length = int(plan.context_lengths[s])
            positions = plan.positions[rows].tolist()
            assert positions == list(range(length - len(positions), length))
            for position in range(length):
                slot = int(plan.block_table[s][position // self.size]) * self.size
                seen = self.held[slot + position % self.size]
                assert seen is not None and seen[1] == position
                token = sequence.tokens[position]
                assert token < 0 or seen[0] == token


def draws(plan):
    """A token for each sampling row that depends on its noise alone, or the one to be scored."""
    keys = zip(plan.noise_keys.tolist(), plan.sample_positions.tolist(), strict=True)
    drawn = np.array([mix64(key ^ position) % 6 for key, position in keys], np.int32)
    return np.where(plan.forced >= 0, plan.forced, drawn).astype(np.int32)


def values(tokens):
    return (-0.25 * tokens - 0.5).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    requests=requests,
    num_pages=st.integers(3, 24),
    page_tokens=st.sampled_from([2, 4]),
    max_batch_tokens=st.integers(1, 40),
    max_sequences=st.integers(1, 9),
    ahead=st.sampled_from([0, 1]),
)
def test_cpp_equals_python_on_random_traffic(
    requests, num_pages, page_tokens, max_batch_tokens, max_sequences, ahead
):
    cpp, twin = both(
        num_pages=num_pages,
        page_tokens=page_tokens,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        max_positions=30,
        eos_token_ids=[5],
    )
    pages, accepted, done, in_flight = Pages(page_tokens), {}, {}, []
    pending = sorted(requests, key=lambda r: r["step"])
    for step in range(6000):
        while pending and pending[0]["step"] <= step:
            request = pending.pop(0)
            ids = add(cpp, request), add(twin, request)
            assert ids[0] == ids[1]
            if isinstance(ids[0], int):
                accepted[ids[0]] = request
        more = cpp.plan()
        assert twin.plan() == more
        for name in PLAN_FIELDS:
            theirs, ours = getattr(cpp, name), getattr(twin, name)
            assert theirs.dtype == ours.dtype and theirs.shape == ours.shape, name
            assert np.array_equal(theirs, ours), name
        if not more and not in_flight and not pending:
            break
        if more:
            assert 0 < len(cpp.token_ids) <= max_batch_tokens
            in_flight.append(pages.run(twin))
            pages.check(twin, twin.scheduled)
        check_pool(twin)
        if len(in_flight) > ahead or (in_flight and not more):
            tokens = in_flight.pop(0)
            for scheduler in (cpp, twin):
                scheduler.accept(tokens, values(tokens))
        check_pool(twin)
        for name in (
            "num_free_pages",
            "num_cached_pages",
            "num_running",
            "num_waiting",
            "num_in_flight",
        ):
            assert getattr(cpp, name) == getattr(twin, name), name
        finished = cpp.take_finished()
        assert finished == twin.take_finished()
        for request_id in finished:
            done[request_id] = cpp.take_results(request_id), twin.take_results(request_id)
    assert set(done) == set(accepted), "a request starved"
    for name in ("prefill_tokens", "cached_tokens", "generated_tokens", "preemptions"):
        assert getattr(cpp, name) == getattr(twin, name), name
    assert cpp.num_free_pages == num_pages
    for request_id, (theirs, ours) in done.items():
        check_results(accepted[request_id], theirs, ours)


@settings(max_examples=60, deadline=None)
@given(requests=requests, num_pages=st.integers(8, 24), max_batch_tokens=st.integers(1, 40))
def test_a_step_ahead_gives_the_same_samples(requests, num_pages, max_batch_tokens):
    options = {
        "num_pages": num_pages,
        "page_tokens": 4,
        "max_batch_tokens": max_batch_tokens,
        "max_sequences": 9,
        "max_positions": 30,
        "eos_token_ids": [5],
    }
    outcomes = [run_all(both(**options)[0], requests, ahead) for ahead in (0, 1)]
    assert outcomes[0] == outcomes[1]


def run_all(scheduler, requests, ahead):
    """The results of every request; up to `ahead` steps are planned before they are accepted."""
    in_flight, out = [], {}
    for request in requests:
        add(scheduler, request)
    while (more := scheduler.plan()) or in_flight:
        if more:
            in_flight.append(draws(scheduler))
        if len(in_flight) > ahead or not more:
            tokens = in_flight.pop(0)
            scheduler.accept(tokens, values(tokens))
        for i in scheduler.take_finished():
            results = scheduler.take_results(i)
            out[i] = [(a.tolist(), b.tolist(), *rest) for a, b, *rest in results]
    return out


def check_pool(scheduler):
    """Owners of a page are those sequences that list it; the others are free; free and owned make
    the pool.
    """
    owners = [0] * scheduler.num_pages
    for sequence in scheduler.running:
        for page in sequence.pages:
            owners[page] += 1
    assert owners == scheduler.pool.refs
    assert set(scheduler.pool.free) == {p for p, count in enumerate(owners) if count == 0}


def check_results(request, theirs, ours):
    assert len(theirs) == len(ours) == {SAMPLE: request["n"], SCORE: 1, HIDDEN: 0}[request["kind"]]
    for (ids, logprobs, reason, cut), other in zip(theirs, ours, strict=True):
        assert np.array_equal(ids, other[0]) and np.array_equal(logprobs, other[1])
        assert (reason, cut) == other[2:]
        if request["kind"] == SCORE:
            assert (
                ids.tolist() == ([*request["prompt"], 1])[-len(ids) :]
                or ids.tolist() == (request["prompt"][-len(ids) :])
            )
            assert np.array_equal(logprobs, values(ids))
            continue
        assert len(ids) == len(logprobs) <= request["max_tokens"]
        text = b"".join(BYTES[i] for i in ids)
        stopped = cut >= 0 or (ids[-1] == 5 and not request["ignore_eos"])
        lines = line_ends(ids.tolist()) if request["score_table"] == 0 else []
        stopped = stopped or len(ids) - 1 in lines
        assert not any(request["min_tokens"] <= at + 1 < len(ids) for at in lines)
        assert (reason == "stop") == (stopped or ids[-1] in request["stop_ids"])
        if cut >= 0:
            assert any(text[cut:].startswith(stop) for stop in request["stops"])


def line_ends(ids):
    """Tokens that end a line behind a number, by what the comment above says."""
    labelled, found, ends = False, False, []
    for at, token in enumerate(ids):
        number = labelled and token in (0, 4)
        found = found or number
        if (token == 5 and found) or (token == 0 and number):
            ends.append(at)
        labelled = token == 3 or (labelled and token in (1, 2))
    return ends


def drain(scheduler):
    """Run to the end; every token drawn is 0."""
    while scheduler.plan():
        count = len(scheduler.sample_rows)
        scheduler.accept(np.zeros(count, np.int32), np.zeros(count, np.float32))


@pytest.fixture(params=[0, 1], ids=["cpp", "python"])
def make(request):
    def build(**options):
        defaults = {
            "num_pages": 16,
            "page_tokens": 4,
            "max_batch_tokens": 64,
            "max_sequences": 8,
            "max_positions": 64,
            "eos_token_ids": [5],
        }
        return both(**(defaults | options))[request.param]

    return build


def queue(scheduler, prompt, n=1, max_tokens=4):
    return scheduler.add(
        np.array(prompt, np.int32), n, 1.0, 0, 1.0, 0.0, 1.0, max_tokens, 0, False, 0, [], []
    )


def test_a_long_prompt_does_not_hold_up_running_samples(make):
    scheduler = make(max_batch_tokens=8)
    queue(scheduler, [1, 2], max_tokens=12)
    scheduler.plan()
    scheduler.accept(np.zeros(1, np.int32), np.zeros(1, np.float32))
    queue(scheduler, [3] * 40, max_tokens=1)
    for _ in range(5):
        assert scheduler.plan()
        assert len(scheduler.token_ids) == 8  # one decode and seven of the prompt
        assert 0 in scheduler.logit_rows
        count = len(scheduler.sample_rows)
        scheduler.accept(np.zeros(count, np.int32), np.zeros(count, np.float32))


def test_a_preempted_sample_is_prefilled_again_and_not_taken_for_a_decode(make):
    scheduler = make(num_pages=6)
    queue(scheduler, [1, 2, 3, 4, 1, 2], max_tokens=8)
    queue(scheduler, [2, 2, 3, 4, 1, 2], max_tokens=8)
    rows = []
    while scheduler.plan():
        rows.append(np.diff(scheduler.row_starts).tolist())
        assert len(scheduler.sample_rows) == len(scheduler.logit_rows) > 0
        count = len(scheduler.sample_rows)
        scheduler.accept(np.zeros(count, np.int32), np.zeros(count, np.float32))
    assert scheduler.preemptions > 0
    assert any(len(step) == 1 and step[0] > 1 for step in rows[1:])
    assert sorted(scheduler.take_finished()) == [0, 1]
    assert scheduler.num_free_pages == 6


def test_the_tail_page_is_copied_for_all_samples_but_the_last(make):
    scheduler = make()
    queue(scheduler, [1, 2, 3, 4, 1, 2], n=3)
    scheduler.plan()
    scheduler.accept(np.array([1, 2, 3], np.int32), np.zeros(3, np.float32))
    scheduler.plan()
    assert len(scheduler.copies) == 2
    assert len(set(scheduler.copies[:, 0])) == 1
    first_pages = scheduler.block_table[:, 0]
    assert len(set(first_pages.tolist())) == 1
    assert len(set(scheduler.block_table[:, 1].tolist())) == 3


def test_a_full_last_page_needs_no_copy(make):
    scheduler = make()
    queue(scheduler, [1, 2, 3, 4], n=3)
    scheduler.plan()
    scheduler.accept(np.array([1, 2, 3], np.int32), np.zeros(3, np.float32))
    scheduler.plan()
    assert len(scheduler.copies) == 0
    assert len(set(scheduler.block_table[:, 1].tolist())) == 3


def test_the_longest_unused_prefix_is_overwritten_first(make):
    scheduler = make(num_pages=6)
    for first in (1, 2):
        queue(scheduler, [first] * 4 + [0], max_tokens=1)
        drain(scheduler)
    queue(scheduler, [1] * 4 + [2], max_tokens=1)  # used again: now the younger one
    drain(scheduler)
    assert scheduler.cached_tokens == 4
    queue(scheduler, [3] * 20, max_tokens=1)  # needs five of the six pages
    drain(scheduler)
    queue(scheduler, [1] * 4 + [0], max_tokens=1)
    drain(scheduler)
    assert scheduler.cached_tokens == 8
    queue(scheduler, [2] * 4 + [0], max_tokens=1)
    drain(scheduler)
    assert scheduler.cached_tokens == 8


def test_weights_cannot_change_while_requests_run(make):
    scheduler = make()
    queue(scheduler, [1, 2])
    with pytest.raises(RuntimeError, match="weights changed"):
        scheduler.set_weights_version(7)
    drain(scheduler)
    scheduler.set_weights_version(7)
    assert scheduler.num_cached_pages == 0


def test_accept_wants_one_token_per_sampling_row(make):
    scheduler = make()
    queue(scheduler, [1, 2], n=2)
    scheduler.plan()
    with pytest.raises(ValueError, match="one token for each"):
        scheduler.accept(np.zeros(1, np.int32), np.zeros(1, np.float32))


def test_a_long_prompt_does_not_hold_up_others(make):
    scheduler = make(max_batch_tokens=8, num_pages=24)
    queue(scheduler, [3] * 60, max_tokens=1)
    for first in (1, 2):
        queue(scheduler, [first] * 3, max_tokens=1)
    assert scheduler.plan()
    assert np.diff(scheduler.row_starts).tolist() == [4, 3, 1]


def test_unknown_tokens_point_at_the_step_before(make):
    scheduler = make()
    queue(scheduler, [1, 2], n=2, max_tokens=3)
    assert scheduler.plan() and scheduler.plan()
    assert scheduler.token_ids.tolist() == [-1, -2]
    with pytest.raises(RuntimeError, match="two steps are in flight"):
        scheduler.plan()
    scheduler.accept(np.array([5, 1], np.int32), np.zeros(2, np.float32))  # the first one ends
    assert scheduler.num_running == 1
    assert scheduler.plan()
    assert scheduler.token_ids.tolist() == [-2]
    scheduler.accept(np.array([3, 4], np.int32), np.zeros(2, np.float32))
    assert not scheduler.plan()  # three tokens are drawn, the last is on its way
    scheduler.accept(np.array([2], np.int32), np.zeros(1, np.float32))
    results = scheduler.take_results(0)
    assert [r[0].tolist() for r in results] == [[5], [1, 4, 2]]
    assert scheduler.num_free_pages == 16


def test_a_penalty_waits_for_its_tokens(make):
    scheduler = make()
    scheduler.add(np.array([1, 2], np.int32), 1, 1.0, 0, 1.0, 0.0, 1.5, 3, 0, False, 0, [], [])
    assert scheduler.plan()
    assert not scheduler.plan()
    scheduler.accept(np.array([4], np.int32), np.zeros(1, np.float32))
    assert scheduler.plan()
    assert scheduler.history.tolist() == [1, 2, 4]


def test_a_scored_request_reads_its_own_tokens(make):
    scheduler = make(max_batch_tokens=4)
    prompt = np.array([1, 2, 3, 4, 1, 2, 3], np.int32)
    scheduler.add(prompt, 1, 1.0, 0, 1.0, 0.0, 1.0, 1, 0, False, 0, [], [], -1, 2, SCORE)
    forced = []
    while scheduler.plan():
        forced += scheduler.forced.tolist()
        scheduler.accept(scheduler.forced.copy(), -scheduler.forced.astype(np.float32))
    assert forced == [4, 1, 2, 3]
    ((ids, logprobs, reason, _),) = scheduler.take_results(0)
    assert (ids.tolist(), logprobs.tolist(), reason) == (forced, [-4, -1, -2, -3], "length")
