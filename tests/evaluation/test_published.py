"""The paper's measures against numpy, and their nulls."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.agreement import correlation
from lrt_tl.evaluation.evaluate import TransferResult, evaluate_transfer
from lrt_tl.evaluation.published import decoder_fit, decoder_null, published_agreement
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector


@pytest.fixture(scope="module")
def result(bridges: Any, files: Any) -> TransferResult:
    target = bridges[1]
    draws = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    native, transferred = (SteeringVector(draw, site_of(target, layer=2)) for draw in draws)
    return evaluate_transfer(
        target, transferred, files["behavior"], native=native, coefficients=(-4.0, 0.0, 4.0), n_draws=19
    )


def test_r_and_mse_against_numpy(result: TransferResult) -> None:
    for place, found in enumerate(published_agreement(result).rows_by_coefficient):
        native, transferred = result.native[place].numpy(), result.transferred[place].numpy()
        random = result.controls["random"][:, place].numpy()
        if found.coefficient == 0:
            assert (found.r, found.mse, found.r_random, found.mse_random) == (1, 0, 1, 0)  # by construction
            continue
        assert found.r == pytest.approx(np.corrcoef(native, transferred)[0, 1])
        assert found.mse == pytest.approx(np.mean((native - transferred) ** 2))
        rs = [np.corrcoef(native, draw)[0, 1] for draw in random]
        assert found.r_random == pytest.approx(np.mean(rs))
        assert found.r_random_high == pytest.approx(np.quantile(rs, 0.95))
        assert found.mse_random == pytest.approx(np.mean((native - random) ** 2))


def test_it_shows_as_a_table(result: TransferResult) -> None:
    shown = published_agreement(result)
    assert [row["coefficient"] for row in shown.rows()] == ["-4", "0", "4"]
    assert "r, native and random" in shown._repr_html_()


def test_scores_that_do_not_vary_are_correlated_with_nothing() -> None:
    assert correlation(torch.ones(4), torch.arange(4.0)) == 0
    assert correlation(torch.ones(4), torch.ones(4)) == 1


def test_the_papers_decoders_against_random_rows() -> None:
    """Gemma-2's, of 16,384 latents: 2b (2,304) on 9b (3,584), and the other way round."""
    residual, r2 = decoder_null(16384, 3584)
    assert residual == pytest.approx(113.1, abs=0.05)
    assert r2 == pytest.approx(0.219, abs=0.0005)
    residual, r2 = decoder_null(16384, 2304)
    assert residual == pytest.approx(118.7, abs=0.05)
    assert r2 == pytest.approx(0.141, abs=0.0005)


def test_the_null_is_what_random_rows_give() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(2000, d, generator=generator) for d in (60, 40))
    residual, r2 = decoder_fit(source, target)
    wanted, wanted_r2 = decoder_null(2000, 60)
    assert residual == pytest.approx(wanted, rel=0.01)
    assert r2 == pytest.approx(wanted_r2, abs=0.005)


def test_a_fit_of_decoders_against_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(200, 10, generator=generator)
    target = source @ torch.randn(10, 7, generator=generator) + 0.1 * torch.randn(200, 7, generator=generator)
    x, y = (rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1)[:, None] for rows in (source, target))
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    residual, r2 = decoder_fit(source, target)
    assert residual == pytest.approx(np.linalg.norm(left))
    assert r2 == pytest.approx(1 - np.linalg.norm(left) ** 2 / 200)
    assert math.isclose(decoder_fit(source, source)[1], 1, abs_tol=1e-9)


def test_what_has_no_null_is_refused(result: TransferResult) -> None:
    with pytest.raises(LrtError, match="more rows than dimensions"):
        decoder_null(100, 100)
    with pytest.raises(LrtError, match="none may be zero"):
        decoder_fit(torch.zeros(20, 3), torch.ones(20, 3))
