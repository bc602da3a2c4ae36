"""sample_tokens: every option against the definition in fp64; ties, edges, company, refusals.

A drawn token must be the one in whose part of the cumulative distribution the noise falls; within
1e-6 of a part's end, or of top_p, its neighbour will do.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from srlm_fast.kernels import SamplingWorkspace, jit, sample_tokens, sample_tokens_reference
from srlm_fast.sampler.noise import noise_uniform
from tests.conftest import HAS_GPU
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded, surrounded
from tests.kernels.three_way import assert_no_worse

module = sys.modules[sample_tokens.__module__]  # the package's own name is the function
tl, triton = jit.tl, jit.triton
INT32, FP32 = torch.int32, torch.float32
NAMES = (
    "logits rows temperature top_k top_p min_p repetition_penalty noise_keys positions history "
    "history_starts banned banned_starts masks mask_rows"
).split()
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
ROUNDING = 1e-6
# A sample takes 0.1 to 0.5 s in the interpreter.
SAMPLES, DRAWS = (300, 20_000) if HAS_GPU else (3, 32)
VOCABS = (1000, 5000, 32000, 128_256, 50_257) if HAS_GPU else (1000, 5001)


def inputs(logits, samples, device="cpu", masks=None, seed=0):
    """samples: dicts of row, position, history, banned, mask and what is in OFF."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**63), 2**63 - 1, (len(samples),), generator=generator)

    def flat(name):
        lists = [list(sample.get(name, ())) for sample in samples]
        ends = np.cumsum([0, *map(len, lists)])
        together = [token for tokens in lists for token in tokens]
        return torch.tensor(together, dtype=INT32), torch.tensor(ends, dtype=INT32)

    given = {"logits": logits, "noise_keys": keys, "masks": masks}
    given["rows"] = torch.tensor([sample.get("row", 0) for sample in samples], dtype=INT32)
    given["positions"] = torch.tensor(
        [sample.get("position", n) for n, sample in enumerate(samples)], dtype=torch.int64
    )
    for name, off in OFF.items():
        dtype = INT32 if name == "top_k" else FP32
        given[name] = torch.tensor([sample.get(name, off) for sample in samples], dtype=dtype)
    for name in ("history", "banned"):
        given[name], given[f"{name}_starts"] = flat(name)
    given["mask_rows"] = torch.tensor([sample.get("mask", -1) for sample in samples], dtype=INT32)
    return [None if given[name] is None else given[name].to(device) for name in NAMES]


def distribution(given, n, top_p_factor=1.0):
    """Of sample n, by the definition, in fp64 [V]."""
    x = dict(zip(NAMES, given, strict=True))
    z = x["logits"][int(x["rows"][n])].double().cpu().numpy().copy()
    raw = z.copy()
    penalty, temperature = float(x["repetition_penalty"][n]), float(x["temperature"][n])
    for i in set(x["history"][x["history_starts"][n] : x["history_starts"][n + 1]].tolist()):
        z[i] = raw[i] / penalty if raw[i] > 0 else raw[i] * penalty
    z[x["banned"][x["banned_starts"][n] : x["banned_starts"][n + 1]].tolist()] = -np.inf
    if x["masks"] is not None and x["mask_rows"][n] >= 0:
        words = x["masks"][int(x["mask_rows"][n])].cpu().numpy().view(np.uint8)
        z[np.unpackbits(words, bitorder="little")[: len(z)] == 0] = -np.inf
    if temperature == 0:
        return np.eye(len(z))[z.argmax()]
    w = np.exp((z - z.max()) / temperature)
    ranking = np.lexsort((np.arange(len(z)), -w))[: int(x["top_k"][n]) or len(z)]
    if x["top_p"][n] < 1:
        mass = w[ranking].cumsum()
        wanted = float(x["top_p"][n]) * top_p_factor * mass[-1]
        ranking = ranking[: int(np.searchsorted(mass, wanted)) + 1]
    ranking = ranking[w[ranking] >= float(x["min_p"][n])]
    kept = np.zeros_like(w)
    kept[ranking] = w[ranking]
    return kept / kept.sum()


def noise_at(given, n, position):
    return noise_uniform(int(given[NAMES.index("noise_keys")][n]) & (2**64 - 1), position)


def noise(given, n):
    return noise_at(given, n, int(given[NAMES.index("positions")][n]))


def is_right(given, n, token):
    for factor in (1.0, 1 - ROUNDING, 1 + ROUNDING):
        p = distribution(given, n, factor)
        end = p[: token + 1].sum()
        if p[token] > 0 and end - p[token] - ROUNDING <= noise(given, n) < end + ROUNDING:
            return True
    return False


def assert_draws(given, **options):
    """Tokens as the definition has them, log-probabilities as exact as eager ones."""
    if isinstance(given[0], torch.Tensor) and given[0].device.type == "cpu":
        given = [surrounded(given[0]), *given[1:]]
    with guarded():
        tokens, logprobs = sample_tokens(*given, **options)
    assert tokens.dtype == INT32 and logprobs.dtype == FP32
    reference = sample_tokens_reference(*given)
    rows = given[0][given[1].long()]
    index = tokens.long()[:, None]
    truth = rows.double().log_softmax(-1).gather(1, index)[:, 0]
    eager = rows.float().log_softmax(-1).gather(1, index)[:, 0]
    assert_no_worse(logprobs, eager, truth, 1e-6, "logprobs")
    differ = (tokens != reference[0]).nonzero().flatten().tolist()
    assert len(differ) <= 1 + 0.01 * len(tokens), f"samples {differ} of {len(tokens)}"
    for n in differ:
        assert is_right(given, n, int(tokens[n])), f"sample {n}: {int(tokens[n])}"
    return tokens, logprobs


KINDS = {
    "random": lambda x: 3 * x,
    "flat": lambda x: 0.1 * x,
    "peaked": lambda x: 12 * x,
    "few values": lambda x: x.round(),
    "equal": lambda x: 0 * x + 0.5,
    "hundreds": lambda x: 100 * x.sign(),
    "with -inf": lambda x: torch.where(x > -0.5, x, -torch.inf),
}


def make_logits(rows, vocab, kind="random", dtype=torch.bfloat16, seed=1):
    x = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    return KINDS[kind](x).to(dtype)


HISTORY = [*range(0, 400, 2)] * 2 + [7]
OPTIONS = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "greedy": {"temperature": 0.0},
    "greedy with penalty": {"temperature": 0.0, "repetition_penalty": 3.0, "history": HISTORY},
    "top-k": {"top_k": 20},
    "top-k of 1": {"top_k": 1, "temperature": 5.0},
    "top-k of more than there are groups": {"top_k": 900},
    "top-k of everything": {"top_k": 10**6},
    "top-p": {"top_p": 0.9, "temperature": 0.7},
    "top-p, tiny": {"top_p": 1e-6},
    "top-p, almost 1": {"top_p": 0.99999},
    "min-p": {"min_p": 0.1},
    "min-p of 1": {"min_p": 1.0, "temperature": 9.0},
    "penalty": {"repetition_penalty": 1.7, "history": HISTORY},
    "reward": {"repetition_penalty": 0.6, "history": HISTORY, "top_p": 0.7},
    "history without penalty": {"history": HISTORY},
    "banned": {"banned": [2, 7, 900], "top_k": 30},
    "mask": {"mask": 0, "top_p": 0.8},
    "mask without a row": {"mask": -1},
    "everything": {
        "temperature": 1.4, "top_k": 60, "top_p": 0.8, "min_p": 0.02,
        "repetition_penalty": 1.3, "history": HISTORY, "banned": [1, 5], "mask": 1,
    },
}  # fmt: skip


def make_masks(vocab, seed=2):
    """Half of the tokens; a tenth of them."""
    draws = torch.rand(2, -(-vocab // 32) * 32, generator=torch.Generator().manual_seed(seed))
    bits = (draws < torch.tensor([[0.5], [0.1]])).numpy()
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    return torch.from_numpy(words.copy())


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(kernel_device, name):
    for vocab in VOCABS:
        logits = make_logits(2, vocab, dtype=FP32 if "top-k" in name else torch.bfloat16)
        samples = [OPTIONS[name] | {"row": n % 2} for n in range(SAMPLES)]
        assert_draws(inputs(logits, samples, kernel_device, make_masks(vocab)))


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_options_mixed_in_a_batch(kernel_device, kind):
    """Samples of one row, options by turns, one place empty."""
    names = list(OPTIONS) if HAS_GPU else ["plain", "top-k", "top-p", "everything"]
    for dtype in (torch.float16, torch.bfloat16, FP32) if HAS_GPU else (torch.float16,):
        logits = make_logits(1, 1100, kind, dtype)
        given = inputs(logits, [OPTIONS[n] for n in names], kernel_device, make_masks(1100))
        assert_draws(given)


def with_noise(given, low, high=1.0):
    """At positions where every sample's noise is between these."""
    for n in range(len(given[1])):
        positions = (p for p in range(10**6) if low < noise_at(given, n, p) < high)
        given[NAMES.index("positions")][n] = next(positions)
    return given


def last_kept(given):
    """With noise near 1 every sample must draw the last token that its options keep."""
    tokens, _ = assert_draws(with_noise(given, 1 - 2e-4))
    wanted = [int(distribution(given, n).nonzero()[0][-1]) for n in range(len(given[1]))]
    assert tokens.tolist() == wanted
    return wanted


def test_ties_at_the_cut_go_by_id(kernel_device):
    """Ids of two segments: the last kept and the first that is not."""
    logits = torch.zeros(1, 700)
    logits[0, :250] = -1.0
    samples = [{"top_k": 40}, {"top_p": 0.25}, {"top_k": 300, "top_p": 0.401}, {"top_k": 455}]
    found = last_kept(inputs(logits, samples, kernel_device))
    assert (found[0], found[3]) == (289, 699)
    assert found[2] == 250 + 120 < found[1] < 699
    # 40 that are equal, then 100 that weigh 9: what follows the cut begins right behind the 40.
    logits[0, 600:] = np.log(9)
    given = inputs(logits, [{"top_k": 140}], kernel_device)
    assert int(assert_draws(with_noise(given, 39.2 / 940, 39.8 / 940))[0]) == 289
    assert int(assert_draws(with_noise(given, 40.2 / 940, 40.8 / 940))[0]) == 600


def test_the_token_that_crosses_p_is_kept(kernel_device):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    samples = [{"top_p": top_p} for top_p in (0.6, 0.45, 0.85, 0.49999, 0.50001)]
    assert last_kept(inputs(logits, samples, kernel_device)) == [1, 0, 2, 0, 1]


def test_the_last_kept_token_of_every_filter(kernel_device):
    """Scores fall with the id, so the last one kept is the least likely one."""
    logits = make_logits(1, 1000).sort(descending=True).values
    samples = [{"top_k": 7}, {"top_p": 0.5}, {"min_p": 0.3}, {"top_k": 30, "top_p": 0.8}]
    p = logits[0].double().softmax(0)
    before, of_30 = p.cumsum(0) - p, p[:30].sum()
    kept = [7, (before < 0.5).sum(), (p >= 0.3 * p[0]).sum(), (before[:30] < 0.8 * of_30).sum()]
    found = last_kept(inputs(logits, samples, kernel_device))
    assert found == [int(count) - 1 for count in kept]


def test_a_penalty_makes_tokens_less_likely_whatever_their_sign(kernel_device):
    for logits, best in ((torch.tensor([[2.0, 1.5, 1.0]]), 1), (torch.tensor([[-1.0, -2, -9]]), 1)):
        options = {"temperature": 0.0, "repetition_penalty": 3.0, "history": [0, 0]}
        given = inputs(logits, [options], kernel_device)
        assert sample_tokens(*given)[0].tolist() == [best]


def test_greedy_takes_the_lowest_of_the_largest_and_top_k_of_1_the_same(kernel_device):
    logits = make_logits(4, 1000, "few values")
    logits[3, 999] = 50
    logits[2] = -0.0
    logits[2, 700:] = 0.0
    for options in ({"temperature": 0.0}, {"top_k": 1}):
        samples = [options | {"row": n} for n in range(4)]
        tokens, _ = sample_tokens(*inputs(logits, samples, kernel_device))
        assert tokens.tolist() == logits.float().argmax(-1).tolist()


def test_rows_that_cannot_be_drawn_from(kernel_device):
    logits = make_logits(6, 600, dtype=FP32)
    logits[0, 17], logits[1, 599], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[4, 300:] = torch.finfo(FP32).min
    samples = [{"row": n, "top_p": 0.9} for n in range(3)] + [
        {"row": 0, "banned": [17]},
        {"row": 3, "banned": range(600)},
        {"row": 3, "banned": set(range(600)) - {321}},
        {"row": -1, "history": [1], "repetition_penalty": 2.0},
        {"row": 4},
    ]
    given = inputs(logits, samples, kernel_device)
    with guarded():
        tokens, logprobs = sample_tokens(*given)
    reference = sample_tokens_reference(*given)
    assert tokens.tolist() == reference[0].tolist()
    assert tokens.tolist()[:7] == [0, 0, 0, 0, 0, 321, 0]
    assert logprobs.isnan().tolist() == [True] * 5 + [False] * 3
    assert logprobs[6] == 0
    assert_close(logprobs, reference[1], equal_nan=True)


def test_one_token_allowed_by_a_mask(kernel_device):
    vocab = 77
    for token in (0, 31, 32, 76):
        masks = torch.zeros(1, 3, dtype=INT32)
        masks[0, token // 32] = int(np.int32(np.uint32(1 << token % 32)))
        given = inputs(make_logits(1, vocab), [{"mask": 0}], kernel_device, masks)
        assert assert_draws(given)[0].tolist() == [token]


def test_ids_outside_the_vocabulary_are_left_out(kernel_device):
    logits = make_logits(1, 300)
    strange = {"history": [-1, 300, 10**9], "banned": [300, -5], "repetition_penalty": 2.0}
    ours, plain = (
        sample_tokens(*inputs(logits, [options], kernel_device)) for options in (strange, {})
    )
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])


def test_results_do_not_depend_on_company(kernel_device):
    names = ["plain", "top-p", "everything", "greedy"] + (list(OPTIONS) if HAS_GPU else [])
    logits, masks = make_logits(3, 1100), make_masks(1100)
    samples = [OPTIONS[name] | {"row": n % 3, "position": n} for n, name in enumerate(names)]
    given = inputs(logits, samples, kernel_device, masks)
    tokens, logprobs = sample_tokens(*given)
    for n in range(3):
        alone = inputs(logits[n % 3][None], [samples[n] | {"row": 0}], kernel_device, masks)
        alone[NAMES.index("noise_keys")] = given[NAMES.index("noise_keys")][n : n + 1]
        found = sample_tokens(*alone)
        assert torch.equal(found[0], tokens[n : n + 1])
        assert torch.equal(found[1], logprobs[n : n + 1])


def test_strided_rows_given_outputs_and_a_larger_workspace(kernel_device):
    wide = make_logits(4, 1300).to(kernel_device)
    apart = wide[::2, 100:1100]
    samples = [{"row": n % 2, "top_p": 0.8} for n in range(2)]
    dense = sample_tokens(*inputs(apart.contiguous(), samples, kernel_device))
    workspace = SamplingWorkspace.empty(5, 1000, kernel_device)
    workspace.candidates.fill_(torch.nan)
    workspace.flags.fill_(77)
    tokens = torch.full((2,), -7, dtype=INT32, device=kernel_device)
    logprobs = torch.full((2,), torch.nan, device=kernel_device)
    options = {"tokens": tokens, "logprobs": logprobs, "workspace": workspace}
    found = sample_tokens(*inputs(apart, samples, kernel_device), **options)
    assert found[0] is tokens and found[1] is logprobs
    columns_apart = sample_tokens(*inputs(apart.t().contiguous().t(), samples, kernel_device))
    for result in (found, columns_apart):
        assert torch.equal(result[0], dense[0]) and torch.equal(result[1], dense[1])


CHI_SQUARE = ["plain", "cold", "top-k", "top-p", "min-p", "penalty", "everything"]


@pytest.mark.parametrize("name", CHI_SQUARE if HAS_GPU else ["plain", "top-p"])
def test_frequencies_are_the_distribution(kernel_device, name):
    """The seed is fixed, so this either always passes or never."""
    options = OPTIONS[name] | {"history": range(0, 30, 2), "banned": [4] * (name == "everything")}
    logits = make_logits(1, 40 if HAS_GPU else 8, "random")
    options.pop("mask", None)
    if not HAS_GPU:
        options["history"] = ()
    given = inputs(logits, [options] * DRAWS, kernel_device)
    given[NAMES.index("noise_keys")][:] = 12345
    tokens, _ = sample_tokens(*given)
    wanted = distribution(given, 0)
    counts = np.bincount(tokens.cpu().numpy(), minlength=len(wanted))
    assert counts[wanted == 0].sum() == 0
    often = wanted * DRAWS >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(wanted[often], wanted[~often].sum()) * DRAWS
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert len(observed) > 2
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@triton.jit
def _noise_kernel(keys_ptr, positions_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    noise = module_noise(tl.load(keys_ptr + at), tl.load(positions_ptr + at))
    tl.store(out_ptr + at, noise)


module_noise = module.noise_uniform


def test_the_noise_is_that_of_the_sampler_bit_for_bit(kernel_device):
    generator = torch.Generator().manual_seed(7)
    keys = torch.randint(-(2**63), 2**63 - 1, (64,), generator=generator)
    positions = torch.randint(0, 2**40, (64,), generator=generator)
    keys[:3], positions[:3] = torch.tensor([0, -1, -(2**63)]), torch.tensor([0, 1, 2**62])
    out = torch.full((64,), torch.nan, dtype=torch.float64, device=kernel_device)
    _noise_kernel[(1,)](keys.to(kernel_device), positions.to(kernel_device), out, BLOCK=64)
    pairs = list(zip(keys.tolist(), positions.tolist(), strict=True))
    wanted = [noise_uniform(key & (2**64 - 1), position) for key, position in pairs]
    assert out.tolist() == wanted
    assert [module.noise_uniform_reference(*pair) for pair in pairs] == wanted


def test_the_reference_is_the_definition():
    logits, masks = make_logits(1, 500, "few values"), make_masks(500)
    for name, options in OPTIONS.items():
        options = options | {"banned": [i for i in options.get("banned", ()) if i < 500]}
        given = inputs(logits, [options] * 20, "cpu", masks)
        tokens, logprobs = sample_tokens(*given)
        assert all(is_right(given, n, int(token)) for n, token in enumerate(tokens)), name
        assert_close(logprobs, logits.float().log_softmax(-1)[0][tokens.long()])


def test_no_samples(kernel_device):
    tokens, logprobs = sample_tokens(*inputs(make_logits(1, 40), [], kernel_device))
    assert tokens.shape == logprobs.shape == (0,)


@pytest.mark.gpu
def test_a_graph_holds_it():
    """Replays read what the buffers hold then."""
    logits, masks = make_logits(8, 32000).cuda(), make_masks(32000)
    first = inputs(logits, [OPTIONS["plain"] | {"row": n} for n in range(8)], "cuda", masks)
    last = [OPTIONS["everything"] | {"row": n} for n in range(7)] + [{"row": -1}]
    second = inputs(logits, last, "cuda", masks)
    static = [x.clone() for x in first]
    for name in ("history", "banned"):
        static[NAMES.index(name)] = torch.zeros(10_000, dtype=INT32, device="cuda")
    out = {
        "tokens": torch.empty(8, dtype=INT32, device="cuda"),
        "logprobs": torch.empty(8, device="cuda"),
        "workspace": SamplingWorkspace.empty(8, 32000, "cuda"),
    }
    sample_tokens(*static, **out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_tokens(*static, **out)
    for given in (first, second):
        for target, source in zip(static, given, strict=True):
            target[: len(source)].copy_(source)
        graph.replay()
        wanted = sample_tokens(*given)
        assert torch.equal(out["tokens"], wanted[0]) and torch.equal(out["logprobs"], wanted[1])


GOOD = dict(zip(NAMES, inputs(make_logits(2, 40), [{}, {}], "cpu", make_masks(40)), strict=True))
REFUSED = {
    "logits: shape [40], wanted [U, V]": {"logits": torch.zeros(40)},
    "logits: float64, wanted float32 or": {"logits": torch.zeros(2, 40).double()},
    "rows: float32, wanted int32 or int64": {"rows": torch.zeros(2)},
    "temperature: shape [3], wanted [2]": {"temperature": torch.zeros(3)},
    "top_k: int64, wanted int32": {"top_k": torch.zeros(2).long()},
    "top_p: float64, wanted float32": {"top_p": torch.zeros(2).double()},
    "noise_keys: int32, wanted int64": {"noise_keys": torch.zeros(2, dtype=INT32)},
    "history_starts: shape [2], wanted [3]": {"history_starts": torch.zeros(2, dtype=INT32)},
    "banned: on meta, wanted cpu": {"banned": torch.zeros(2, dtype=INT32, device="meta")},
    "masks: shape [2, 1], wanted [M, 2]": {"masks": torch.zeros(2, 1, dtype=INT32)},
    "mask_rows: NoneType, wanted a tensor": {"mask_rows": None},
    "tokens: shape [3], wanted [2]": {"tokens": torch.zeros(3, dtype=INT32)},
    "logprobs: float64, wanted float32": {"logprobs": torch.zeros(2).double()},
    "workspace: of 1 samples and vocabulary 40": {"workspace": (1, 40)},
    "workspace: of 2 samples and vocabulary 41": {"workspace": (2, 41)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    given = GOOD | REFUSED[message]
    if "workspace" in given:
        given["workspace"] = SamplingWorkspace.empty(*given["workspace"], "cpu")
    with pytest.raises(ValueError) as error:
        sample_tokens(**given)
    assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrapped:
        for name, tensor in GOOD.items():
            with pytest.raises(ValueError, match=f"{name}: a DTensor"):
                sample_tokens(**GOOD | {name: wrapped(tensor)})


def test_a_forced_token_is_scored_and_not_drawn(kernel_device):
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(8)).mul(3)
    samples = [{"row": 0}, {"row": 1, "temperature": 0.0}, {"row": 0, "top_p": 0.5}]
    arguments = inputs(logits, samples, kernel_device)
    free = sample_tokens(*arguments)
    forced = torch.tensor([-1, 999, 7], dtype=INT32, device=kernel_device)
    tokens, logprobs = sample_tokens(*arguments, forced)
    assert tokens.tolist() == [free[0][0].item(), 999, 7]
    assert logprobs[0] == free[1][0]
    truth = logits.double().log_softmax(-1)[[1, 0], [999, 7]]
    assert_close(logprobs[1:].cpu().double(), truth, atol=2e-6, rtol=1e-6)
    found = sample_tokens_reference(
        *(x.cpu() if x is not None else x for x in arguments), forced.cpu()
    )
    assert found[0].tolist() == tokens.tolist()
    scored = torch.tensor([free[0][0].item(), -1, -1], dtype=INT32, device=kernel_device)
    assert sample_tokens(*arguments, scored)[1][0] == free[1][0]  # the bits of drawing it
