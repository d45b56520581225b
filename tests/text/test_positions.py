"""The one selector language, against a loop over rows and columns."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.models.calls import Call
from lrt_tl.text.positions import check_positions, select

MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
INDEX = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]])
GENERATED = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
CALL = Call(MASK, INDEX, GENERATED)


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("all", lambda index, generated: True),
        ("prompt", lambda index, generated: not generated),
        ("generated", lambda index, generated: generated),
        (0, lambda index, generated: index == 0),
        (4, lambda index, generated: index == 4),
        ([0, 3], lambda index, generated: index in (0, 3)),
        ((2,), lambda index, generated: index == 2),
        (range(1, 3), lambda index, generated: index in (1, 2)),
        (99, lambda index, generated: False),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_each_selector(positions: Any, wanted: Any) -> None:
    check_positions(positions)
    chosen = select(positions, CALL)
    for row in range(2):
        for column in range(6):
            is_wanted = wanted(int(INDEX[row, column]), bool(GENERATED[row, column]))
            assert bool(chosen[row, column]) == (bool(MASK[row, column]) and is_wanted), (row, column)


@pytest.mark.parametrize(
    "positions", ["last", "", -1, [], [0, -2], ["prompt"], 1.5, [1.0], None, torch.tensor([1])], ids=str
)
def test_what_is_no_selector(positions: Any) -> None:
    with pytest.raises(LrtError, match="positions="):
        check_positions(positions)


def test_integers_of_numpy_will_do() -> None:
    check_positions(np.int64(3))
    check_positions([np.int64(3)])
