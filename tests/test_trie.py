"""Packing prompts into one sequence: what is computed, and what each token looks back to."""

from __future__ import annotations

import numpy as np
import pytest

from probes.capturing.plan import make_plan
from probes.capturing.trie import CHUNK, common_prefix, lexicographic, pack
from probes.token_table import TokenTable


def random_prompts(seed: int, n: int = 30, alphabet: int = 3, longest: int = 40) -> list[np.ndarray]:
    """Prompts over few tokens, so that they share prefixes of every length, and some are equal."""
    random = np.random.default_rng(seed)
    return [random.integers(0, alphabet, random.integers(1, longest)).astype(np.int32) for _ in range(n)]


def in_order(prompts):
    return [prompts[row] for row in lexicographic(prompts, range(len(prompts)))]


def trie_size(prompts) -> int:
    return len({tuple(prompt[:stop]) for prompt in prompts for stop in range(1, len(prompt) + 1)})


@pytest.mark.parametrize("seed", range(8))
def test_every_node_of_the_trie_is_computed_once_and_sees_its_ancestors_only(seed):
    prompts = in_order(random_prompts(seed))
    layout = pack(prompts, call_cost=seed * 20)
    assert len(layout.tokens) == trie_size(prompts)

    seen: dict[int, set[int]] = {}
    for chunk in layout.chunks:
        np.testing.assert_array_equal(chunk.query_depth, layout.depth[chunk.start : chunk.stop])
        np.testing.assert_array_equal(chunk.key_depth, layout.depth[chunk.keys])
        for query in range(chunk.start, chunk.stop):
            row = chunk.visible[query - chunk.start]
            seen[query] = set(chunk.keys[row].tolist())
    assert sorted(seen) == list(range(len(layout.tokens)))
    for prompt, path in zip(prompts, pack(prompts, wanted=[0] * len(prompts)).paths, strict=True):
        np.testing.assert_array_equal(layout.tokens[path], prompt)
        np.testing.assert_array_equal(layout.depth[path], np.arange(len(prompt)))
        for position, node in enumerate(path):
            assert seen[node] == set(path[: position + 1].tolist())


def test_going_on_from_carried_tokens():
    prompts = in_order([np.array([*range(50), k, k + 1], dtype=np.int32) for k in range(5)])
    whole, rest = pack(prompts), pack(prompts, carried=50)
    assert len(whole.tokens) == 60
    assert len(rest.tokens) == 10
    assert rest.carried == 50
    assert rest.depth.tolist() == [50, 51] * 5
    for chunk in rest.chunks:
        assert chunk.keys[:50].tolist() == list(range(50))
        assert chunk.visible[:, :50].all()
    assert rest.last_path.tolist() == [*range(50), 58, 59]


def test_long_prompts_are_cut_into_short_runs_of_queries():
    layout = pack([np.arange(1000, dtype=np.int32)])
    sizes = [chunk.stop - chunk.start for chunk in layout.chunks]
    assert max(sizes) <= CHUNK
    computed = sum(size * len(chunk.keys) for size, chunk in zip(sizes, layout.chunks, strict=True))
    assert computed < 0.65 * 1000**2, "about half of the square is never computed"


def test_calls_are_joined_only_where_that_is_cheaper():
    # Siblings behind a long prefix share a call; those of different prefixes do not.
    siblings = [np.array([*range(300), k], dtype=np.int32) for k in range(300, 340)]
    assert len(pack(siblings, carried=299).chunks) < 10
    strangers = [np.array([k] * 100, dtype=np.int32) for k in range(10)]
    assert len(pack(strangers, call_cost=0).chunks) == 10


def test_equal_prompts_share_a_node():
    layout = pack([np.array([1, 2, 3], dtype=np.int32)] * 3)
    assert layout.tokens.tolist() == [1, 2, 3]
    assert [path.tolist() for path in layout.paths] == [[2], [2], [2]]


def test_common_prefix_and_order():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([], dtype=int), np.array([1])) == 0
    # By number, not by the bytes of little-endian words.
    prompts = [np.array([300]), np.array([2, 1]), np.array([2])]
    assert lexicographic(prompts, range(3)) == [2, 1, 0]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_plan_loses_nothing_and_counts_what_it_computes(seed, share):
    prompts = TokenTable.from_lists(random_prompts(seed, n=60))
    plan = make_plan(prompts, batch_tokens=50, max_tokens=35, share=share)
    assert plan == make_plan(prompts, batch_tokens=50, max_tokens=35, share=share)
    rows = [row for group in plan.passes for row in group]
    assert sorted([*rows, *plan.too_long]) == list(range(60))
    assert {len(prompts[row]) > 35 for row in plan.too_long} <= {True}
    assert [number for shard in plan.shards for number in shard] == list(range(len(plan.passes)))
    assert plan.tokens_before == sum(len(prompts[row]) for row in rows)
    if share:
        assert trie_size([prompts[row] for row in rows]) <= plan.tokens_after < plan.tokens_before
    for group in plan.passes:
        if share:
            assert len(group) == 1 or len(pack([prompts[row] for row in group]).tokens) <= 50 + 35
        else:
            assert len(group) == 1 or max(len(prompts[row]) for row in group) * len(group) <= 50
    other = make_plan(prompts, batch_tokens=51, max_tokens=35, share=share)
    assert plan.digest() != other.digest()


def test_a_shard_starts_afresh(monkeypatch):
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 4)
    prompts = [np.array([*range(100), k], dtype=np.int32) for k in range(12)]
    plan = make_plan(prompts, batch_tokens=10_000)
    assert [len(plan.rows(shard)) for shard in range(len(plan.shards))] == [4, 4, 4]
    assert plan.tokens_after == 3 * 100 + 12


def test_prompts_of_different_length_classes_share_no_pass():
    prompts = [np.arange(n, dtype=np.int32) for n in range(1, 40)]
    plan = make_plan(prompts, batch_tokens=1000, length_class=lambda n: int(n > 20))
    assert {len({row + 1 > 20 for row in group}) for group in plan.passes} == {1}
    assert plan.tokens_after == 20 + 39


def test_answers_bound_what_a_pass_holds():
    prompts = [np.array([*range(1000), k], dtype=np.int32) for k in range(400)]
    assert len(make_plan(prompts, batch_tokens=4096).passes) == 1
    plan = make_plan(prompts, batch_tokens=4096, answer_tokens=100, answers=2)
    assert max(map(len, plan.passes)) * 2 * 1101 <= 8 * 4096
