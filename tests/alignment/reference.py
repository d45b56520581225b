"""The fit once more, slowly: Hugging Face's models, one text at a time, without padding, and scikit-learn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from lrt_tl.alignment.fit import RELATIVE_RIDGES
from lrt_tl.text.documents import TEST, VALIDATION, split_of
from tests.checkpoints import WORDS

BOS, N_SPECIAL = 1, 3


@dataclass(frozen=True)
class Row:
    """What a model reads at once."""

    ids: list[int]
    split: int


def rows_of(texts: Sequence[str], *, bos: bool = True) -> list[Row]:
    """One row a document."""
    return [Row([BOS] * bos + [WORDS.index(word) for word in text.split()], split_of(text)) for text in texts]


@dataclass(frozen=True)
class Positions:
    """States of both models at the same positions."""

    source: np.ndarray
    target: np.ndarray
    splits: np.ndarray
    tokens: np.ndarray

    def where(self, keep: np.ndarray) -> "Positions":
        return Positions(self.source[keep], self.target[keep], self.splits[keep], self.tokens[keep])


@torch.no_grad()
def one_at_a_time(models: tuple[Any, Any], rows: Sequence[Row], layers: tuple[int, int]) -> Positions:
    """States after these blocks (0-based, not the last; −1 is before the first), where tokens are not special."""
    tokens = [np.array(row.ids) for row in rows]
    sides = []
    for model, layer in zip(models, layers, strict=True):
        outputs = [model(torch.tensor([row.ids]), output_hidden_states=True, use_cache=False) for row in rows]
        states = [output.hidden_states[layer + 1][0].double().numpy() for output in outputs]
        sides.append(np.concatenate([s[t >= N_SPECIAL] for s, t in zip(states, tokens, strict=True)]))
    splits = np.concatenate([[row.split] * int((t >= N_SPECIAL).sum()) for row, t in zip(rows, tokens, strict=True)])
    return Positions(sides[0], sides[1], splits, np.concatenate([t[t >= N_SPECIAL] for t in tokens]))


@dataclass(frozen=True)
class Fit:
    weight: np.ndarray
    bias: np.ndarray
    curve: list[float]
    best: int
    test_r2: float
    validation_r2: float


def fit(positions: Positions) -> Fit:
    """Ridge by explicit 5-fold cross-validation over the splits 0 … 4."""
    x, y, splits = positions.source, positions.target, positions.splits
    train = splits < 5
    scale = x[train].var(0).mean()

    def score(fitted: Callable[[np.ndarray], np.ndarray], here: np.ndarray) -> float:
        return float(r2_score(y[here], fitted(x[here]), multioutput="variance_weighted"))

    def solved(here: np.ndarray, relative: float) -> Ridge:
        return Ridge(alpha=relative * scale * here.sum(), solver="svd").fit(x[here], y[here])

    curve = [
        np.mean([score(solved(train & (splits != fold), relative).predict, splits == fold) for fold in range(5)])
        for relative in RELATIVE_RIDGES
    ]
    best = int(np.argmax(curve))
    final = solved(train, RELATIVE_RIDGES[best])
    held_out = [score(final.predict, splits == split) for split in (TEST, VALIDATION)]
    return Fit(final.coef_, final.intercept_, [float(c) for c in curve], best, *held_out)
