"""Maps between models that were not fitted: whatever weight and bias a test wants."""

from typing import Any

import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit_report import FitReport
from lrt_tl.models.identity import site_of


def given_map(
    source: Any,
    target: Any,
    layers: tuple[int, int],
    weight: torch.Tensor,
    bias: torch.Tensor,
    median_norms: dict[str, float] | None = None,
) -> AffineMap:
    """A map between two layers; without median norms no position is a sink."""
    report = FitReport(
        method="ridge",
        test_r2=0.5,
        validation_r2=0.5,
        cv_r2=0.5,
        fold_r2=(0.5, 0.5),
        ridge=None,
        relative_ridge=None,
        rank=None,
        candidates="",
        curve=(),
        tokens=1000,
        tokens_per_dimension=100.0,
        harvest={"median_norms": median_norms or {}},
    )
    begin, end = site_of(source, layer=layers[0]), site_of(target, layer=layers[1])
    covariances = torch.eye(end.d_model), torch.eye(begin.d_model)
    return AffineMap(weight, bias, (begin,), end, covariances[0], None, report, covariances[1])
