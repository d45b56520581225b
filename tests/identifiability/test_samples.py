"""The permutation test of samples: its size and power over many draws, and its statistic by the definition."""

import json

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.samples import compare_samples
from tests.unchecked import without_type_checks

N_PROMPTS, N_SAMPLES, LENGTH = 3, 5, 4


def completions(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Independent tokens, by each prompt's own distribution."""
    drawn = torch.multinomial(logits.softmax(-1), n * LENGTH, replacement=True, generator=generator)
    return drawn.reshape(len(logits), n, LENGTH)


def p_values(difference: float, n_trials: int, n_samples: int = N_SAMPLES) -> Tensor:
    found = []
    for trial in range(n_trials):
        generator = torch.Generator().manual_seed(trial)
        p = 2 * torch.randn(N_PROMPTS, 6, generator=generator)  # prompts differ far more than the models do
        q = p + difference * torch.randn(N_PROMPTS, 6, generator=generator)
        samples = completions(p, n_samples, generator), completions(q, n_samples, generator)
        found.append(compare_samples(*samples, n_permutations=99, seed=trial).p_value)
    return torch.tensor(found)


def test_its_size_under_equality() -> None:
    """500 pairs: P(p-value ≤ α) ≤ α, but for three standard errors."""
    found = p_values(0.0, 500)
    for alpha in (0.05, 0.1, 0.3, 0.6):
        assert float((found <= alpha).float().mean()) <= alpha + 3 * (alpha * (1 - alpha) / 500) ** 0.5
    assert 0.35 < float(found.mean()) < 0.65


def test_its_power_against_a_difference() -> None:
    assert float((p_values(2.0, 60, n_samples=12) <= 0.05).float().mean()) > 0.9


def test_prompts_that_differ_are_no_difference_of_the_models() -> None:
    """All samples of a prompt are the same: permuting within prompts changes nothing."""
    same = torch.arange(4)[:, None, None].expand(4, 3, 2)
    found = compare_samples(same, same)
    assert (found.discrepancy, found.p_value) == (0.0, 1.0)


def test_the_smallest_p_value() -> None:
    zeros = torch.zeros(4, 5, 2, dtype=torch.long)
    found = compare_samples(zeros, zeros + 1, n_permutations=199)
    assert found.discrepancy == 2.0
    assert found.p_value == 1 / 200


def test_the_statistic_by_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randint(3, (2, n, 3), generator=generator) for n in (4, 5))

    def agreement(a: Tensor, b: Tensor) -> float:
        return float((a == b).double().mean())

    wanted = 0.0
    for ours, theirs in zip(p, q, strict=True):
        wanted += sum(agreement(ours[i], ours[j]) for i in range(4) for j in range(4) if i != j) / 12
        wanted += sum(agreement(theirs[i], theirs[j]) for i in range(5) for j in range(5) if i != j) / 20
        wanted -= 2 * sum(agreement(a, b) for a in ours for b in theirs) / 20
    found = compare_samples(p, q)
    assert found.discrepancy == pytest.approx(wanted / 2)
    assert json.loads(json.dumps(found.to_json()))["samples"] == [4, 5]
    assert str(found).endswith("of 2 prompts")
    assert "p value" in found._repr_html_()


@pytest.mark.parametrize(
    ("of_p", "of_q", "permutations", "message"),
    [
        ((2, 3, 4), (3, 3, 4), 99, "of the same prompts"),
        ((2, 3, 4), (2, 3, 5), 99, "padded to one length"),
        ((0, 3, 4), (0, 3, 4), 99, "of the same prompts"),
        ((2, 1, 4), (2, 3, 4), 99, "1 and 3 samples a prompt"),
        ((2, 3, 4), (2, 3, 4), 18, "18 permutations"),
    ],
)
def test_samples_that_cannot_be_compared(
    of_p: tuple[int, ...], of_q: tuple[int, ...], permutations: int, message: str
) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        compare_samples(torch.zeros(of_p).long(), torch.zeros(of_q).long(), n_permutations=permutations)
