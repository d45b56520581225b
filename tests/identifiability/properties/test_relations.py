"""Case 4, ridge against scikit-learn, the probe, and the subspaces of a relation."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties import ridge
from lrt_tl.identifiability.properties.facts import Facts, log_ratios
from lrt_tl.identifiability.properties.probing import linear_probing
from lrt_tl.identifiability.properties.relations import linear_subspaces, linearity, relational_linearity
from lrt_tl.identifiability.properties.ridge import PENALTIES, folds_of, ridge_folds, shuffled
from lrt_tl.identifiability.properties.scores import ratio_score, share_score
from lrt_tl.identifiability.subspaces import subspaces
from lrt_tl.identifiability.wider import widen_predictor
from tests.identifiability.canonical import CONTEXTS, TOKENS, K, normal, planted
from tests.unchecked import without_type_checks

N_FACTS = 100
FACTS = Facts(
    torch.arange(N_FACTS), torch.arange(N_FACTS, 2 * N_FACTS), torch.arange(N_FACTS) // 2, torch.arange(10, 20)
)
"""Contexts 0 to 99 are 50 subjects twice, contexts 100 to 199 their prompts."""


def related(noise: float = 0.0) -> Predictor:
    """φ(s∘q) = A φ(s) + a."""
    phi = normal(CONTEXTS, K, seed=0)
    answers = phi[:N_FACTS] @ (normal(K, K, seed=5) / K**0.5) + normal(K, seed=6)
    phi[N_FACTS : 2 * N_FACTS] = answers + noise * normal(N_FACTS, K, seed=7)
    return planted(phi=phi)


def test_case_4_relational_linearity_is_shared() -> None:
    junk = {"junk_f": normal(CONTEXTS, 3, seed=11), "junk_g": normal(TOKENS, 2, seed=12)}
    for predictor in (related(), widen_predictor(related(), 20, **junk)):
        found = relational_linearity(predictor, subspaces(predictor), facts=FACTS)
        assert found.effective.estimate == pytest.approx(1, abs=1e-9)
        assert found.raw.estimate == pytest.approx(1, abs=1e-9)
        assert found.effective.null < 0.1
        assert found.effective.holds


def test_case_4_what_reads_junk_is_one_models_own() -> None:
    """The answer depends on a part u of the subject that one model stores, beside φ, and the other does not."""
    phi, u = normal(CONTEXTS, K, seed=0), torch.zeros(CONTEXTS, 2, dtype=torch.float64)
    u[:N_FACTS] = normal(N_FACTS, 2, seed=3)
    of_junk = 0.5 * u[:N_FACTS] @ normal(2, K, seed=6)
    phi[N_FACTS : 2 * N_FACTS] = phi[:N_FACTS] @ normal(K, K, seed=5) / K**0.5 + of_junk
    plain = planted(phi=phi)
    storing = widen_predictor(plain, 12, junk_f=u)
    one, other = (relational_linearity(each, subspaces(each), facts=FACTS) for each in (storing, plain))
    assert one.raw.estimate == pytest.approx(1, abs=1e-9)
    assert 0.40 <= other.raw.estimate <= 0.88
    assert one.effective.estimate == pytest.approx(other.effective.estimate, abs=1e-6)


def test_effective_scores_are_of_the_distribution_also_where_the_relation_is_noisy() -> None:
    plain = related(noise=0.7)
    wide = widen_predictor(plain, 20, junk_f=3 * normal(CONTEXTS, 5, seed=1), junk_g=normal(TOKENS, 4, seed=2))
    for measure in (relational_linearity, linear_subspaces):
        one, other = (measure(each, subspaces(each), facts=FACTS) for each in (plain, wide))
        assert one.effective.estimate == pytest.approx(other.effective.estimate, abs=1e-8)
        assert abs(one.raw.estimate - other.raw.estimate) > 1e-3


def test_shuffled_subjects_have_no_linearity() -> None:
    responses, inputs = normal(N_FACTS, 4, seed=1), normal(N_FACTS, 30, seed=2)
    found = linearity(inputs, responses, FACTS.subjects)
    assert found.estimate < 0.05
    assert not found.holds


@pytest.mark.parametrize(("penalty", "least", "most"), [(1e-14, -math.inf, -0.5), (1e3, -0.05, 0.01)])
def test_pure_noise_is_no_skill(monkeypatch: pytest.MonkeyPatch, penalty: float, least: float, most: float) -> None:
    """Case 10: fewer samples than dimensions. Without a penalty the fit is perfect, and foretells nothing."""
    inputs, responses = normal(N_FACTS, 300, seed=1), normal(N_FACTS, 4, seed=2)
    monkeypatch.setattr(ridge, "PENALTIES", (penalty,))
    found = linearity(inputs, responses, FACTS.subjects)
    assert least < found.estimate < most
    assert not found.holds
    fold = next(ridge_folds(inputs, responses[None], FACTS.subjects))
    kept = ~fold.held_out
    left = responses[kept] - inputs[kept] @ fold.weight[0] - fold.constant
    share = float(left.square().sum() / (responses[kept] - fold.mean).square().sum())
    assert share == pytest.approx(0 if penalty < 1 else 1, abs=0.01)


def test_subjects_that_all_look_alike_foretell_nothing() -> None:
    """Nothing varies in what is read, though the answers do."""
    phi = normal(CONTEXTS, K, seed=0)
    phi[:N_FACTS] = phi[0]
    predictor = planted(phi)
    for measure in (relational_linearity, linear_probing):
        found = measure(predictor, subspaces(predictor), facts=FACTS, n_null=2)
        for score in (found.raw, found.effective):
            assert score.estimate < 0.01
            assert all(math.isfinite(value) for value in (score.low, score.high, score.null))
            assert not score.holds


def test_replies_that_are_never_said() -> None:
    """Probabilities of some replies are zero in float64."""
    psi = normal(TOKENS, K, seed=1)
    psi[10:13] *= 1000
    sure = planted(psi=psi)
    found = linear_probing(sure, subspaces(sure), facts=FACTS, n_null=2)
    for score in (found.raw, found.effective, *found.others.values()):
        assert all(math.isfinite(value) for value in (score.estimate, score.low, score.high, score.null))


def test_a_null_with_nothing_to_explain_is_zero() -> None:
    left, total = torch.tensor([[1.0, 1], [0, 0]]).double(), torch.tensor([[4.0, 4], [0, 0]]).double()
    assert share_score(left, total, torch.arange(2)).null == 0


def test_folds_fit_what_scikit_learn_does() -> None:
    inputs, groups = normal(40, 5, seed=1), torch.arange(40) // 2
    responses = (inputs @ normal(5, 3, seed=2) + normal(40, 3, seed=3))[None]
    fold = folds_of(groups)
    for number, found in enumerate(ridge_folds(inputs, responses, groups)):
        kept = fold != number
        assert torch.equal(found.held_out, ~kept)
        assert not set(groups[kept].tolist()) & set(groups[~kept].tolist())
        penalty = best_penalty(inputs, responses[0], fold, number)
        fit = Ridge(alpha=penalty * scale(inputs[kept])).fit(inputs[kept].numpy(), responses[0, kept].numpy())
        np.testing.assert_allclose(found.weight[0].T.numpy(), fit.coef_, atol=1e-9)
        np.testing.assert_allclose(found.constant[0].numpy(), fit.intercept_, atol=1e-9)


def scale(inputs: Tensor) -> float:
    centered = inputs - inputs.mean(0)
    return float(torch.linalg.eigvalsh(centered.T @ centered)[-1])


def best_penalty(inputs: Tensor, responses: Tensor, fold: Tensor, out: int) -> float:
    errors = dict.fromkeys(PENALTIES, 0.0)
    for inner in set(range(5)) - {out}:
        kept, judged = (fold != out) & (fold != inner), fold == inner
        for penalty in PENALTIES:
            fit = Ridge(alpha=penalty * scale(inputs[kept])).fit(inputs[kept].numpy(), responses[kept].numpy())
            errors[penalty] += float(np.square(fit.predict(inputs[judged].numpy()) - responses[judged].numpy()).sum())
    return min(errors, key=errors.__getitem__)


def test_shuffling_exchanges_whole_groups() -> None:
    groups = torch.tensor([3, 3, 7, 7, 7, 5])
    orders = shuffled(groups, 30)
    assert orders[0].tolist() == list(range(6))
    seen = set()
    for order in orders[1:]:
        taken = {int(groups[i]): set(groups[order[groups == groups[i]]].tolist()) for i in range(6)}
        assert all(len(each) == 1 for each in taken.values())
        assert sorted(next(iter(each)) for each in taken.values()) == [3, 5, 7]
        seen.add(tuple(order.tolist()))
    assert len(seen) > 3


def test_an_interval_over_groups() -> None:
    """Ten groups of ten equal rows each: the interval is that of ten numbers, not of a hundred."""
    values, groups = normal(10, seed=4).repeat_interleave(10), torch.arange(100) // 10
    found = ratio_score(values, torch.ones(100).double(), groups, torch.zeros(3).double())
    half = 1.96 * float(values[::10].std(correction=0)) / 10**0.5
    assert found.estimate == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_a_probe_of_what_is_linear_in_the_subject_says_what_the_model_does() -> None:
    mild = planted(related().f, 0.3 * related().g)  # where no reply is sure
    predictor = widen_predictor(mild, 14, junk_f=normal(CONTEXTS, 3, seed=11), junk_g=normal(TOKENS, 2, seed=12))
    found = linear_probing(predictor, subspaces(predictor), facts=FACTS, n_null=2)
    for score in (found.raw, found.effective):
        assert score.estimate > 0.95
        assert score.null < 0.1
    assert found.others["effective accuracy"].estimate > 0.9


def test_a_probe_of_what_is_not_there_takes_away_nothing() -> None:
    found = linear_probing(planted(), subspaces(planted()), facts=FACTS, n_null=2)
    assert not found.raw.holds
    assert not found.effective.holds


def test_contexts_of_one_answer_differ_along_the_kernel() -> None:
    """φ = (answer, nuisance), the answer one of ±e1, ±e2, ±e3: the relation reads its three coordinates alone."""
    answers = torch.randint(6, (N_FACTS,), generator=torch.Generator().manual_seed(0))
    codes = torch.eye(K).double()[:3].repeat(2, 1) * torch.tensor([1.0, 1, 1, -1, -1, -1]).double()[:, None]
    phi, psi = normal(CONTEXTS, K, seed=0), normal(TOKENS, K, seed=1)
    phi[:N_FACTS, :3] = 2 * codes[answers, :3]
    phi[N_FACTS : 2 * N_FACTS], psi[10:16] = 2 * codes[answers], 3 * codes
    facts = Facts(FACTS.after_subject, FACTS.after_prompt, torch.arange(N_FACTS), torch.arange(10, 16))
    found = linear_subspaces(planted(phi, psi), subspaces(planted(phi, psi)), facts=facts)
    assert found.raw.estimate == pytest.approx(1, abs=1e-9)
    assert found.raw.holds
    exchanged = Facts(facts.after_subject, facts.after_prompt.flip(0), facts.subjects, facts.replies)
    assert not linear_subspaces(planted(phi, psi), subspaces(planted(phi, psi)), facts=exchanged).raw.holds


def test_log_ratios_are_those_of_the_distribution_among_the_replies() -> None:
    among = planted().among(FACTS.replies).logits()[FACTS.after_prompt].log_softmax(1)
    torch.testing.assert_close(log_ratios(planted(), FACTS), among - among.mean(1, keepdim=True))


def test_facts_that_cannot_be_measured() -> None:
    with pytest.raises(LrtError, match=r"replies \[4\]: two or more, all different"):
        Facts(FACTS.after_subject, FACTS.after_prompt, FACTS.subjects, torch.tensor([4]))
    with without_type_checks(), pytest.raises(LrtError, match="every fact needs a context after its subject"):
        Facts(FACTS.after_subject[:3], FACTS.after_prompt, FACTS.subjects, FACTS.replies)
    few = Facts(torch.arange(8), torch.arange(8, 16), torch.arange(8) // 2, FACTS.replies)
    with pytest.raises(LrtError, match="4 subjects: 5 or more are needed"):
        relational_linearity(planted(), subspaces(planted()), facts=few)
    alone = Facts(torch.arange(6), torch.arange(6, 12), torch.arange(6), FACTS.replies)
    with pytest.raises(LrtError, match="some must share an answer and some not"):
        linear_subspaces(planted(), subspaces(planted()), facts=alone)
    still = Facts(torch.arange(20), torch.full((20,), 7), torch.arange(20), FACTS.replies)
    with pytest.raises(LrtError, match="nothing varies"):
        relational_linearity(planted(), subspaces(planted()), facts=still)
