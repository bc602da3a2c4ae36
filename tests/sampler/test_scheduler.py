"""The C++ scheduler against its Python twin on random traffic, and both against the rules of the
house.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_fast.kernels.native import native
from srlm_fast.sampler.scheduler import PLAN_FIELDS, Scheduler

BYTES = [bytes([97 + i]) for i in range(6)]


def both(**options):
    pair = (native().Scheduler(**options), Scheduler(**options))
    for scheduler in pair:
        scheduler.set_token_bytes(BYTES)
    return pair


requests = st.lists(
    st.fixed_dictionaries(
        {
            "step": st.integers(0, 12),
            # Few different tokens and a common head: prefixes repeat, within a batch and over time.
            "prompt": st.tuples(
                st.sampled_from([0, 0, 3, 4, 8, 9, 17]), st.lists(st.integers(0, 2), max_size=9)
            ).map(lambda parts: ([1, 2] * 9)[: parts[0]] + parts[1] or [1]),
            "n": st.integers(0, 4),
            "max_tokens": st.integers(1, 9),
            "min_tokens": st.integers(0, 2),
            "penalty": st.sampled_from([1.0, 1.3]),
            "ignore_eos": st.booleans(),
            "stop_ids": st.sampled_from([[], [4]]),
            "stops": st.sampled_from([[], [b"cb"], [b"aa", b"bab"]]),
        }
    ),
    max_size=14,
)


def add(scheduler, request):
    """The id, or the refusal."""
    try:
        return scheduler.add(
            np.array(request["prompt"], np.int32),
            request["n"],
            0.5,
            3,
            0.75,
            0.25,
            request["penalty"],
            request["max_tokens"],
            min(request["min_tokens"], request["max_tokens"]),
            request["ignore_eos"],
            2**64 - 3,
            request["stop_ids"],
            request["stops"],
        )
    except ValueError as error:
        return str(error)


class Pages:
    """What stands in the pages, as the forward would write it: token and position of every slot."""

    def __init__(self, page_tokens):
        self.size, self.held = page_tokens, {}

    def run(self, plan):
        before = dict(self.held)
        for source, target in plan.copies.tolist():
            for offset in range(self.size):
                self.held[target * self.size + offset] = before.get(source * self.size + offset)
        slots = plan.slots.tolist()
        assert len(set(slots)) == len(slots), "two rows write one slot"
        for slot, token, position in zip(slots, plan.token_ids, plan.positions, strict=True):
            self.held[slot] = (int(token), int(position))

    def check(self, plan, sequences):
        """Pages that are written have one writer, and what a row will see are its own tokens,
        written by now.
        """
        writers = {}
        for s, sequence in enumerate(sequences):
            rows = slice(plan.row_starts[s], plan.row_starts[s + 1])
            for page in set((plan.slots[rows] // self.size).tolist()):
                assert writers.setdefault(page, s) == s, "two owners write one page"
            length = int(plan.context_lengths[s])
            assert plan.positions[rows].tolist() == list(range(sequence.computed, length))
            for position in range(length):
                slot = int(plan.block_table[s][position // self.size]) * self.size
                seen = self.held[slot + position % self.size]
                assert seen == (sequence.tokens[position], position)


@settings(max_examples=120, deadline=None)
@given(
    requests=requests,
    num_pages=st.integers(3, 24),
    page_tokens=st.sampled_from([2, 4]),
    max_batch_tokens=st.integers(1, 40),
    max_sequences=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_cpp_equals_python_on_random_traffic(
    requests, num_pages, page_tokens, max_batch_tokens, max_sequences, seed
):
    cpp, twin = both(
        num_pages=num_pages,
        page_tokens=page_tokens,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        max_positions=30,
        eos_token_ids=[5],
    )
    draw = np.random.default_rng(seed)
    pages, accepted, done = Pages(page_tokens), {}, {}
    pending = sorted(requests, key=lambda r: r["step"])
    for step in range(4000):
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
        if not more and not pending:
            break
        assert len(cpp.token_ids) <= max_batch_tokens
        pages.run(twin)
        pages.check(twin, twin.scheduled)
        check_pool(twin)
        tokens = draw.integers(0, 6, len(cpp.sample_rows)).astype(np.int32)
        logprobs = -draw.random(len(tokens)).astype(np.float32)
        cpp.accept(tokens, logprobs)
        twin.accept(tokens, logprobs)
        check_pool(twin)
        for name in ("num_free_pages", "num_cached_pages", "num_running", "num_waiting"):
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
    assert len(theirs) == len(ours) == request["n"]
    for (ids, logprobs, reason, cut), other in zip(theirs, ours, strict=True):
        assert np.array_equal(ids, other[0]) and np.array_equal(logprobs, other[1])
        assert (reason, cut) == other[2:]
        assert len(ids) == len(logprobs) <= request["max_tokens"]
        text = b"".join(BYTES[i] for i in ids)
        stopped = cut >= 0 or (ids[-1] == 5 and not request["ignore_eos"])
        assert (reason == "stop") == (stopped or ids[-1] in request["stop_ids"])
        if cut >= 0:
            assert any(text[cut:].startswith(stop) for stop in request["stops"])


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
