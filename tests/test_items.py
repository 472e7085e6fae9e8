from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import ItemError
from probes.items import Item, Items
from probes.readers import read_items

NAN = float("nan")


def build(**human: tuple[float, ...]) -> Items:
    return Items([Item(id=name, fields={"response": name}, human=scores) for name, scores in human.items()])


@pytest.fixture
def three() -> Items:
    return build(a=(1, 2, NAN), b=(), c=(4.5,))


def test_items_are_a_sequence(three: Items) -> None:
    assert len(three) == 3
    assert three[0].id == "a"
    assert three[-1].id == "c"
    assert [item.id for item in three] == ["a", "b", "c"]
    assert three.ids == ("a", "b", "c")
    assert three[1:].ids == ("b", "c")
    assert repr(three) == "Items(3 items, 3 raters at most, from items)"


def test_human_scores_are_padded_with_nan(three: Items) -> None:
    assert three.n_raters == 3
    assert three.human.dtype == np.float32
    np.testing.assert_array_equal(three.human, [[1, 2, NAN], [NAN] * 3, [4.5, NAN, NAN]])


def test_the_mean_is_over_the_raters_who_scored(three: Items) -> None:
    np.testing.assert_array_equal(three.human_mean, [1.5, NAN, 4.5])
    np.testing.assert_array_equal(build(a=(), b=()).human_mean, [NAN, NAN])


@given(st.lists(st.lists(st.floats(-5, 5) | st.just(NAN), max_size=4), min_size=1, max_size=6))
def test_the_mean_agrees_with_nanmean(scores: list[list[float]]) -> None:
    items = Items([Item(str(i), {}, human=tuple(row)) for i, row in enumerate(scores)])
    for row, mean in zip(scores, items.human_mean, strict=True):
        there = [score for score in row if not np.isnan(score)]
        assert (np.isnan(mean) and not there) or mean == pytest.approx(np.mean(there))


def test_an_item_without_a_group_is_its_own() -> None:
    items = Items([Item("a", {}, group="g"), Item("b", {}), Item("c", {}, group="g"), Item("d", {})])
    assert list(items.groups) == ["g", "item:b", "g", "item:d"]


def test_no_items_and_repeated_ids_are_refused() -> None:
    with pytest.raises(ItemError, match=r"^x: no items found; check that the file is not empty$"):
        Items([], source="x")
    with pytest.raises(ItemError, match=r"^x: item 3 has the id 'a' of item 1; ids must be unique$"):
        Items([Item("a", {}), Item("b", {}), Item("a", {})], source="x")


@pytest.mark.parametrize(
    "which",
    [
        pytest.param([True, False, True], id="list_mask"),
        pytest.param(np.array([True, False, True]), id="array_mask"),
        pytest.param([0, 2], id="positions"),
        pytest.param(np.array([0, -1]), id="from_the_end"),
    ],
)
def test_select_keeps_items_raters_and_source(which) -> None:
    items = Items([Item(name, {}) for name in "abc"], "identity", "there")
    chosen = items.select(which)
    assert chosen.ids == ("a", "c")
    assert (chosen.raters, chosen.source) == ("identity", "there")


def test_select_follows_the_order_of_the_positions(three: Items) -> None:
    assert three.select([2, 0]).ids == ("c", "a")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        pytest.param([True], "items: the mask has 1 entries for 3 items", id="short_mask"),
        pytest.param([False] * 3, "items: the selection is empty; 3 items to choose from", id="mask_of_nothing"),
        pytest.param([], "items: the selection is empty; 3 items to choose from", id="no_positions"),
        pytest.param([3], "items: no item at position 3; there are 3 items", id="too_high"),
        pytest.param([-4], "items: no item at position -4; there are 3 items", id="too_low"),
        pytest.param([0.5], "items: select items by a mask or by whole numbers, got float64 values", id="float"),
        pytest.param([1, 1], "items: item 2 has the id 'b' of item 1; ids must be unique", id="twice"),
    ],
)
def test_selections_that_cannot_be_are_refused(three: Items, which, message: str) -> None:
    with pytest.raises(ItemError, match=f"^{re.escape(message)}$"):
        three.select(which)


def test_to_pandas_has_a_column_for_every_part_of_an_item() -> None:
    items = Items(
        [
            Item("a", {"response": "x", "id": "own"}, "fluency", "g", "s", "test", (1, NAN)),
            Item("b", {"response": "y", "context": "z"}),
        ]
    )
    frame = items.to_pandas()
    assert list(frame.columns) == [
        *("id", "criterion", "group", "system", "split"),
        *("response", "field:id", "context", "human", "human_mean"),
    ]
    assert frame.loc[0, "field:id"] == "own"
    assert frame.loc[0, "human_mean"] == 1
    assert frame["context"].isna().tolist() == [True, False]
    assert frame.loc[1, "human"] == []


def test_a_data_frame_of_items_reads_back_as_the_same_items() -> None:
    items = Items(
        [
            Item("a", {"response": "x", "context": ""}, "fluency", "g", "s", "test", (1, NAN)),
            Item("b", {"response": "y", "context": "c"}),
        ]
    )
    assert read_items(items.to_pandas()).digest() == items.digest()


def test_the_digest_depends_on_every_part_of_an_item() -> None:
    parts = {"id": "b", "criterion": "c", "group": "g", "system": "s", "split": "t", "human": (2.0,)}
    base = {"id": "a", "fields": {"response": "x"}, "human": (1.0,)}
    digests = [Items([Item(**base)]).digest()]  # type: ignore[arg-type]
    digests += [Items([Item(**{**base, name: value})]).digest() for name, value in parts.items()]  # type: ignore[arg-type]
    digests += [Items([Item(**{**base, "fields": fields})]).digest() for fields in ({"response": "y"}, {"r": "x"})]  # type: ignore[arg-type]
    assert len(set(digests)) == len(digests)
    assert Items([Item(**base)]).digest() == digests[0]  # type: ignore[arg-type]
