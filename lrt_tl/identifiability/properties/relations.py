"""Is what a relation answers linear in the representation of its subject?

    P_Γ f(s∘q) = A_q f(s) + a_q,    Γ the span of g(y) − g(y′) over the replies y to q

(*All or None*, arXiv 2410.23501). It is fitted and judged as log-ratios between replies, f(s∘q) · (g(y) − ḡ): their R²
does not depend on the basis, as that of P_Γ f would. Then contexts of the same answer differ along ker A_q, and
contexts of different answers along im A_q⁺.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.coordinates import context_coordinates
from lrt_tl.identifiability.properties.facts import Facts, log_ratios
from lrt_tl.identifiability.properties.ridge import N_FOLDS, Fold, ridge_folds, shuffled
from lrt_tl.identifiability.properties.scores import N_NULL, PropertyScores, Score, share_score
from lrt_tl.identifiability.subspaces import Subspaces

_SMALLEST = 1e-6
"""Of the largest singular value of A_q: below it a direction is of its kernel."""


def relational_linearity(
    predictor: Predictor, found: Subspaces, *, facts: Facts, n_null: int = N_NULL, seed: int = 0
) -> PropertyScores:
    """R² of the replies' log-ratios, by ridge regression on f(s), of subjects that were held out; 0 is what a constant
    gives. Null: the subjects' log-ratios are exchanged.

    Effective: f(s) is read as its log-ratios over all tokens, so that predictors of equal distributions score the same.

    Raises:
        LrtError: fewer than five subjects, or log-ratios that do not vary.
    """
    responses, arms = log_ratios(predictor, facts), (facts.subjects, n_null, seed)
    raw, effective = (linearity(inputs, responses, *arms) for inputs in _inputs(predictor, found, facts))
    return PropertyScores(raw, effective)


def linearity(
    inputs: Float[Tensor, "fact d"],
    responses: Float64[Tensor, "fact reply"],
    subjects: Int[Tensor, "fact"],
    n_null: int = N_NULL,
    seed: int = 0,
) -> Score:
    """The same from any states, such as those of a layer at the subject, to any responses.

    Raises:
        LrtError: fewer than five subjects, or responses that do not vary.
    """
    arms = responses[shuffled(subjects, n_null, seed=seed)]
    left, total = (torch.zeros(arms.shape[:2], dtype=torch.float64) for _ in range(2))
    for fold in ridge_folds(inputs.double(), arms, subjects, seed=seed):
        held = arms[:, fold.held_out]
        predicted = inputs[fold.held_out].double() @ fold.weight + fold.constant[:, None]
        left[:, fold.held_out] = (held - predicted).square().sum(-1)
        total[:, fold.held_out] = (held - fold.mean[:, None]).square().sum(-1)
    return share_score(left, total, subjects, seed=seed)


def linear_subspaces(
    predictor: Predictor, found: Subspaces, *, facts: Facts, n_null: int = N_NULL, seed: int = 0
) -> PropertyScores:
    """1 − (share along im A_q⁺ of the difference of two contexts f(s) of one answer)/(the same of two answers), where
    A_q was fitted without their subjects: 1 if same-answer contexts differ along ker A_q alone, 0 if A_q tells nothing.
    The answer is the reply that the predictor finds likeliest. Null: A_q fitted on exchanged subjects.

    Raises:
        LrtError: fewer than five subjects, or no two facts of one fold that share an answer, or that do not.
    """
    responses = log_ratios(predictor, facts)
    raw, effective = (
        _separation(inputs, responses, facts.subjects, n_null, seed) for inputs in _inputs(predictor, found, facts)
    )
    return PropertyScores(raw, effective)


def _inputs(predictor: Predictor, found: Subspaces, facts: Facts) -> tuple[Tensor, Tensor]:
    """f(s), raw and as log-ratios."""
    states = predictor.f[facts.after_subject].double()
    return states, states @ context_coordinates(predictor, found)


def _separation(inputs: Tensor, responses: Tensor, subjects: Tensor, n_null: int, seed: int) -> Score:
    arms, answers = responses[shuffled(subjects, n_null, seed=seed)], responses.argmax(1)
    same, other = (torch.zeros(len(arms), len(inputs), dtype=torch.float64) for _ in range(2))
    n_same = n_other = torch.zeros(len(inputs), dtype=torch.float64)
    for fold in ridge_folds(inputs, arms, subjects, seed=seed):
        rows = fold.held_out.nonzero()[:, 0]
        pairs = torch.triu_indices(len(rows), len(rows), 1)
        first, second = rows[pairs[0]], rows[pairs[1]]
        shares = _shares(inputs[first] - inputs[second], fold)
        alike = (answers[first] == answers[second]).double()
        same.index_add_(1, first, shares * alike)
        other.index_add_(1, first, shares * (1 - alike))
        n_same, n_other = n_same.index_add(0, first, alike), n_other.index_add(0, first, 1 - alike)
    if not bool(n_same.any()) or not bool(n_other.any()):
        raise LrtError(
            f"of facts held out together (a fold is a {N_FOLDS}th of the subjects) some must share an answer and some "
            "not: give several prompts of each subject, and several subjects"
        )
    # 1 − [Σ same/Σ n_same]/[Σ other/Σ n_other], as Σ left/Σ total: the counts are those of the whole sample
    return share_score(same / n_same.sum(), other / n_other.sum(), subjects, seed=seed)


def _shares(differences: Float64[Tensor, "pair d"], fold: Fold) -> Float64[Tensor, "arm pair"]:
    """Of each difference's square, what lies in im A⁺, which is the span of A's rows."""
    left, values, _ = torch.linalg.svd(fold.weight, full_matrices=False)
    basis = left * (values > _SMALLEST * values[:, :1])[:, None]
    lengths = differences.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.einsum("nd,adk->ank", differences, basis).square().sum(-1) / lengths
