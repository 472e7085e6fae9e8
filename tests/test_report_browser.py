"""The report in a real browser, from a file: it sorts, filters, opens items, and runs nobody's script."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy.special import softmax

import probes
from probes.comparing import compare
from probes.reporting.answer import answer
from tests.browser import NAMES, Browser, find_browser
from tests.reported import hostile_run, written_run

FEW = ["final", "final-ridge", "spectral-ordinal"]
# Any dialog, and any script of an item, would leave a mark.
HOOKED = "window.marks = []; for (const name of ['alert', 'confirm', 'prompt']) window[name] = (x) => marks.push(x);"
NOTHING = "\N{EN DASH}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_browser() is None:
        why = f"no browser: none of {', '.join(NAMES)} is installed (make browser), and PROBES_BROWSER names none"
        if os.environ.get("PROBES_REQUIRE_BROWSER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    status = np.zeros(240, dtype=np.uint8)
    status[11] = 2
    with written_run(folder / "run.h5", n_items=240, status=status, labelled=np.arange(240) != 12) as run:
        yield run, probes.report(run, folder / "report.html", FEW, resamples=100)


@pytest.fixture
def page(browser, plain):
    """The report, loaded anew; whatever the test does, nothing is complained about and nothing is fetched."""
    browser.resize(1200, 900)
    browser.prefer("light")
    browser.open(plain[1], before=HOOKED)
    yield browser
    assert browser.run("window.marks") == []
    assert browser.errors == []
    assert browser.requests == [plain[1].as_uri()]


def column(page, number):
    """Cells of a column of the table of items."""
    return page.run(f"[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[{number}].textContent)")


def heads(page):
    return page.run("[...document.querySelectorAll('#table thead th')].map((th) => [th.textContent, th.ariaSort])")


def text(page, selector):
    return page.run(f"document.querySelector({selector!r}).innerText")


def click(page, selector):
    page.run(f"document.querySelector({selector!r}).click()")


def number(cells):
    return [None if cell == NOTHING else float(cell) for cell in cells]


def test_it_opens_with_the_answer_and_its_own_style_applies(page, plain, tmp_path):
    run, _ = plain
    found = compare(run, FEW, resamples=100)
    assert text(page, ".headline") == answer(found, "").headline
    place = page.run("document.querySelector('.headline').getBoundingClientRect().top")
    assert place < 400
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 100)")
    assert page.run("getComputedStyle(document.body).maxWidth") != "none"
    assert len(page.screenshot(tmp_path / "light.png")) > 20_000


def test_heads_sort_and_say_so(page):
    assert heads(page)[-2:] == [["disagreement", "descending"], ["state", None]]
    shown = number(column(page, 5))
    assert len(shown) == 200
    assert shown == sorted(shown, reverse=True)
    click(page, "#table th:nth-child(6) button")
    assert heads(page)[5] == ["disagreement", "ascending"]
    shown = number(column(page, 5))
    assert shown == sorted(shown)
    click(page, "#table th:nth-child(1) button")
    assert [head[1] for head in heads(page)] == ["ascending", *[None] * 6]
    assert column(page, 0)[:11] == [f"i{k}" for k in range(11)]
    # What is missing comes last, whichever way.
    for _ in range(2):
        click(page, "#table th:nth-child(3) button")
        click(page, "#more")
        assert column(page, 2)[-1] == NOTHING
        assert NOTHING not in column(page, 2)[:-1]


def test_the_filter_finds_ids_states_and_words(page):
    page.run("document.getElementById('filter').focus()")
    page.press(*"number 23")
    ids = {f"i{k}" for k in (23, *range(230, 240))}
    assert set(column(page, 0)) == ids
    assert text(page, "#count") == "11 of 240 items match."
    page.run("document.getElementById('filter').value = 'too long'")
    page.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert column(page, 0) == ["i11"]
    assert column(page, 3) == [NOTHING]
    click(page, "#table tbody tr")
    assert page.run("document.getElementById('layers').hidden")
    assert "no reading: too long" in text(page, "#scores")


def test_an_item_opens_by_keyboard_and_shows_what_the_run_holds(page, plain, tmp_path):
    run, _ = plain
    click(page, "#table th:nth-child(1) button")
    page.run("document.querySelector('#table tbody tr').focus()")
    page.press("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "Enter")
    assert page.run("document.getElementById('item').open")
    assert text(page, "#name") == "i2"
    assert "Rate: answer number 2" in text(page, "#texts")
    scores = text(page, "#scores").split("\n")
    probs = softmax(run.item_logits("norm")[2].astype(float), axis=-1)
    expected = probs @ np.arange(1, 6)
    assert f"{run.human_value[2]:.2f}" in scores
    assert f"{expected[-1]:.2f}" in scores
    mean = compare(run, FEW, resamples=100).evidence[""].scores["spectral-ordinal"].mean(axis=0)[2]
    assert f"{mean:.2f}" in scores
    assert f"{abs(mean - run.human_value[2]):.2f}" in scores
    assert f"Layer 2 (norm lens): score {expected[2]:.2f}" == text(page, "#at-layer")
    # The slider is a slider: the arrows choose the layer there, and the next item elsewhere.
    page.run("document.getElementById('layer').focus()")
    page.press("ArrowLeft")
    assert f"Layer 1 (norm lens): score {expected[1]:.2f}" == text(page, "#at-layer")
    said = page.run("document.querySelector('#bars svg').getAttribute('aria-label')")
    shown = [
        float(part.split(",")[0].split()[-1]) for part in said.removeprefix("Probability of each label: ").split(";")
    ]
    assert shown == pytest.approx(probs[1], abs=0.0051)
    assert page.run("document.querySelectorAll('#line polyline').length") == 1
    assert len(page.screenshot(tmp_path / "item.png")) > 10_000
    page.run("document.getElementById('name').focus()")
    page.press("ArrowRight")
    assert text(page, "#name") == "i3"
    page.press("ArrowLeft", "ArrowLeft")
    assert text(page, "#name") == "i1"
    page.press("Escape")
    assert not page.run("document.getElementById('item').open")
    page.wait("document.activeElement.cells?.[0].textContent === 'i1'")
    page.press("End")
    assert page.run("document.activeElement.cells[0].textContent") == "i239"


def test_every_control_can_be_reached_and_is_seen_to_be(page):
    reached = []
    for _ in range(24):
        page.press("Tab")
        reached.append(
            page.run(
                "[document.activeElement.id || document.activeElement.tagName, "
                "getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
    assert {"theme", "filter", "BUTTON", "TR", "more"} <= {name for name, _ in reached}
    assert {style for name, style in reached if name != "BODY"} == {"solid"}
    assert page.run("document.getElementById('table').getAttribute('role')") == "grid"


def test_dark_is_dark_by_preference_and_by_button(page, tmp_path):
    def ground():
        return page.run("getComputedStyle(document.body).backgroundColor")

    light = page.screenshot(tmp_path / "light.png")
    assert ground() == "rgb(255, 255, 255)"
    page.prefer("dark")
    assert ground() == "rgb(20, 23, 26)"
    assert text(page, "#theme") == "Light"
    assert page.screenshot(tmp_path / "dark.png") != light
    click(page, "#theme")
    assert ground() == "rgb(255, 255, 255)"
    page.prefer("dark", media="print")
    assert ground() == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.getElementById('explorer')).display") == "none"


def test_a_telephone_is_wide_enough(page, tmp_path):
    page.resize(360, 780)
    click(page, "#table tbody tr")
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run("document.getElementById('item').scrollWidth") <= 360
    assert len(page.screenshot(tmp_path / "narrow.png")) > 10_000


def test_hostile_items_run_nothing_and_are_shown_as_they_are(browser, tmp_path):
    with hostile_run(tmp_path / "run.h5") as run:
        path = probes.report(run, tmp_path / "report.html", FEW, resamples=100)
        items = list(run.items)
    browser.open(path, before=HOOKED)
    click(browser, "#table th:nth-child(1) button")
    assert sorted(column(browser, 0)) == sorted(item.id for item in items)
    for _ in range(len(items)):
        if not browser.run("document.getElementById('item').open"):
            click(browser, "#table tbody tr")
        name = browser.run("document.getElementById('name').textContent")
        (item,) = [one for one in items if one.id == name]
        shown = browser.run("[...document.querySelectorAll('#texts .words')].map((block) => block.textContent)")
        assert shown[1:] == list(item.fields.values())
        assert shown[0].startswith(f"Rate: {item.fields['response']}".rstrip())
        browser.press("ArrowRight")
    choices = browser.run("[...document.querySelectorAll('#criterion option')].map((option) => option.textContent)")
    assert set(choices[1:]) == {item.criterion for item in items}
    assert browser.run("document.querySelectorAll('main img:not([src^=\"data:\"]), dialog img, script').length") == 2
    assert browser.run("window.marks") == []
    assert browser.errors == []
    assert browser.requests == [path.as_uri()]


def test_a_script_that_gets_in_is_refused(browser, plain, tmp_path):
    # The policy is the second wall: an attribute and an element that nothing in the page can make.
    page = plain[1].read_text(encoding="utf-8")
    injected = "<img src=x onerror='alert(1)'><script>alert(2)</script><h1 id=\"there\">"
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace("<h1>", injected, 1), encoding="utf-8")
    browser.open(broken, before=HOOKED)
    assert browser.run("document.getElementById('there') !== null")
    assert browser.run("window.marks") == []
    assert any("Content Security Policy" in error for error in browser.errors)
    assert browser.requests == [broken.as_uri()]
    # Without the policy the same script leaves its mark, so that its absence above says something.
    broken.write_text(page.replace("<h1>", injected, 1).replace("http-equiv", "data-off", 1), encoding="utf-8")
    browser.open(broken, before=HOOKED)
    assert 2 in browser.run("window.marks")
