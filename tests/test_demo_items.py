from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import demo_items
from probes.demo_items import families, vader_words
from probes.errors import ItemError
from probes.scale import Scale

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = (
    "expected token, mean, deviation and [ratings] separated by tabs; "
    "the demo needs vaderSentiment 3.3.2 or a version of its layout"
)


@pytest.fixture(scope="module")
def words():
    return vader_words()


def test_the_demo_has_450_words_with_ten_ratings_each(words) -> None:
    scale = Scale.parse("1..5", "-4..4")
    assert len(words) == 450
    assert words.raters == "slots"
    assert repr(words) == "Items(450 items, 10 raters at most, from vaderSentiment word list)"
    for item in words:
        assert re.fullmatch("[a-z]{3,}", item.fields["response"])
        assert list(item.fields) == ["response"]
        assert item.id == f"vader-{item.fields['response']}"
        assert item.criterion == "sentiment"
        assert len(item.human) == 10
        assert all(scale.contains_human(score) for score in item.human)


def test_the_ratings_are_those_of_the_word(words) -> None:
    chosen = vader_words(7000, exclude=())
    ratings = dict(zip(chosen.ids, (item.human for item in chosen), strict=True))
    assert ratings["vader-wonderful"] == (2, 3, 3, 2, 4, 2, 2, 3, 4, 2)
    assert ratings["vader-agony"] == (-3, -1, -2, -4, -2, -1, 0, -3, -1, -1)
    assert "vader-sob" not in ratings  # twice in the list, with two sets of ratings
    assert all(ratings[item.id] == item.human for item in words if item.id in ratings)


def test_words_are_spread_evenly_over_the_range_and_short_bins_are_topped_up(words) -> None:
    bins = Counter(np.floor(np.round(words.human_mean, 6) * 2).astype(int).tolist())
    assert bins[-8] == 14  # all there are between -4 and -3.5
    rest = [count for number, count in bins.items() if number != -8]
    assert len(rest) == 14
    assert set(rest) == {31, 32}


def test_the_same_seed_gives_the_same_words_and_another_seed_others(words) -> None:
    assert vader_words().digest() == words.digest()
    other = vader_words(seed=1)
    assert len(set(other.ids) & set(words.ids)) < 200
    assert [item.fields["response"] for item in words[:4]] == ["hoax", "solemnizes", "restlessly", "riskier"]


@pytest.mark.parametrize("seed", range(3))
def test_words_in_the_prompt_and_their_families_are_left_out(seed: int) -> None:
    items = vader_words(5000, seed)
    starts = {item.fields["response"][:5] for item in items}
    assert not starts & {"wonde", "agony", "toler", "annoy", "pleas"}
    assert "annoy" in {item.fields["response"][:5] for item in vader_words(5000, seed, exclude=())}


def test_a_family_is_never_on_both_sides(words) -> None:
    items = vader_words(5000)
    group = {item.fields["response"]: item.group for item in items}
    by_start: dict[str, set[str]] = {}
    for word, family in group.items():
        by_start.setdefault(word[:5], set()).add(family)
    assert all(len(found) == 1 for found in by_start.values())
    # The family does not depend on which words were drawn.
    assert all(group.get(item.fields["response"], item.group) == item.group for item in words)


@pytest.mark.parametrize(
    "forms",
    [
        ["annoy", "annoys", "annoyed", "annoying", "annoyance", "annoyingly"],
        ["hate", "hates", "hated", "hating", "hater", "hateful"],
        ["sad", "sadly", "sadder", "saddest", "sadness"],
        ["happy", "happier", "happiest", "happily", "happiness"],
        ["cry", "cries", "cried", "crying"],
        ["joy", "joyful", "joyfully", "joyless", "joyous"],
        ["kill", "kills", "killed", "killer", "killing"],
    ],
)
def test_forms_of_a_word_are_a_family_named_after_the_shortest(forms: list[str]) -> None:
    assert families([*reversed(forms), "zebra"]) == {**dict.fromkeys(forms, forms[0]), "zebra": "zebra"}


def test_families_are_not_joined_by_a_short_common_start() -> None:
    assert len(set(families(["bad", "badge", "ban", "bank", "hope", "horror"]).values())) == 6


@given(st.lists(st.from_regex("[a-z]{3,9}", fullmatch=True), max_size=30))
def test_families_do_not_depend_on_the_order_of_the_words(given_words: list[str]) -> None:
    found = families(given_words)
    assert set(found) == set(given_words)
    assert families(list(reversed(given_words))) == found
    assert all(found[name] == name for name in found.values())


@given(st.dictionaries(st.integers(0, 15), st.integers(1, 50), min_size=1), st.data())
def test_quotas_are_even_up_to_the_supply(supply: dict[int, int], data) -> None:
    n = data.draw(st.integers(0, sum(supply.values())))
    quota = demo_items._even_quota(supply, n)
    assert sum(quota.values()) == n
    assert all(0 <= quota[number] <= supply[number] for number in supply)
    open_counts = [quota[number] for number in supply if quota[number] < supply[number]]
    if open_counts:
        # Nobody who could still give gives less than anybody else, but for the remainder of the division.
        assert max(quota.values()) - min(open_counts) <= 1


def test_more_words_than_there_are_is_an_error() -> None:
    with pytest.raises(
        ItemError, match=r"^vaderSentiment holds \d{4} usable words, so n must be 1\.\.\d{4}, got 9999$"
    ):
        vader_words(9999)
    with pytest.raises(ItemError, match=r", got 0$"):
        vader_words(0)


def test_the_package_is_found_without_importing_it(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("vaderSentiment")]:
        monkeypatch.delitem(sys.modules, name)
    vader_words(10)
    assert not [name for name in sys.modules if name.startswith("vaderSentiment")]


def fake_package(monkeypatch, folder: Path | None) -> None:
    spec = None
    if folder is not None:
        spec = ModuleSpec("vaderSentiment", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)


def test_a_missing_package_is_one_line(monkeypatch) -> None:
    fake_package(monkeypatch, None)
    with pytest.raises(ItemError) as caught:
        vader_words()
    assert str(caught.value) == (
        "the demo's words come from the package vaderSentiment; run `pip install vaderSentiment`"
    )


def test_a_package_without_the_list_is_one_line(monkeypatch, tmp_path: Path) -> None:
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(ItemError) as caught:
        vader_words()
    assert str(caught.value) == (
        f"{tmp_path / 'vader_lexicon.txt'}: no such file; "
        "the demo needs vaderSentiment 3.3.2 or a version of its layout"
    )


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("bad\t-2.5\t0.5", id="three_cells"),
        pytest.param("bad,-2.5,0.5,[1]", id="commas"),
        pytest.param("bad\t-2.5\t0.5\t1, 2", id="no_list"),
        pytest.param("bad\t-2.5\t0.5\t[]", id="no_ratings"),
        pytest.param('bad\t-2.5\t0.5\t["x"]', id="text_ratings"),
        pytest.param("bad\t-2.5\t0.5\t[5]", id="beyond_the_range"),
        pytest.param("bad\t-2.5\t0.5\t[1]\tmore", id="five_cells"),
    ],
)
def test_a_list_of_another_layout_is_one_line(monkeypatch, tmp_path: Path, line: str) -> None:
    path = tmp_path / "vader_lexicon.txt"
    path.write_text(f"good\t2.0\t0.5\t[2, 2]\n\n{line}\n")
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(ItemError) as caught:
        vader_words(1)
    assert str(caught.value) == f"{path}, line 3: {LAYOUT}"
