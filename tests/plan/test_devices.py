"""`--devices`, and the devices at hand."""

from __future__ import annotations

import pytest

from srlm_fast.config import Config
from srlm_fast.plan import devices
from srlm_fast.plan.cards import CARDS
from srlm_fast.plan.devices import Devices, parse_devices
from srlm_fast.records import InputError


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "name"),
    [
        ("8xH100-80", 1, 8, "H100-80"),
        ("h200", 1, 1, "H200-141"),
        ("1xH200", 1, 1, "H200-141"),
        ("2 x A100-40", 1, 2, "A100-40"),
        ("A100", 1, 1, "A100-40"),
        ("2x8xH100-80", 2, 8, "H100-80"),
        ("4 X 8 x h200", 4, 8, "H200-141"),
        ("1xRTX4090", 1, 1, "RTX4090-24"),
    ],
)
def test_devices_are_read(text: str, nodes: int, per_node: int, name: str):
    found = parse_devices(text)
    assert (found.nodes, found.per_node, found.card.name) == (nodes, per_node, name)
    assert parse_devices(found.name) == found


@pytest.mark.parametrize(
    "text",
    ["", "8x", "x8", "8xTPU", "0xH100-80", "H100-80x8", "-1xH100-80", "0x8xH100", "2x2x2xH100"],
)
def test_unknown_devices_are_named(text: str):
    with pytest.raises(
        InputError, match=r"^--devices: found .* wanted \[NODESx\]NUMBERxCARD with one of A100"
    ) as caught:
        parse_devices(text)
    assert "\n" not in str(caught.value)


def test_a_misspelt_card_is_guessed():
    with pytest.raises(InputError, match=r"found '2x8xH10-80' \(did you mean H100-80\?\), wanted"):
        parse_devices("2x8xH10-80")


def test_the_cards_hold_what_the_driver_reports():
    assert CARDS["h200-141"].memory_bytes == pytest.approx(139 * 2**30, rel=0.005)
    assert CARDS["h200-141"].math == pytest.approx(790e12)
    assert CARDS["h200-141"].copy == pytest.approx(4.3e12)


def test_ranks_of_a_torchrun_start_are_the_devices_and_share_a_host(monkeypatch):
    monkeypatch.setattr(devices, "host_bytes", lambda: 64e9)
    config = Config(device="cpu")
    assert devices.of_run(config).card.memory_bytes == 64e9
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    found = devices.of_run(config)
    assert (found.nodes, found.per_node, found.number) == (2, 4, 8)
    assert found.card.memory_bytes == 16e9
    assert devices.at_hand(config) == found


def test_the_host_has_memory():
    assert 1e8 < devices.host_bytes() < 1e15
    assert Devices(4, CARDS["h100-80"], 2).number == 8
