"""One step of sampling, logits -> token and its raw log-probability, in one launch.

For a row of logits z [V] with seen tokens S, forbidden tokens B and parameters of the sample:

    z'_i = z_i / penalty if z_i > 0 else z_i * penalty   for i in S;    z'_i = -inf for i in B
    w_i  = exp((z'_i - max z') / temperature);  rank tokens by w, equal ones by id
    keep the first top_k; among them the first that reach top_p of their mass (the one that
        crosses stays); among them those with w_i >= min_p
    u = noise of (key, position), 53 bits, splitmix64
    token = the first i, in order of id, whose cumulative kept mass exceeds u * total
    logprob = z_token - logsumexp(z)

Temperature 0 takes the largest z', the lowest id among equals. A row that holds NaN or +inf, or
where nothing is allowed, gives token 0 and the log-probability NaN.

Triton: a program draws one sample, in fp32, with no look at any other. Nothing is sorted. Tokens
are ranked by z' itself, so that top_k is exact; only where the mass comes within rounding of top_p
or of u * total can the choice differ from the reference, which is in double. A row is cut into 16
segments of neighbouring ids, one to a warp. What is read, with b bytes a logit:

    edit        only with a penalty, forbidden tokens or a mask: 1 byte per token is written
                (0 as it is, 1 seen, 2 forbidden) and read beside each logit from there on
    statistics  b V: maximum and sum of z, maximum and mass of z' per group of tokens
    candidates  b V, only with top_k, top_p or min_p: lists, in order of id and as fp32, the z' that
                may be kept. What may not: below the k-th largest maximum of the 512 groups (k
                tokens lie at or above it), lighter than half of (1 - top_p) * mass / V (all
                tokens below twice that together have less than 1 - top_p of the mass), or than
                half of min_p
    search      4 C of C candidates for each 7 pivots, until one value is left: the cut
    draw        4 C for the mass kept of each segment, then b V / 16 for the token

So one read of the row for plain temperature, two and a sixteenth with options. C is some hundreds
where a model has learnt something, and most of V where logits are flat: then the lists go through
memory (4 N V bytes), 4 to 8 times. The order of every sum is fixed by V, the dtype and the
alignment of the rows: the same bits in any company.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import jit
from .contracts import check_tensor
from .jit import tl, triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEGMENTS = 16
ROWS = 32  # threads to a segment: a warp
# Buffers of a pass over a row, of one step each (8 KB; 1 is no pipeline); tokens of a segment in a
# step of the search; tokens in a step of the draw. Not measured on a GPU yet.
_STAGES, _SEARCH_STEP, _DRAW_STEP = 4, 128, 2048

_LOG2E = tl.constexpr(1.4426950408889634) if jit.HAS_TRITON else 1.4426950408889634
_LARGEST = tl.constexpr(3.4028234663852886e38) if jit.HAS_TRITON else 3.4028234663852886e38
_UNLIMITED = tl.constexpr(1 << 30) if jit.HAS_TRITON else 1 << 30


@dataclass(frozen=True)
class SamplingWorkspace:
    """Scratch of up to N samples: 5 bytes for each of N V tokens. Content does not matter."""

    candidates: Tensor  # [N, SEGMENTS * segment] fp32
    flags: Tensor  # [N, V] int8

    @classmethod
    def empty(cls, num_samples: int, vocab: int, device: torch.device | str) -> SamplingWorkspace:
        shape = (num_samples, SEGMENTS * _segment(vocab))
        candidates = torch.empty(shape, dtype=torch.float32, device=device)
        flags = torch.empty((num_samples, vocab), dtype=torch.int8, device=device)
        return cls(candidates, flags)


def sample_tokens_reference(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition_penalty: Tensor,
    noise_keys: Tensor,
    positions: Tensor,
    history: Tensor,
    history_starts: Tensor,
    banned: Tensor,
    banned_starts: Tensor,
    masks: Tensor | None = None,
    mask_rows: Tensor | None = None,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, one sample after another in double; waits for a GPU. Shapes as `sample_tokens`."""
    tokens = torch.zeros(len(rows), dtype=torch.int32, device=logits.device)
    logprobs = torch.zeros(len(rows), dtype=torch.float32, device=logits.device)
    for n in range(len(rows)):
        if rows[n] < 0:
            continue
        raw = logits[rows[n].long()].double()
        seen = history[history_starts[n] : history_starts[n + 1]].long()
        z = raw.clone()
        z[seen] = torch.where(
            raw[seen] > 0, raw[seen] / repetition_penalty[n], raw[seen] * repetition_penalty[n]
        )
        z[banned[banned_starts[n] : banned_starts[n + 1]].long()] = -torch.inf
        if masks is not None and mask_rows[n] >= 0:
            ids = torch.arange(len(z), device=z.device)
            z[masks[mask_rows[n].long()][ids // 32] >> ids % 32 & 1 == 0] = -torch.inf
        if raw.isnan().any() or raw.max() == torch.inf or z.max() == -torch.inf:
            logprobs[n] = torch.nan
            continue
        if forced is not None and forced[n] >= 0:
            token = forced[n].long()
        elif temperature[n] == 0:
            token = z.argmax()
        else:
            weights = ((z - z.max()) / temperature[n]).exp()
            kept = weights * kept_tokens(weights, int(top_k[n]), float(top_p[n]), float(min_p[n]))
            cumulative = kept.cumsum(0)
            uniform = noise_uniform_reference(int(noise_keys[n]), int(positions[n]))
            beyond = cumulative > uniform * cumulative[-1]
            token = (beyond if beyond.any() else kept).nonzero()[0 if beyond.any() else -1, 0]
        tokens[n] = token
        logprobs[n] = raw[token] - raw.logsumexp(0)
    return tokens, logprobs


def kept_tokens(weights: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """weights [V], largest 1 -> bool [V]: what top-k, top-p and min-p leave."""
    ranked, order = weights.sort(descending=True, stable=True)
    if 0 < top_k < len(weights):
        ranked[top_k:] = 0
    before = ranked.cumsum(0) - ranked
    keep = (ranked > 0) & (ranked >= min_p)
    if top_p < 1:
        keep &= before < top_p * ranked.sum()
    return torch.zeros_like(keep).scatter(0, order, keep)


def noise_uniform_reference(key: int, position: int) -> float:
    """Uniform in [0, 1) with 53 bits: splitmix64 (Steele, Lea, Flood 2014) twice."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    return (mix((key & mask) ^ mix(position)) >> 11) * 2.0**-53


# Noise


@triton.jit
def _mix(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def noise_uniform(key, position):
    """int64 or int32 scalars or blocks -> fp64 in [0, 1)."""
    bits = _mix(key.to(tl.uint64) ^ _mix(position.to(tl.uint64)))
    return (bits >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


# Scores and their weights


@triton.jit
def _write_flags(
    flags_ptr, vocab,
    history_ptr, history_start, history_end, banned_ptr, banned_start, banned_end, mask_ptr, masked,
    HAS_MASKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Three rounds, the later over the earlier: stores of one round to one place are equal."""
    lanes = tl.arange(0, BLOCK)
    for start in range(0, vocab, BLOCK):
        ids = start + lanes
        tl.store(flags_ptr + ids, tl.zeros([BLOCK], tl.int8), mask=ids < vocab)
    tl.debug_barrier()
    for start in range(history_start, history_end, BLOCK):
        at = start + lanes
        ids = tl.load(history_ptr + at, mask=at < history_end, other=-1)
        tl.store(flags_ptr + ids, tl.full([BLOCK], 1, tl.int8), mask=(ids >= 0) & (ids < vocab))
    tl.debug_barrier()
    for start in range(banned_start, banned_end, BLOCK):
        at = start + lanes
        ids = tl.load(banned_ptr + at, mask=at < banned_end, other=-1)
        tl.store(flags_ptr + ids, tl.full([BLOCK], 2, tl.int8), mask=(ids >= 0) & (ids < vocab))
    if HAS_MASKS:
        if masked:
            for start in range(0, vocab, BLOCK):
                ids = start + lanes
                words = tl.load(mask_ptr + ids // 32, mask=ids < vocab, other=-1)
                forbidden = ((words >> (ids % 32)) & 1) == 0
                tl.store(flags_ptr + ids, tl.full([BLOCK], 2, tl.int8), mask=forbidden)
    tl.debug_barrier()


@triton.jit
def _raw_scores(logits_ptr, ids, vocab):
    """z, -inf beyond the vocabulary."""
    return tl.load(logits_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)


@triton.jit
def _edited(z, flags_ptr, ids, vocab, penalty):
    """z' of z."""
    flags = tl.load(flags_ptr + ids, mask=ids < vocab, other=0)
    # Exact division: another rounding would part tokens that the reference calls equal.
    seen = tl.where(z > 0, tl.div_rn(z, penalty), z * penalty)
    z = tl.where(flags == 1, seen, z)
    return tl.where(flags == 2, -float("inf"), z)


@triton.jit
def _scores(logits_ptr, flags_ptr, ids, vocab, penalty, EDITED: tl.constexpr):
    z = _raw_scores(logits_ptr, ids, vocab)
    if EDITED:
        z = _edited(z, flags_ptr, ids, vocab, penalty)
    return z


@triton.jit
def _weights(z, top, scale, floor):
    """exp((z - top) / temperature), 0 where that is below the floor."""
    weights = tl.exp2((z - top) * scale)
    return tl.where(weights >= floor, weights, 0.0)


@triton.jit
def _tile(segment, SEGMENTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Ids of the first step, [ROWS, SEGMENTS, LANES].

    In this order of dimensions, in which the compiler hands them out, a warp has a segment and a
    thread 16 bytes of neighbours, when loaded as when listed: nothing moves between threads.
    """
    rows = tl.arange(0, ROWS)[:, None, None] * LANES
    segments = tl.arange(0, SEGMENTS)[None, :, None] * segment
    return segments + rows + tl.arange(0, LANES)[None, None, :]


@triton.jit
def _add_masses(tops, sums, z, scale):
    """Largest value and sum of exp2((z - largest) * scale) of each group, one step further."""
    higher = tl.maximum(tops, tl.max(z, axis=2))
    sums *= tl.exp2((tops - higher) * scale)
    return higher, sums + tl.sum(tl.exp2((z - higher[:, :, None]) * scale), axis=2)


@triton.jit
def _statistics(
    logits_ptr, flags_ptr, vocab, segment, penalty, scale,
    EDITED: tl.constexpr, SEGMENTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """-> largest z, sum of exp(z - largest), and of each group [ROWS, SEGMENTS] the largest z' and
    its mass relative to that.

    A group without a finite score keeps the largest negative number, and has no mass.
    """
    ids = _tile(segment, SEGMENTS, ROWS, LANES)
    raw_tops = tl.full([ROWS, SEGMENTS], -_LARGEST, tl.float32)
    raw_sums = tl.zeros([ROWS, SEGMENTS], tl.float32)
    tops, sums = raw_tops, raw_sums
    for start in tl.range(0, segment, ROWS * LANES, num_stages=STAGES):
        raw = _raw_scores(logits_ptr, ids + start, vocab)
        raw_tops, raw_sums = _add_masses(raw_tops, raw_sums, raw, _LOG2E)
        z = raw
        if EDITED:
            z = _edited(raw, flags_ptr, ids + start, vocab, penalty)
        tops, sums = _add_masses(tops, sums, z, scale)
    raw_top = tl.max(raw_tops)
    return raw_top, tl.sum(raw_sums * tl.exp2((raw_tops - raw_top) * _LOG2E)), tops, sums


# Candidates and the cut among them


@triton.jit
def _list_candidates(
    logits_ptr, flags_ptr, candidates_ptr, vocab, segment, penalty, lowest,
    EDITED: tl.constexpr, SEGMENTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Lists the scores of at least `lowest` -> how many in each segment, the smallest of them."""
    ids = _tile(segment, SEGMENTS, ROWS, LANES)
    places = candidates_ptr + tl.arange(0, SEGMENTS)[None, :, None] * segment
    counts = tl.zeros([SEGMENTS], tl.int32)
    least = tl.full([ROWS, SEGMENTS], _LARGEST, tl.float32)
    for start in tl.range(0, segment, ROWS * LANES, num_stages=STAGES):
        z = _scores(logits_ptr, flags_ptr, ids + start, vocab, penalty, EDITED)
        listed = z >= lowest
        ones = listed.to(tl.int32)
        of_row = tl.sum(ones, axis=2)
        up_to = tl.trans(tl.cumsum(tl.trans(of_row), axis=1))
        before = counts[None, :] + up_to - of_row
        at = before[:, :, None] + tl.cumsum(ones, axis=2) - ones
        tl.store(places + at, z, mask=listed)
        counts += tl.sum(of_row, axis=0)
        least = tl.minimum(least, tl.min(tl.where(listed, z, _LARGEST), axis=2))
    tl.debug_barrier()
    return counts, tl.min(least)


@triton.jit
def _listed(candidates_ptr, segment, counts, start, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr):
    """[SEGMENTS, WIDTH] candidates from `start` on, -inf where a segment has no more."""
    at = start + tl.arange(0, WIDTH)[None, :]
    places = candidates_ptr + tl.arange(0, SEGMENTS)[:, None] * segment + at
    return tl.load(places, mask=at < counts[:, None], other=-float("inf"))


@triton.jit
def _rank(z):
    """int64 in the order of the fp32 z: -1 is the largest negative number, 0 both zeros."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits).to(tl.int64)


@triton.jit
def _ranked(rank):
    """The fp32 of a rank."""
    bits = rank.to(tl.int32)
    return tl.where(bits < 0, -bits | -0x80000000, bits).to(tl.float32, bitcast=True)


@triton.jit
def _find_cut(
    candidates_ptr, segment, counts, least, top, scale, wanted,
    BY_COUNT: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The largest candidate that has, with all as large, `wanted` in number or mass; and what those
    above it have.

    Bisection in eight over ranks in (low, high]: what is above low has as much as wanted, what is
    above high has less. A step also moves both to candidates that are there.
    """
    low, high = _rank(least) - 1, _rank(top)
    above = 0.0
    longest = tl.max(counts)
    while high - low > 1:
        width = high - low
        bottom, ceiling = _ranked(low), _ranked(high)
        pivots = ()
        masses = ()
        for k in tl.static_range(1, 8):
            pivots += (_ranked(low + width * k // 8),)
            masses += (tl.zeros([SEGMENTS, WIDTH], tl.float32),)
        smallest = tl.full([SEGMENTS, WIDTH], _LARGEST, tl.float32)
        largest = tl.full([SEGMENTS, WIDTH], -_LARGEST, tl.float32)
        for start in range(0, longest, WIDTH):
            z = _listed(candidates_ptr, segment, counts, start, SEGMENTS, WIDTH)
            mass = (z > -float("inf")).to(tl.float32) if BY_COUNT else tl.exp2((z - top) * scale)
            more = ()
            for k in tl.static_range(7):
                more += (masses[k] + tl.where(z > pivots[k], mass, 0.0),)
            masses = more
            within = (z > bottom) & (z <= ceiling)
            smallest = tl.minimum(smallest, tl.where(within, z, _LARGEST))
            largest = tl.maximum(largest, tl.where(within, z, -_LARGEST))
        reach = 0
        below = above
        for k in tl.static_range(7):
            mass = tl.sum(masses[6 - k])
            below = tl.where(mass < wanted, mass, below)
            reach += (mass >= wanted).to(tl.int32)
        above = below
        high = tl.minimum(low + width * (reach + 1) // 8, _rank(tl.max(largest)))
        low = tl.maximum(low + width * reach // 8, _rank(tl.min(smallest)) - 1)
        if high <= low:  # rounding: all together have less than wanted
            high = low + 1
            above = -_LARGEST
    return _ranked(high), above


@triton.jit
def _mass_above(
    candidates_ptr, segment, counts, top, scale, floor, cut,
    SEGMENTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of each segment: the mass above the cut, how many are equal to it."""
    masses = tl.zeros([SEGMENTS, WIDTH], tl.float32)
    ties = tl.zeros([SEGMENTS, WIDTH], tl.int32)
    for start in range(0, tl.max(counts), WIDTH):
        z = _listed(candidates_ptr, segment, counts, start, SEGMENTS, WIDTH)
        masses += tl.where(z > cut, _weights(z, top, scale, floor), 0.0)
        ties += ((z == cut) & (z > -float("inf"))).to(tl.int32)
    return tl.sum(masses, axis=1), tl.sum(ties, axis=1)


@triton.jit
def _draw(
    logits_ptr, flags_ptr, begin, end, vocab, penalty, top, scale, floor, cut, quota, mass, target,
    EDITED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first id of [begin, end) at which the cumulative mass, from `mass` on, exceeds the
    target; the last one with a mass where rounding leaves the target beyond.

    Kept is what is above the cut, and the first `quota` of what is equal to it.
    """
    first, last = vocab, begin
    num_ties = 0
    for start in range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        z = _scores(logits_ptr, flags_ptr, ids, end, penalty, EDITED)
        tie = (z == cut).to(tl.int32)
        rank = num_ties + tl.cumsum(tie) - tie
        kept = (z > cut) | ((z == cut) & (rank < quota))
        weights = tl.where(kept, _weights(z, top, scale, floor), 0.0)
        cumulative = mass + tl.cumsum(weights)
        hit = (weights > 0) & (cumulative > target)
        first = tl.minimum(first, tl.min(tl.where(hit, ids, vocab)))
        last = tl.maximum(last, tl.max(tl.where(weights > 0, ids, 0)))
        mass = tl.max(cumulative)
        num_ties += tl.sum(tie)
    return tl.where(first < vocab, first, last)


@triton.jit
def _sample_kernel(
    logits_ptr, rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, penalty_ptr,
    keys_ptr, positions_ptr, history_ptr, history_starts_ptr, banned_ptr, banned_starts_ptr,
    masks_ptr, mask_rows_ptr, forced_ptr, candidates_ptr, flags_ptr, tokens_ptr, logprobs_ptr,
    vocab, segment, stride_logits, stride_masks,
    HAS_MASKS: tl.constexpr, HAS_FORCED: tl.constexpr,
    SEGMENTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    STAGES: tl.constexpr, SEARCH: tl.constexpr, DRAW: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + n).to(tl.int64)
    if row < 0:
        tl.store(tokens_ptr + n, 0)
        tl.store(logprobs_ptr + n, 0.0)
    else:
        logits_ptr += row * stride_logits
        candidates_ptr += n * SEGMENTS * segment
        flags_ptr += n * vocab
        temperature = tl.load(temperature_ptr + n)
        greedy = temperature == 0
        # Bounded, so that 0 * scale is 0.
        scale = tl.where(greedy, _LOG2E, tl.minimum(_LOG2E / temperature, 1e37))
        penalty = tl.load(penalty_ptr + n)

        history_start = tl.load(history_starts_ptr + n)
        history_end = tl.load(history_starts_ptr + n + 1)
        history_end = tl.where(penalty == 1, history_start, history_end)
        banned_start = tl.load(banned_starts_ptr + n)
        banned_end = tl.load(banned_starts_ptr + n + 1)
        mask_row = tl.load(mask_rows_ptr + n).to(tl.int64) if HAS_MASKS else -1
        edited = (history_start < history_end) | (banned_start < banned_end) | (mask_row >= 0)
        if edited:
            _write_flags(
                flags_ptr, vocab,
                history_ptr, history_start, history_end, banned_ptr, banned_start, banned_end,
                masks_ptr + mask_row * stride_masks, mask_row >= 0,
                HAS_MASKS, DRAW,
            )  # fmt: skip

        if edited:
            raw_top, raw_sum, tops, sums = _statistics(
                logits_ptr, flags_ptr, vocab, segment, penalty, scale,
                True, SEGMENTS, ROWS, LANES, STAGES,
            )  # fmt: skip
        else:
            raw_top, raw_sum, tops, sums = _statistics(
                logits_ptr, flags_ptr, vocab, segment, penalty, scale,
                False, SEGMENTS, ROWS, LANES, STAGES,
            )  # fmt: skip
        top = tl.max(tops)
        masses = tl.sum(sums * tl.exp2((tops - top) * scale), axis=0)
        total = tl.sum(masses)
        forced = tl.load(forced_ptr + n) if HAS_FORCED else -1
        if (forced >= 0) & (raw_sum < float("inf")):
            tl.store(tokens_ptr + n, forced)
            raw = tl.load(logits_ptr + forced).to(tl.float32)
            tl.store(logprobs_ptr + n, raw - raw_top - tl.log(raw_sum))
        elif (raw_sum < float("inf")) & (total > 0) & (total < float("inf")):  # NaN is none of them
            floor = tl.load(min_p_ptr + n)
            cut, quotas = -float("inf"), tl.zeros([SEGMENTS], tl.int32)
            if greedy:
                floor = 0.0
                cut, quotas = top, quotas + 1
                masses = (tl.max(tops, axis=0) == top).to(tl.float32)
            else:
                cut, quotas, masses = _keep(
                    logits_ptr, flags_ptr, candidates_ptr, vocab, segment,
                    penalty, top, scale, tops, masses, total,
                    tl.load(top_k_ptr + n), tl.load(top_p_ptr + n), floor,
                    edited, SEGMENTS, ROWS, LANES, STAGES, SEARCH,
                )  # fmt: skip

            uniform = noise_uniform(tl.load(keys_ptr + n), tl.load(positions_ptr + n))
            uniform = tl.where(greedy, 0.0, uniform)
            cumulative = tl.cumsum(masses)
            target = (uniform * tl.max(cumulative).to(tl.float64)).to(tl.float32)
            index = tl.arange(0, SEGMENTS)
            chosen = tl.min(tl.where((masses > 0) & (cumulative > target), index, SEGMENTS))
            last = tl.max(tl.where(masses > 0, index, 0))
            chosen = tl.minimum(chosen, last)
            before = tl.sum(tl.where(index == chosen - 1, cumulative, 0.0))
            quota = tl.sum(tl.where(index == chosen, quotas, 0))
            begin = chosen * segment
            end = tl.minimum(begin + segment, vocab)
            if edited:
                token = _draw(
                    logits_ptr, flags_ptr, begin, end, vocab, penalty, top, scale, floor,
                    cut, quota, before, target, True, DRAW,
                )  # fmt: skip
            else:
                token = _draw(
                    logits_ptr, flags_ptr, begin, end, vocab, penalty, top, scale, floor,
                    cut, quota, before, target, False, DRAW,
                )  # fmt: skip
            tl.store(tokens_ptr + n, token)
            raw = tl.load(logits_ptr + token).to(tl.float32)
            tl.store(logprobs_ptr + n, raw - raw_top - tl.log(raw_sum))
        else:
            tl.store(tokens_ptr + n, 0)
            tl.store(logprobs_ptr + n, float("nan"))


@triton.jit
def _keep(
    logits_ptr, flags_ptr, candidates_ptr, vocab, segment,
    penalty, top, scale, tops, masses, total, top_k, top_p, floor,
    edited, SEGMENTS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """-> the cut, how many equal to it each segment keeps, the mass each segment keeps."""
    by_count, by_mass = (top_k > 0) & (top_k < vocab), top_p < 1
    cut, quotas = -float("inf"), tl.zeros([SEGMENTS], tl.int32)
    if by_count | by_mass | (floor > 0):
        # What no candidate is below: see the top of this file. Where top_p is taken of the first
        # top_k, all of those count towards it, also what min_p then drops.
        lightest = -float("inf")
        if (floor > 0) & ~(by_count & by_mass):
            lightest = tl.log2(floor) - 1
        if by_mass & ~by_count:
            lightest = tl.maximum(lightest, tl.log2((1 - top_p) * total / vocab) - 1)
        lowest = -_LARGEST
        if by_count & (top_k <= SEGMENTS * ROWS):
            places = tl.arange(0, SEGMENTS)[None, :] * segment + tl.arange(0, ROWS)[:, None]
            tl.store(candidates_ptr + places, tops)
            tl.debug_barrier()
            lowest, _ = _find_cut(
                candidates_ptr, segment, tl.full([SEGMENTS], ROWS, tl.int32), lowest, top, scale,
                top_k.to(tl.float32), True, SEGMENTS, SEARCH,
            )  # fmt: skip
            tl.debug_barrier()
        # In the unit of scores, less what rounding may add.
        depth = lightest / scale
        depth -= 1e-6 * (tl.abs(top) - depth)
        lowest = tl.maximum(lowest, top + depth)
        if edited:
            counts, least = _list_candidates(
                logits_ptr, flags_ptr, candidates_ptr, vocab, segment,
                penalty, lowest, True, SEGMENTS, ROWS, LANES, STAGES,
            )  # fmt: skip
        else:
            counts, least = _list_candidates(
                logits_ptr, flags_ptr, candidates_ptr, vocab, segment,
                penalty, lowest, False, SEGMENTS, ROWS, LANES, STAGES,
            )  # fmt: skip

        cut, quota = least, _UNLIMITED  # all that are listed
        if by_count:
            count = tl.minimum(top_k, tl.sum(counts))
            cut, above = _find_cut(
                candidates_ptr, segment, counts, least, top, scale,
                count.to(tl.float32), True, SEGMENTS, SEARCH,
            )  # fmt: skip
            quota = count - above.to(tl.int32)
            if by_mass:
                masses, _ = _mass_above(
                    candidates_ptr, segment, counts, top, scale, 0.0, cut, SEGMENTS, SEARCH
                )
                total = tl.sum(masses) + quota * tl.exp2((cut - top) * scale)
        if by_mass:
            wanted = top_p * total
            lower, above = _find_cut(
                candidates_ptr, segment, counts, cut, top, scale,
                wanted, False, SEGMENTS, SEARCH,
            )  # fmt: skip
            crossing = tl.ceil((wanted - above) / tl.exp2((lower - top) * scale))
            crossing = tl.minimum(tl.maximum(crossing, 1.0), 1.0 * _UNLIMITED).to(tl.int32)
            quota = tl.where(lower == cut, tl.minimum(quota, crossing), crossing)
            cut = lower

        masses, ties = _mass_above(
            candidates_ptr, segment, counts, top, scale, floor, cut, SEGMENTS, SEARCH
        )
        ties_before = tl.cumsum(ties) - ties
        quotas = tl.minimum(tl.maximum(quota - ties_before, 0), ties)
        masses += quotas * _weights(cut, top, scale, floor)
    return cut, quotas, masses


def _segment(vocab: int) -> int:
    """Tokens of a segment: whole steps of any dtype."""
    step = ROWS * 8
    return max(-(-vocab // (SEGMENTS * step)), 1) * step


def _lanes(logits: Tensor) -> int:
    """Neighbours that a thread takes at once: 16 bytes; rows without that alignment are read one
    by one, and more would spill.
    """
    size = logits.itemsize
    aligned = logits.data_ptr() % 16 == 0 and logits.stride(0) * size % 16 == 0
    return 16 // size if aligned else 4


@jit.on_its_device
def sample_tokens(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition_penalty: Tensor,
    noise_keys: Tensor,
    positions: Tensor,
    history: Tensor,
    history_starts: Tensor,
    banned: Tensor,
    banned_starts: Tensor,
    masks: Tensor | None = None,
    mask_rows: Tensor | None = None,
    forced: Tensor | None = None,
    *,
    tokens: Tensor | None = None,
    logprobs: Tensor | None = None,
    workspace: SamplingWorkspace | None = None,
) -> tuple[Tensor, Tensor]:
    """logits [U, V] and N samples -> tokens [N] int32, logprobs [N] fp32 in nats.

    rows [N]: the row of logits that each sample is drawn from; -1 for a sample that is not there
    (token 0, log-probability 0, nothing read). temperature, top_p, min_p, repetition_penalty [N]
    fp32; top_k [N] int32; off are top_k 0, top_p 1, min_p 0 and penalty 1. noise_keys [N] int64,
    the bits of a uint64; positions [N]. history and banned: token ids, those of sample n from
    starts[n] up to starts[n + 1], in any order, repeats count once. masks [M, ceil(V / 32)] int32:
    bit i % 32 of word i // 32 is set where token i is allowed; mask_rows [N] int32: a sample's
    mask, or -1.
    forced [N] int32: the token whose log-probability is wanted instead of a draw, or -1.

    tokens, logprobs: written to and returned. With them and a workspace of N samples or more
    nothing is allocated on a GPU; nothing is waited for and all bounds are read from memory, so a
    CUDA graph may hold the call. Rows of logits may be any stride apart.

    Raises ValueError naming the argument: shapes, dtypes, devices. Values are not looked at; ids
    outside the vocabulary are left out in Triton.
    """
    _check(
        logits, rows, temperature, top_k, top_p, min_p, repetition_penalty, noise_keys, positions,
        history, history_starts, banned, banned_starts, masks, mask_rows, forced,
        tokens, logprobs, workspace,
    )  # fmt: skip
    num_samples, vocab = len(rows), logits.shape[1]
    inputs = (
        rows, temperature, top_k, top_p, min_p, repetition_penalty, noise_keys, positions,
        history, history_starts, banned, banned_starts,
    )  # fmt: skip
    if tokens is None:
        tokens = torch.empty(num_samples, dtype=torch.int32, device=logits.device)
    if logprobs is None:
        logprobs = torch.empty(num_samples, dtype=torch.float32, device=logits.device)
    if num_samples == 0:
        return tokens, logprobs
    if not jit.runs_triton(logits):
        found = sample_tokens_reference(logits, *inputs, masks, mask_rows, forced)
        return tokens.copy_(found[0]), logprobs.copy_(found[1])

    workspace = workspace or SamplingWorkspace.empty(num_samples, vocab, logits.device)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    has_masks = masks is not None
    _sample_kernel[(num_samples,)](
        logits, *(x.contiguous() for x in inputs),
        masks.contiguous() if has_masks else rows, mask_rows.contiguous() if has_masks else rows,
        rows if forced is None else forced.contiguous(),
        workspace.candidates, workspace.flags, tokens, logprobs,
        vocab, _segment(vocab), logits.stride(0), masks.shape[1] if has_masks else 0,
        HAS_MASKS=has_masks, HAS_FORCED=forced is not None,
        SEGMENTS=SEGMENTS, ROWS=ROWS, LANES=_lanes(logits),
        STAGES=_STAGES, SEARCH=_SEARCH_STEP, DRAW=_DRAW_STEP, num_warps=SEGMENTS,
    )  # fmt: skip
    return tokens, logprobs


def _check(
    logits, rows, temperature, top_k, top_p, min_p, repetition_penalty, noise_keys, positions,
    history, history_starts, banned, banned_starts, masks, mask_rows, forced,
    tokens, logprobs, workspace,
) -> None:  # fmt: skip
    ints, int32, fp32 = (torch.int32, torch.int64), (torch.int32,), (torch.float32,)
    check_tensor("logits", logits, ("U", "V"), DTYPES)
    device, vocab = logits.device, logits.shape[1]
    check_tensor("rows", rows, ("N",), ints, device)
    size = len(rows)
    check_tensor("temperature", temperature, (size,), fp32, device)
    check_tensor("top_k", top_k, (size,), int32, device)
    check_tensor("top_p", top_p, (size,), fp32, device)
    check_tensor("min_p", min_p, (size,), fp32, device)
    check_tensor("repetition_penalty", repetition_penalty, (size,), fp32, device)
    check_tensor("noise_keys", noise_keys, (size,), (torch.int64,), device)
    check_tensor("positions", positions, (size,), ints, device)
    check_tensor("history", history, ("H",), int32, device)
    check_tensor("history_starts", history_starts, (size + 1,), int32, device)
    check_tensor("banned", banned, ("B",), int32, device)
    check_tensor("banned_starts", banned_starts, (size + 1,), int32, device)
    if masks is not None:
        check_tensor("masks", masks, ("M", -(-vocab // 32)), int32, device)
        check_tensor("mask_rows", mask_rows, (size,), int32, device)
    if forced is not None:
        check_tensor("forced", forced, (size,), int32, device)
    if tokens is not None:
        check_tensor("tokens", tokens, (size,), int32, device)
    if logprobs is not None:
        check_tensor("logprobs", logprobs, (size,), fp32, device)
    if workspace is not None:
        fits = len(workspace.candidates) >= size and workspace.flags.shape[1] == vocab
        if not fits or workspace.flags.device != device:
            raise ValueError(
                f"workspace: of {len(workspace.flags)} samples and vocabulary "
                f"{workspace.flags.shape[1]} on {workspace.flags.device}, wanted {size} or more "
                f"and {vocab} on {device}"
            )
