"""Probes from labelled texts, and thresholds for them.

Scikit-learn takes a second to import, so it is imported on use.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy import ndarray

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import Site, identify, require_same_model, site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.states import text_states
from lrt_tl.text.documents import hash_of
from lrt_tl.text.reading import TextPosition

Scores = Float64[ndarray, "text"]
Labels = Bool[ndarray, "text"]
_FOLDS = 5


def fit_probe(
    model: HookedModel,
    texts: Sequence[str],
    labels: Sequence[bool | int],
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    position: TextPosition = "mean",
    batch_size: int = 32,
    prepend_bos: bool = True,
) -> Probe:
    """Logistic regression on the standardized states of labelled texts, with scikit-learn's default penalty.

    The standardization is folded into weight and bias, so that the probe reads states as they are, and gives log-odds:
    it says yes above 0. Its provenance holds accuracy and AUC, on the texts themselves and, `held_out`, by
    stratified cross-validation.

    Args:
        labels: for each text, True or 1 where it has the property.
        layer: the residual stream after this block; or `hook_name`.
        position: where each text's state is read.
        batch_size: texts in a forward pass.

    Raises:
        LrtError: labels that are not one for each text or of one class alone, or what `mean_difference` refuses.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, pairs = lrt.load_model("storyworld-small"), storyworld.contrast_pairs("refusal", 8)
        >>> texts = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
        >>> probe = lrt.fit_probe(model, texts, [True] * 8 + [False] * 8, layer=2)
        >>> probe
        Probe(storyworld-small L2, 64 dimensions, 'mean' > 0, logistic regression)
        >>> probe.provenance["held_out"]["accuracy"] > 0.8
        True
    """
    site, truth = site_of(model, layer=layer, hook_name=hook_name), _checked(texts, labels)
    states = _states(model, texts, site, position, batch_size, prepend_bos)
    weight, bias = _logistic(states, truth)
    scores = states @ weight + bias
    provenance = {
        "method": "logistic regression",
        "data": _hash(texts, truth),
        "prepend_bos": prepend_bos,
        "fitted_on": _figures(scores, truth, scores > 0),
        "held_out": _cross_validated(states, truth),
    }
    return Probe(torch.from_numpy(weight).float(), bias, 0.0, site, position, provenance)


def choose_threshold(
    probe: Probe,
    model: HookedModel,
    texts: Sequence[str],
    labels: Sequence[bool | int],
    *,
    batch_size: int = 32,
    prepend_bos: bool = True,
) -> Probe:
    """The same probe with the threshold that tells labelled texts apart best.

    It maximizes Youden's J = true-positive rate − false-positive rate (Youden 1950) and lies midway between two
    neighbouring scores; where several do, in the widest gap. The provenance then holds the rates, accuracy and AUC on
    these texts under `threshold_chosen_on`, and under `held_out`, each text judged by the threshold of the others.

    Args:
        labels: for each text, True or 1 where the probe is to say yes.
        batch_size: texts in a forward pass.

    Raises:
        MismatchError: the probe is of another model.
        LrtError: labels that are not one for each text or of one class alone; or no threshold does better than chance.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, pairs = lrt.load_model("storyworld-small"), storyworld.contrast_pairs("refusal", 16)
        >>> probe = lrt.Probe.of_vector(lrt.mean_difference(model, pairs[:8], layer=1))
        >>> texts = [pair.positive for pair in pairs[8:]] + [pair.negative for pair in pairs[8:]]
        >>> chosen = lrt.choose_threshold(probe, model, texts, [True] * 8 + [False] * 8)
        >>> probe.threshold, round(chosen.threshold), chosen.provenance["threshold_chosen_on"]["accuracy"]
        (0.0, 10, 1.0)
    """
    if probe.site.model is not None:
        require_same_model(probe.site.model, identify(model), what="the probe")
    truth = _checked(texts, labels)
    states = _states(model, texts, probe.site, probe.position, batch_size, prepend_bos)
    scores = states @ probe.weight.double().numpy() + probe.bias
    threshold, informedness = best_threshold(scores, truth)
    if informedness <= 0:
        raise LrtError(
            "no threshold tells these texts apart better than chance: the probe's scores are as high, or higher, where "
            "the label is no. Are the labels the wrong way round?"
        )
    provenance = {
        **probe.provenance,
        "threshold_data": _hash(texts, truth),
        "threshold_chosen_on": _figures(scores, truth, scores > threshold),
        "held_out": _leave_one_out(scores, truth),
    }
    return replace(probe, threshold=threshold, provenance=provenance)


def best_threshold(scores: Scores, truth: Labels) -> tuple[float, float]:
    """The threshold that maximizes Youden's J, midway in the widest such gap between scores; and its J.

    Raises:
        LrtError: all scores are equal.
    """
    order = np.argsort(scores, kind="stable")
    ordered, yes = scores[order], truth[order]
    gaps = np.diff(ordered)
    if not gaps.any():
        raise LrtError("the probe gives all of these texts the same score: no threshold tells them apart")
    below = np.cumsum(~yes)[:-1] / (~yes).sum() - np.cumsum(yes)[:-1] / yes.sum()
    informedness = np.where(gaps > 0, below, -np.inf)
    best = informedness.max()
    gap = int(np.where(informedness > best - 1e-12, gaps, -np.inf).argmax())
    return float((ordered[gap] + ordered[gap + 1]) / 2), float(best)


def _checked(texts: Sequence[str], labels: Sequence[bool | int]) -> Labels:
    if isinstance(texts, str) or not all(isinstance(label, (bool, int, np.bool_, np.integer)) for label in labels):
        raise LrtError("a probe is fitted to a list of texts, and a label, True or False, for each")
    values = [int(label) for label in labels]
    if len(values) != len(texts):
        raise LrtError(f"{len(values)} labels do not fit {len(texts)} texts: give one for each")
    if set(values) - {0, 1}:
        raise LrtError(f"labels are True or False, 1 or 0, and not {sorted(set(values) - {0, 1})}")
    if len(set(values)) < 2:
        raise LrtError(f"all {len(values)} labels are {bool(values and values[0])}: texts of both classes are needed")
    return np.array(values, dtype=bool)


def _states(
    model: HookedModel, texts: Sequence[str], site: Site, position: Any, batch_size: int, prepend_bos: bool
) -> Float64[ndarray, "text d_model"]:
    found = text_states(
        model, texts, [site.hook_name], position=position, batch_size=batch_size, prepend_bos=prepend_bos
    )
    return found[site.hook_name].states.double().numpy()


def _logistic(states: Float64[ndarray, "text d_model"], truth: Labels) -> tuple[Float64[ndarray, "d_model"], float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(states)
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(states), truth)
    weight = fitted.coef_[0] / scaler.scale_
    return weight, float(fitted.intercept_[0] - weight @ scaler.mean_)


def _figures(scores: Scores, truth: Labels, said: Labels) -> dict[str, float | int]:
    from sklearn.metrics import roc_auc_score

    return {"auc": float(roc_auc_score(truth, scores)), **_rates(truth, said)}


def _rates(truth: Labels, said: Labels) -> dict[str, float | int]:
    return {
        "accuracy": float((said == truth).mean()),
        "true_positive_rate": float(said[truth].mean()),
        "false_positive_rate": float(said[~truth].mean()),
        "n": len(truth),
        "n_positive": int(truth.sum()),
    }


def _cross_validated(states: Float64[ndarray, "text d_model"], truth: Labels) -> dict[str, float | int] | None:
    """The figures on folds that are each read by a probe of the others; None with one text of a class."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, truth.sum(), (~truth).sum())
    if folds < 2:
        return None
    scores = np.empty(len(truth))
    for train, held in StratifiedKFold(folds, shuffle=True, random_state=0).split(states, truth):
        weight, bias = _logistic(states[train], truth[train])
        scores[held] = states[held] @ weight + bias
    return _figures(scores, truth, scores > 0)


def _leave_one_out(scores: Scores, truth: Labels) -> dict[str, float | int] | None:
    """The rates where each text is judged by the threshold of the others; None with one text of a class, or where all
    others score the same."""
    others = ~np.eye(len(truth), dtype=bool)
    if min(truth.sum(), (~truth).sum()) < 2 or any(np.ptp(scores[rest]) == 0 for rest in others):
        return None
    said = [score > best_threshold(scores[rest], truth[rest])[0] for score, rest in zip(scores, others, strict=True)]
    return _rates(truth, np.array(said))


def _hash(texts: Sequence[str], truth: Labels) -> str:
    return f"{hash_of(json.dumps([list(texts), truth.tolist()])):016x}"
