"""Token ids in flat arrays."""

from __future__ import annotations

import numpy as np
import pytest

from probes.token_table import TokenTable


def test_prompts_come_back_as_they_went_in():
    prompts = [[5, 6, 7], [], [8], (9, 10)]
    table = TokenTable.from_lists(iter(prompts))
    assert [ids.tolist() for ids in table] == [[5, 6, 7], [], [8], [9, 10]]
    assert len(table) == 4
    assert table.lengths.tolist() == [3, 0, 1, 2]
    assert table.values.dtype == np.int32
    assert table.offsets.tolist() == [0, 3, 3, 4, 6]
    assert table[-1].tolist() == [9, 10]
    assert np.shares_memory(table[0], table.values)
    with pytest.raises(IndexError):
        table[4]
    assert len(TokenTable.from_lists([])) == 0
