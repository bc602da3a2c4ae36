"""Eight bits by hand, and what must hold of every number that goes in and comes out."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.train.block_code import BlockCode, dynamic_table
from srlm_fast.train.rounding import LEVELS, Noise, to_bfloat16


@pytest.mark.parametrize("signed", [True, False])
def test_a_table_has_256_values_in_order(signed):
    table = dynamic_table(signed)
    assert table.shape == (256,) and table.dtype == torch.float32 and (table.diff() > 0).all()
    assert table[-1] == 1
    if signed:  # the same on both sides but for -1 and the least of them
        assert table[0] == -1 and (table == 0).sum() == 1
        assert torch.equal(table[1:127], -table.flip(0)[1:127])
    else:
        assert table[0] == pytest.approx(1e-7)


def test_a_block_by_hand():
    """Its scale is 2. A quarter lies between 0.1 + 10.5 w and 0.1 + 11.5 w of the top decade's 64
    parts of width w = 0.9 / 64, a sixth of the way up.
    """
    values = torch.tensor([0.0, 0.5, -2.0])
    code, low, high = BlockCode(signed=True), 0.24765625, 0.26171875
    codes, scales = code.encode(values)
    assert scales.tolist() == [2.0] and codes.tolist()[2] == 0
    assert_close(code.decode(codes, scales), torch.tensor([0.0, 2 * low, -2.0]))
    for sixth, share in ((10900, high), (10950, low)):  # of 65536: below a sixth, above
        noise = torch.full((3,), sixth, dtype=torch.int32)
        assert_close(code.decode(*code.encode(values, noise)), torch.tensor([0.0, 2 * share, -2.0]))


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_below_is_that_of_a_search(signed):
    """Of the table's own values, their neighbours in fp32, and others."""
    code = BlockCode(signed)
    up, down = (torch.nextafter(code.table, torch.tensor(end)) for end in (2.0, -2.0))
    rest = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 6
    shares = torch.cat([code.table, up, down, rest, -rest]).clamp(-1.0 if signed else 0.0, 1.0)
    wanted = (torch.bucketize(shares, code.table, right=True) - 1).clamp(0, 254)
    assert torch.equal(code._code_below(shares), wanted.int())


@pytest.mark.parametrize("signed", [True, False])
def test_decoded_numbers_are_encoded_as_they_were(signed):
    """With tails, zeros and blocks of every size."""
    code, generator = BlockCode(signed), torch.Generator().manual_seed(1)
    scale = 10.0 ** torch.arange(-32, 6).repeat_interleave(100)
    values = torch.randn(3800, generator=generator) ** 3 * scale
    values = values if signed else values.abs()
    values[512:768] = 0
    noise = torch.randint(0, LEVELS, (3800,), generator=generator, dtype=torch.int32)
    codes, scales = code.encode(values, noise)
    decoded = code.decode(codes, scales)
    again = code.encode(decoded)
    assert torch.equal(again[1], scales)
    assert torch.equal(code.decode(*again), decoded)
    full = scales.repeat_interleave(256)[:3800] > 0
    assert torch.equal(again[0][full], codes[full])
    assert (decoded[512:768] == 0).all() and (decoded[512:768].isfinite()).all()
    if not signed:
        assert (decoded[full] > 0).all()


@pytest.mark.parametrize("kind", ["bf16", "signed", "unsigned"])
def test_rounding_at_random_keeps_the_mean(kind):
    value, count = 0.3337, 1 << 16
    noise = Noise(3, torch.device("cpu")).at(1, 2, 0).draw(count)
    if kind == "bf16":
        rounded = to_bfloat16(torch.full((count,), value), noise).float()
    else:
        values = torch.full((count,), value)
        values[::256] = 1.0
        code = BlockCode(signed=kind == "signed")
        rounded = code.decode(*code.encode(values, noise)).view(-1, 256)[:, 1:].flatten()
    low, high = rounded.unique().tolist()
    assert low < value < high
    error = (high - low) / 2 / len(rounded) ** 0.5
    assert rounded.mean().item() == pytest.approx(value, abs=4 * error)


def test_bf16_numbers_and_infinities_stay():
    values = torch.tensor([1.0, -0.0, 3.140625, -65280.0, torch.inf, -torch.inf])
    for level in (0, LEVELS - 1):
        noise = torch.full(values.shape, level, dtype=torch.int32)
        assert torch.equal(to_bfloat16(values, noise), values.bfloat16())


def test_noise_depends_on_seed_and_place_alone():
    def draw(seed, *place, count=1000):
        return Noise(seed, torch.device("cpu")).at(*place).draw(count)

    first = draw(1, 2, 3, 0)
    noise = Noise(1, torch.device("cpu"))
    noise.at(9, 9, 9).draw(7)
    assert torch.equal(noise.at(2, 3, 0).draw(1000), first)
    others = [draw(2, 2, 3, 0), draw(1, 3, 3, 0), draw(1, 2, 4, 0), draw(1, 2, 3, 256)]
    assert all((first == other).sum() < 5 for other in (*others, noise.draw(1000)))
    assert first.min() >= 0 and first.max() < LEVELS and len(first.unique()) > 950
