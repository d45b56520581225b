"""Does a linear probe of the subject's representation say what the predictor will?

    p(y|s∘q, y ∈ Y_q) = softmax(W f(s) + b)

It is fitted to the predictor's own distribution over the replies, by their KL divergence, and judged by it.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.coordinates import context_coordinates
from lrt_tl.identifiability.properties.facts import Facts, log_ratios
from lrt_tl.identifiability.properties.ridge import N_FOLDS, folds_of, shuffled
from lrt_tl.identifiability.properties.scores import N_NULL, PropertyScores, Score, share_score
from lrt_tl.identifiability.subspaces import Subspaces

PENALTIES = (1e-9, 1e-6, 1e-3, 1.0)
"""On the square of W, where the inputs' largest direction has variance one."""
_STEPS = 300


def linear_probing(
    predictor: Predictor, found: Subspaces, *, facts: Facts, n_null: int = N_NULL, seed: int = 0
) -> PropertyScores:
    """The share of KL(p ‖ mean p) that the probe takes away, for subjects that were held out: 1 if it says what the
    predictor does, 0 if a constant says as much. Others: `accuracy` (raw) and `effective accuracy`, how often the
    probe's likeliest reply is the predictor's. Null: the subjects' distributions are exchanged.

    Raises:
        LrtError: fewer than five subjects, or distributions that do not vary.
    """
    targets = log_ratios(predictor, facts).softmax(1)
    states = predictor.f[facts.after_subject].double()
    raw, accuracy = probe_scores(states, targets, facts.subjects, n_null, seed)
    reread = states @ context_coordinates(predictor, found)
    effective, effective_accuracy = probe_scores(reread, targets, facts.subjects, n_null, seed)
    return PropertyScores(raw, effective, {"accuracy": accuracy, "effective accuracy": effective_accuracy})


def probe_scores(
    inputs: Float[Tensor, "fact d"],
    targets: Float64[Tensor, "fact reply"],
    subjects: Int[Tensor, "fact"],
    n_null: int = N_NULL,
    seed: int = 0,
) -> tuple[Score, Score]:
    """The share of KL, and the accuracy, from any states to any distributions.

    Raises:
        LrtError: fewer than five subjects, or distributions that do not vary.
    """
    arms, fold = targets[shuffled(subjects, n_null, seed=seed)], folds_of(subjects, seed=seed)
    left, total, wrong = (torch.zeros(arms.shape[:2], dtype=torch.float64) for _ in range(3))
    for out in range(N_FOLDS):
        held, inner = fold == out, fold == (out + 1) % N_FOLDS
        penalty = _chosen(inputs.double(), arms, ~held & ~inner, inner)
        said, constant = _predicted(inputs.double(), arms, ~held, held, penalty)
        left[:, held] = _kl(arms[:, held], said)
        total[:, held] = _kl(arms[:, held], constant.clamp(min=torch.finfo(torch.float64).tiny).log()[:, None])
        wrong[:, held] = (said.argmax(-1) != arms[:, held].argmax(-1)).double()
    return (
        share_score(left, total, subjects, seed=seed),
        share_score(wrong, torch.ones_like(wrong), subjects, seed=seed),
    )


def _chosen(inputs: Tensor, arms: Tensor, fitted: Tensor, judged: Tensor) -> Float64[Tensor, "arm 1 1"]:
    """The penalty of each arm that predicts best."""
    penalties = torch.tensor(PENALTIES, dtype=torch.float64)
    said = [_predicted(inputs, arms, fitted, judged, each.expand(len(arms), 1, 1))[0] for each in penalties]
    losses = torch.stack([_kl(arms[:, judged], each).sum(1) for each in said])
    return penalties[losses.argmin(0)][:, None, None]


def _predicted(
    inputs: Tensor, arms: Tensor, fitted: Tensor, judged: Tensor, penalty: Tensor
) -> tuple[Float64[Tensor, "arm row reply"], Float64[Tensor, "arm reply"]]:
    """Log-probabilities of the rows that are judged, and the mean distribution of those that were fitted."""
    mean = inputs[fitted].mean(0)
    u, values, right = torch.linalg.svd(inputs[fitted] - mean, full_matrices=False)
    kept = values > 1e-10 * values[0]
    spread = values[kept] / values[0]
    x = u[:, kept] * len(u) ** 0.5
    weight, constant = _fitted(x, spread, arms[:, fitted].contiguous(), penalty.double())
    coordinates = (inputs[judged] - mean) @ (right[kept].T / values[kept] * len(u) ** 0.5)
    return (coordinates @ weight + constant).log_softmax(-1), arms[:, fitted].mean(1)


def _fitted(
    x: Float64[Tensor, "row k"],
    spread: Float64[Tensor, "k"],
    targets: Float64[Tensor, "arm row reply"],
    penalty: Float64[Tensor, "arm 1 1"],
) -> tuple[Float64[Tensor, "arm k reply"], Float64[Tensor, "arm 1 reply"]]:
    """Weights of the whitened inputs x and the constant, of every arm, by Nesterov's accelerated gradient. It goes over
    weights that penalty and inputs stretch alike, whose curvature is at most ½ and the penalty's share. All that a step
    makes is written where the last one was: to ask for new memory costs more than the arithmetic."""
    stretch = spread[:, None] / (spread.square()[:, None] + penalty).sqrt()
    shrink = torch.nn.functional.pad(penalty / (spread.square()[:, None] + penalty), (0, 0, 1, 0))
    design = torch.nn.functional.pad(x * stretch.mT, (1, 0), value=1.0)
    rate = 1 / (0.5 + shrink.amax(1, keepdim=True))
    weight = torch.zeros(len(targets), design.shape[2], targets.shape[2], dtype=torch.float64)
    weight[:, 0] = targets.mean(1).clamp(min=1e-12).log()
    ahead, moved, gradient = weight.clone(), torch.empty_like(weight), torch.empty_like(weight)
    logits, error = torch.empty_like(targets), torch.empty_like(targets)
    for step in range(_STEPS):
        torch.softmax(torch.bmm(design, ahead, out=logits), -1, out=error).sub_(targets).div_(len(x))
        torch.bmm(design.mT, error, out=gradient).addcmul_(shrink, ahead).mul_(rate)
        torch.sub(ahead, gradient, out=moved)
        torch.lerp(weight, moved, 1 + step / (step + 3), out=ahead)
        weight, moved = moved, weight
    return stretch * weight[:, 1:], weight[:, :1]


def _kl(p: Float64[Tensor, "arm row reply"], log_q: Float64[Tensor, "arm #row reply"]) -> Float64[Tensor, "arm row"]:
    found: Tensor = (torch.special.xlogy(p, p) - p * log_q).sum(-1)
    return found
