"""A run in which every name is chosen and every score known, without a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit_report import FitReport
from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.models.identity import ModelIdentity, Site
from lrt_tl.runs.run import BehaviorTransfer, TransferRun
from lrt_tl.steering.vector import SteeringVector

NO_NEUTRAL = Recovery(None, None, None, "no neutral text was given")
HARVEST = {"documents": 12, "documents_excluded": 3, "positions": 900, "special_dropped": 100}
REPORT = FitReport(
    "ridge", 0.5, 0.5, 0.5, (0.4, 0.6), 0.1, 0.01, None, "relative ridge", ((0.01, 0.5),), 900, 225.0, HARVEST
)


def a_site(model: str, layer: int, d_model: int) -> Site:
    weights = {"embed": 0.5, "blocks.0.attn": -0.25}
    identity = ModelIdentity(model, None, 4, d_model, "ab" * 32, "float32", "raw", weights)
    return Site(f"blocks.{layer}.hook_resid_post", d_model, identity)


def a_result(name: str = "mood", recovery: Recovery | None = None) -> TransferResult:
    """Native scores 0.5, 2.5 and 4.5 at −1, 0 and 1; the transferred vector has half of them."""
    scores = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    return TransferResult(
        behavior=name,
        prompts=("one", "two"),
        coefficients=(-1.0, 0.0, 1.0),
        native=scores,
        transferred=scores / 2,
        controls={"random": torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(0)).double()},
        source_native=None,
        recovery=recovery or Recovery(0.5, 0.4, 0.6),
        recovery_matched_kl=NO_NEUTRAL,
        cosine_with_native=0.9,
        norm_over_native=0.8,
    )


def a_run(
    results: Sequence[TransferResult] = (),
    *,
    models: tuple[str, str] = ("small", "large"),
    samples: Sequence[Mapping[str, str]] = ({"prompt": "Once", "plain": " a sad day", "native": " a glad day"},),
    arguments: Mapping[str, Any] | None = None,
    **evidence: Any,
) -> TransferRun:
    """One behavior for each result; `evidence` is every behavior's, but that `of_run` is the run's."""
    source, target = a_site(models[0], 1, 4), a_site(models[1], 2, 3)
    affine_map = AffineMap(torch.eye(3, 4), torch.zeros(3), (source,), target, torch.eye(3), 1.0, REPORT)
    of_run = {name: evidence.pop(name) for name in ("off_target", "search", "comparison") if name in evidence}
    vectors = [SteeringVector(torch.ones(site.d_model), site) for site in (source, target, target)]
    behaviors = [
        BehaviorTransfer((vectors[0],), vectors[1], vectors[2], result, [dict(row) for row in samples], 4.0, **evidence)
        for result in results or [a_result()]
    ]
    return TransferRun(affine_map, behaviors, {"seed": 3} if arguments is None else arguments, **of_run)
