"""The page in a real browser: clicked, typed into, narrow, dark, and never heard on the network.

Needs a Chromium on PATH and playwright, which drives it.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srlm_fast.records import read_jsonl
from srlm_fast.report.compare import write_comparison
from srlm_fast.report.page import write_report
from tests.report.folders import HOSTILE, make_folder, write_jsonl

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on PATH", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
image = pytest.importorskip("PIL.Image", reason="pillow, which matplotlib brings, is not installed")

PROMPTS = 45
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        # A container's root may not make the sandbox, and its /dev/shm may be small.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_folder(tmp_path_factory.mktemp("runs") / "run", PROMPTS)
    write_report(made)
    return made


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """open_page(path, hash, **of the context) -> the page; at the end no error was heard of and
    nothing asked for but the file itself.
    """
    contexts, wrong = [], list[str]()

    def opened(path: Path, place: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        address = path.absolute().as_uri()
        page.on("request", lambda asked: asked.url.startswith(address) or wrong.append(asked.url))
        page.goto(address + place)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def wait_for_count(page: Any, words: str) -> None:
    page.locator("#count", has_text=words).wait_for()


def fits(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_browser_of_examples_searches_filters_and_sorts(open_page, folder: Path):
    page = open_page(folder / "report.html")
    wait_for_count(page, "45 of 45 prompts")
    assert page.locator(".example").count() == 20
    # Drawn far below the screen too, for a picture of the whole page.
    drawn = "e => e.checkVisibility({ contentVisibilityAuto: true })"
    assert page.locator(".example .candidate").last.evaluate(drawn)
    assert page.inner_text("#more") == "Show 20 more of 25"
    page.click("#more")
    assert page.inner_text("#more") == "Show the last 5"
    page.click("#more")
    assert page.locator(".example").count() == 45 and page.locator("#more").is_hidden()

    page.fill("#search", "LIST 17 fruits")  # of a prompt, whatever its case
    wait_for_count(page, "1 of 45 prompts")
    assert page.text_content(".example mark") == "List 17 fruits"
    page.fill("#search", "score: 4.0")  # of a judgement: it is opened
    page.locator(".example details[open] mark").first.wait_for()
    page.fill("#search", "no such words")
    wait_for_count(page, "0 of 45 prompts")
    page.click("#clear")
    wait_for_count(page, "45 of 45 prompts")

    pairs = read_jsonl(folder / "m3" / "pairs.jsonl")
    page.select_option("#outcome", "pair")
    wait_for_count(page, f"{len(pairs)} of 45 prompts")
    page.select_option("#sort", "margin")
    highest = max(row["score_chosen"] - row["score_rejected"] for row in pairs)
    assert page.locator(".badge").first.text_content() == f"pair, margin {highest:.2f}"
    page.select_option("#outcome", "none")
    wait_for_count(page, f"{45 - len(pairs)} of 45 prompts")
    page.click("#clear")
    page.select_option("#source", "file")
    wait_for_count(page, "1 of 45 prompts")
    assert "Hello, you." in page.text_content(".turn")
    page.click("#clear")
    page.fill("#low", "5")
    page.locator("#count", has_text="45 of 45").wait_for(state="detached")
    assert 0 < int(page.inner_text("#count").split()[0]) < 45
    page.click("#clear")
    page.select_option("#round", "")
    wait_for_count(page, "90 of 90 prompts")


def test_judgements_open_by_click_and_by_key(open_page, folder: Path):
    page = open_page(folder / "report.html")
    summary = page.locator(".example summary").first
    summary.click()
    assert page.locator(".example .judgement").count() == 3
    assert "Score: " in page.text_content(".example .judgement")
    summary.press("Enter")
    assert page.locator(".example details[open]").count() == 0


def test_keys_go_from_example_to_example_and_to_the_search(open_page, folder: Path):
    page = open_page(folder / "report.html")
    page.locator(".example").first.wait_for()
    here = "document.activeElement.dataset.place"
    page.keyboard.press("j")
    assert page.evaluate(here) == "#M3/p0"
    page.keyboard.press("j")
    assert page.evaluate(here) == "#M3/p1"
    page.keyboard.press("k")
    assert page.evaluate(here) == "#M3/p0"
    page.keyboard.press("/")
    page.keyboard.type("jk")  # goes into the field
    assert page.input_value("#search") == "jk"


def test_a_link_leads_to_its_example(open_page, folder: Path):
    page = open_page(folder / "report.html", "#M2/p30")
    page.locator('.example[data-place="#M2/p30"] details[open]').first.wait_for()
    assert page.evaluate("document.activeElement.dataset.place") == "#M2/p30"
    assert page.locator('.example[data-place="#M2/p30"]').bounding_box()["y"] < 300
    page.locator('.example[data-place="#M2/p29"] header a').click()
    page.locator('.example[data-place="#M2/p29"] details[open]').first.wait_for()
    assert page.url.endswith("#M2/p29")
    page.evaluate("location.hash = '#M2/nobody'")
    wait_for_count(page, "M2 / nobody is not among the rows")


def test_the_theme_follows_the_system_until_chosen_and_is_remembered(open_page, folder: Path):
    page = open_page(folder / "report.html", color_scheme="dark")
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    assert page.evaluate(scheme) == "dark" and page.inner_text("#theme") == "Light"
    page.click("#theme")
    assert page.evaluate(scheme) == "light" and page.evaluate(colour) != dark
    page.reload()
    assert page.evaluate(scheme) == "light" and page.inner_text("#theme") == "Dark"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(open_page, folder: Path, scheme: str):
    page = open_page(folder / "report.html", viewport=PHONE, color_scheme=scheme)
    page.locator(".example").first.wait_for()
    assert fits(page) and overlaps(page) == []
    assert page.locator(".scroll:has(.stack)[tabindex]").count() == 0
    wide = page.locator(".scroll:has(tr.paper)[tabindex='0']")
    assert is_shaded(wide)
    hint = "box => getComputedStyle(box, '::before').content"
    assert "scrolls sideways" in wide.evaluate(hint)
    wide.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    assert not is_shaded(wide)
    panels = page.locator("#collapse ~ .small > .card")
    assert visible(panels) == ["output entropy, nats/token"]
    page.locator("#collapse ~ .fold").check()
    assert len(visible(panels)) == panels.count() > 12
    for summary in page.locator("summary").all()[:6]:
        summary.click()
    page.locator(".example").last.scroll_into_view_if_needed()
    assert fits(page)


def visible(cards: Any) -> list[str]:
    return [card.inner_text().splitlines()[0] for card in cards.all() if card.is_visible()]


def is_shaded(box: Any) -> bool:
    """Whether the right edge of what scrolls sideways says that there is more."""
    drawn = image.open(io.BytesIO(box.screenshot(animations="disabled"))).convert("L")
    last = np.asarray(drawn, dtype=float)[-3, -12:]  # below the text of the last row
    return bool(np.ptp(last) > 8)


def pictures(page: Any) -> list[np.ndarray]:
    """What a reader sees on the way down: screens as drawn, [height, width, 3] uint8. The bar of
    links, which scrolls sideways by itself, is grey.
    """
    found, covered = [], {"mask": [page.locator("nav")], "mask_color": "#808080"}
    for place in ("h1", "svg", ".example"):
        page.locator(place).first.evaluate("element => element.scrollIntoView()")
        drawn = page.screenshot(animations="disabled", **covered)
        found.append(np.asarray(image.open(io.BytesIO(drawn)).convert("RGB")))
    return found


@pytest.mark.parametrize("width", [1100, PHONE["width"]])
def test_screenshots_are_drawn_in_both_themes_and_cut_nowhere(open_page, folder: Path, width: int):
    shots = {}
    for scheme in ("light", "dark"):
        size = PHONE | {"width": width}
        page = open_page(folder / "report.html", color_scheme=scheme, viewport=size)
        page.locator(".example").first.wait_for()
        assert fits(page)
        shots[scheme] = pictures(page)
    for light, dark in zip(shots["light"], shots["dark"], strict=True):
        assert light.shape == dark.shape == (PHONE["height"], width, 3)
        assert light.mean() > 190 and dark.mean() < 80
        for shot in (light, dark):
            assert len(np.unique(shot @ np.array([1 << 16, 1 << 8, 1]))) > 50
            # Both margins are empty, or of what spans the page: nothing is cut.
            assert (shot[:, -3:] == shot[:, :3]).all()
    first, second, third = shots["light"]
    assert (first != second).any() and (second != third).any()


def test_labels_of_a_chart_do_not_lie_on_each_other(open_page, folder: Path):
    assert overlaps(open_page(folder / "report.html")) == []


def overlaps(page: Any) -> list[str]:
    """Labels that lie on each other."""
    found: list[str] = (
        page.evaluate("""() => [...document.querySelectorAll("svg")].flatMap((chart) => {
      const boxes = [...chart.querySelectorAll("text")].filter((e) => e.textContent).map(
        (e) => [e.textContent, e.getBoundingClientRect()]);
      return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
        p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4
      ).map(([b]) => `${a} on ${b} in ${chart.getAttribute("aria-label")}`));
    })""")
    )
    return found


def test_hostile_text_is_shown_as_it_is(open_page, tmp_path: Path):
    made = make_folder(tmp_path / "<b>run", len(HOSTILE), hostile=True)
    prompts = read_jsonl(made / "m3" / "prompts.jsonl")
    write_jsonl(made / "m3" / "prompts.jsonl", [row | {"source": HOSTILE[1]} for row in prompts])
    page = open_page(write_report(made), viewport=PHONE)
    page.locator(".example").first.wait_for()
    assert page.title() == "<b>run · srlm_fast"
    shown = page.locator(".candidate > .text").all_text_contents()
    assert set(HOSTILE[:3]) <= set(shown)
    assert page.locator("img").count() == 0 and fits(page)


@pytest.mark.parametrize("reward", ["pairwise", "constitution", "best-of-n", "random"])
def test_other_rewards_are_browsed(open_page, tmp_path: Path, reward: str):
    page = open_page(write_report(make_folder(tmp_path / "run", 12, reward=reward)))
    page.locator(".example").first.wait_for()
    text = page.locator("#examples").text_content()
    said = {"pairwise": "6 comparisons", "constitution": "critique by principle 3"}
    assert said.get(reward, "chosen") in text
    if reward == "pairwise":
        page.locator(".example summary").first.click()
        assert "that answer 1 is better than answer 2" in page.text_content(".example")


def test_a_browser_that_cannot_unpack_says_so(browser: Any, folder: Path):
    context = browser.new_context()
    context.add_init_script("delete globalThis.DecompressionStream")
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    assert "cannot unpack the examples" in page.inner_text("#count")
    assert page.locator("#tools").is_hidden()
    context.close()


def test_a_comparison_on_a_phone_and_at_a_desk(open_page, folder: Path, tmp_path: Path):
    other = make_folder(tmp_path / ("a-name-without-any-space-that-is-long-" * 3), 2)
    path = write_comparison([folder, other], tmp_path / "report.html")
    phone = open_page(path, viewport=PHONE)
    assert fits(phone) and overlaps(phone) == []
    page = open_page(path)
    page.click("#theme")
    assert fits(page) and page.locator(".legend li").count() >= 2
