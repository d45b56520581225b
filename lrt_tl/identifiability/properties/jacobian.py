"""A relation as the model's own first-order map, from a subject's state at a layer to what is said of it:

    f(s∘q) ≈ β W s + b,    W = mean of ∂f/∂s,    b = mean of f − (∂f/∂s) s

(Hernandez et al. 2024, arXiv 2308.09124; f is here what the unembedding reads, after the last norm). Nothing is fitted
to answers: a few facts are enough. β makes up for the Jacobian being too short; they choose it, and so may you.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import READS, unembedding
from lrt_tl.identifiability.properties.facts import Fact, subject_end
from lrt_tl.identifiability.properties.ridge import shuffled
from lrt_tl.identifiability.properties.scores import N_NULL, Score, ratio_score
from lrt_tl.models.attach import attached
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.text.batches import pad, tokenize


@dataclass(frozen=True, eq=False)
class JacobianRelation:
    """The mean Jacobian of a relation, and its constant."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, "d_model"]
    hook_name: str
    """Where the subject's state is read."""
    n_facts: int

    def __call__(self, states: Float[Tensor, "fact d_model"], *, beta: float = 1.0) -> Float[Tensor, "fact d_model"]:
        """What the unembedding would read."""
        return beta * states @ self.weight.T + self.bias

    def __repr__(self) -> str:
        return f"JacobianRelation({self.hook_name}, mean of {self.n_facts} facts)"


@dataclass(frozen=True, eq=False)
class _Prompts:
    tokens: Int[Tensor, "fact position"]
    mask: Bool[Tensor, "fact position"]
    subject: Int[Tensor, "fact"]
    """The position of the subject's last token."""
    last: Int[Tensor, "fact"]


def mean_jacobian(
    model: HookedModel,
    facts: Sequence[Fact],
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    prepend_bos: bool = True,
) -> JacobianRelation:
    """W and b of a few facts, in one forward pass and one backward pass a dimension.

    Args:
        layer: the residual stream after this block, or `hook_name` another point of it.

    Raises:
        LrtError: there is no fact, a prompt does not name its subject, the subject does not end a token, or the model
            is being steered.
    """
    name = resolve_hook_name(model, layer=layer, hook_name=hook_name)
    with torch.enable_grad():
        nudge = torch.zeros(len(facts), model.cfg.d_model, requires_grad=True)
        s, f = _run(model, name, _prompts(model, facts, prepend_bos), nudge)
        weight, bias = torch.empty(f.shape[1], s.shape[1]), torch.empty(f.shape[1])
        for row in range(f.shape[1]):
            (slopes,) = torch.autograd.grad(f[:, row].sum(), nudge, retain_graph=True)
            weight[row] = slopes.mean(0)
            bias[row] = (f[:, row] - (slopes * s).sum(1)).mean().detach()
    return JacobianRelation(weight, bias, name, len(facts))


def faithfulness(
    model: HookedModel,
    relation: JacobianRelation,
    facts: Sequence[Fact],
    *,
    beta: float = 1.0,
    prepend_bos: bool = True,
    n_null: int = N_NULL,
    seed: int = 0,
) -> Score:
    """How often the likeliest token after β W s + b is the model's own likeliest after the prompt, with an interval
    over subjects. Null: the subjects' states are exchanged. Give facts that the Jacobian was not taken of.

    Raises:
        LrtError: as of `mean_jacobian`.
    """
    with torch.no_grad():
        s, f = _run(model, relation.hook_name, _prompts(model, facts, prepend_bos))
    g, constant = (None if part is None else part.cpu() for part in unembedding(model))
    assert g is not None
    said, own = (states @ g.T + (0 if constant is None else constant) for states in (relation(s, beta=beta), f))
    names = {name: number for number, name in enumerate(dict.fromkeys(fact.subject for fact in facts))}
    subjects = torch.tensor([names[fact.subject] for fact in facts])
    orders = shuffled(subjects, n_null, seed=seed)
    agrees = (said.argmax(1)[orders] == own.argmax(1)).double()
    return ratio_score(agrees[0], torch.ones_like(agrees[0]), subjects, agrees[1:].mean(1), seed=seed)


def _prompts(model: HookedModel, facts: Sequence[Fact], prepend_bos: bool) -> _Prompts:
    if not facts:
        raise LrtError("no facts: give one or more")
    require_at_rest(model)
    beginnings = [fact.prompt[: subject_end(fact)] for fact in facts]
    rows, until = (
        tokenize(model.tokenizer, texts, prepend_bos=prepend_bos)
        for texts in ([fact.prompt for fact in facts], beginnings)
    )
    for fact, row, begun in zip(facts, rows, until, strict=True):
        if row[: len(begun)] != begun:
            raise LrtError(f"in {fact.prompt!r} no token ends where the subject {fact.subject!r} does")
    tokens, mask, _ = pad(model.tokenizer, rows)
    return _Prompts(tokens, mask, *(torch.tensor([len(row) - 1 for row in each]) for each in (until, rows)))


def _run(
    model: HookedModel, hook_name: str, prompts: _Prompts, nudge: Float[Tensor, "fact d_model"] | None = None
) -> tuple[Float[Tensor, "fact d_model"], Float[Tensor, "fact d_model"]]:
    """The states of the subjects, without their graph, and what the unembedding reads after the prompts."""
    found: dict[str, Tensor] = {}
    rows = torch.arange(len(prompts.tokens))

    def at_subject(activation: Tensor, hook: object) -> Tensor | None:
        found["s"] = activation[rows, prompts.subject].detach().clone()
        if nudge is None:
            return None
        moved = activation.clone()
        moved[rows, prompts.subject] += nudge.to(activation)
        return moved

    def at_end(activation: Tensor, hook: object) -> None:
        found["f"] = activation[rows, prompts.last]

    device = model.cfg.device
    with attached(model, [(hook_name, at_subject), (READS, at_end)]):
        model(prompts.tokens.to(device), attention_mask=prompts.mask.to(device).long())
    return found["s"].float().cpu(), found["f"].float().cpu()
