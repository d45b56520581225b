"""A next-token predictor as what *All or None* speaks of: a representation of contexts, and one of tokens.

    p(token | context) = softmax over tokens of f(context) · g(token)

(Marconato et al. 2025, arXiv 2410.23501). In a language model f is what the unembedding reads, and g its columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional

from lrt_tl.errors import LrtError
from lrt_tl.tables import html_table

READS = "unembed.hook_in"
"""The hook point of f: what multiplies the unembedding."""
_LARGEST = 1e15
"""Sums of products of larger numbers overflow."""
_TOLERANCE = 1e-3
_LOGITS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class Predictor:
    """Representations of some contexts and of the tokens that may follow them.

    Raises:
        LrtError: the two have different dimensions, there is nothing, or a number is not finite or over 10¹⁵.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> f, g, documents = torch.randn(100, 4), torch.randn(20, 4), torch.arange(100) // 10
        >>> p = lrt.Predictor.from_arrays(f, g, bias=torch.randn(20), documents=documents, name="mine")
        >>> p  # the bias is one more dimension
        Predictor(mine, 100 contexts of 10 documents, 20 tokens, d 5)
        >>> tuple(p.logits(slice(3)).shape)
        (3, 20)
        >>> p.among(torch.arange(5))
        Predictor(mine, 100 contexts of 10 documents, 5 tokens, d 5)
    """

    f: Float[Tensor, "context d_model"]
    """Of contexts. With a bias in the unembedding a last dimension, of ones."""
    g: Float[Tensor, "token d_model"]
    """Of tokens. With a bias in the unembedding a last dimension, which is that bias."""
    documents: Int[Tensor, "context"]
    """Which document each context is of: those of one are not independent."""
    name: str = "predictor"
    tokens: tuple[str, ...] = ()
    """What the tokens are, where they have names."""
    note: str = ""
    """What of the model is left out, such as a soft cap."""
    coverage: Float64[Tensor, "context"] | None = None
    """The probability of these tokens among all that the model has; None where they are all."""

    def __post_init__(self) -> None:
        if self.f.shape[1] != self.g.shape[1] or not len(self.f) or len(self.g) < 2:
            raise LrtError(
                f"{self.name}: contexts {tuple(self.f.shape)} and tokens {tuple(self.g.shape)} need one dimension, a "
                "context or more, and two tokens or more"
            )
        if len(self.documents) != len(self.f) or len(self.tokens) not in (0, len(self.g)):
            raise LrtError(f"{self.name}: every context needs a document, and every token a name, or none")
        for what, states in (("context", self.f), ("token", self.g)):
            low, high = states.aminmax()
            if not (low >= -_LARGEST and high <= _LARGEST):  # or NaN
                wrong = (~(states.abs() <= _LARGEST).all(1)).nonzero()[:, 0]
                raise LrtError(
                    f"{self.name}: {len(wrong)} of {len(states)} representations of {what}s are not finite, or over "
                    f"{_LARGEST:g}; the first is number {int(wrong[0])}: leave them out, or compute them in a wider "
                    "precision"
                )

    @classmethod
    def from_arrays(
        cls,
        f: Float[Tensor, "context d_model"],
        g: Float[Tensor, "token d_model"],
        bias: Float[Tensor, "token"] | None = None,
        *,
        documents: Int[Tensor, "context"] | None = None,
        name: str = "predictor",
        tokens: Sequence[str] = (),
        note: str = "",
    ) -> "Predictor":
        """From plain arrays; a bias of the tokens becomes one more dimension, [f; 1] · [g; bias].

        Args:
            documents: by default every context is a document of its own.
        """
        if bias is not None and bool(bias.any()):
            f, g = functional.pad(f, (0, 1), value=1.0), torch.cat([g, bias[:, None].to(g)], dim=1)
        documents = torch.arange(len(f)) if documents is None else documents
        return cls(f, g, documents, name, tuple(tokens), note)

    @property
    def d_model(self) -> int:
        """Of the representations, with the bias's dimension."""
        return int(self.f.shape[1])

    @property
    def n_documents(self) -> int:
        """How many documents the contexts are of."""
        return len(set(self.documents.tolist()))

    def logits(self, contexts: slice = slice(None)) -> Float64[Tensor, "some_context token"]:
        """float64, from products of the precision that the representations have."""
        return (self.f[contexts] @ self.g.T).double()

    def take(self, contexts: Tensor) -> "Predictor":
        """At some of the contexts: indices, or a mask."""
        coverage = None if self.coverage is None else self.coverage[contexts]
        return replace(self, f=self.f[contexts], documents=self.documents[contexts], coverage=coverage)

    def among(self, tokens: Int[Tensor, "some_token"]) -> "Predictor":
        """Given that the next token is one of these: log-ratios of two of them stay what they are."""
        names = tuple(self.tokens[token] for token in tokens.tolist()) if self.tokens else ()
        size = max(1, _LOGITS_AT_ONCE // len(self.g))
        coverage = torch.empty(len(self.f), dtype=torch.float64)
        for start in range(0, len(self.f), size):
            some = slice(start, start + size)
            coverage[some] = self.logits(some).softmax(1)[:, tokens].sum(1)
        before = 1.0 if self.coverage is None else self.coverage
        return replace(self, g=self.g[tokens], tokens=names, coverage=coverage * before)

    def __repr__(self) -> str:
        size = f"{len(self.f)} contexts of {self.n_documents} documents, {len(self.g)} tokens, d {self.d_model}"
        return f"Predictor({self.name}, {size})"

    def _repr_html_(self) -> str:
        rows = {
            "contexts": f"{len(self.f):,}, of {self.n_documents:,} documents",
            "tokens": f"{len(self.g):,}",
            "dimensions": str(self.d_model),
        }
        if self.coverage is not None:
            rows["probability that these tokens have, mean over contexts"] = f"{self.coverage.mean():.3f}"
        return html_table(rows | ({"note": self.note} if self.note else {}), caption=self.name)


def unembedding(model: Any) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token"] | None]:
    """A TransformerLens model's g and bias, in float32 or wider."""
    weight = model.W_U.detach().T
    bias = getattr(model, "b_U", None)
    wide = weight.double() if weight.dtype == torch.float64 else weight.float()
    return wide.contiguous(), None if bias is None else bias.detach().to(wide)


def soft_cap(model: Any) -> float | None:
    """The soft cap of a model's logits (Gemma-2 has 30): they are cap · tanh(f · g / cap); None without."""
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
    return float(cap) if cap > 0 else None


def check_reproduces(
    f: Float[Tensor, "*batch d_model"], model: Any, logits: Float[Tensor, "*batch token"], name: str
) -> None:
    """Whether f · g + bias, capped where the model caps, are the logits that the model gave.

    Raises:
        LrtError: they are not, by more than a thousandth of their spread.
    """
    g, bias = unembedding(model)
    found = f.to(g) @ g.T + (0 if bias is None else bias)
    cap = soft_cap(model)
    capped = found if cap is None else cap * (found / cap).tanh()
    error, spread = float((capped - logits.to(g)).abs().max()), float(logits.float().std())
    if not error <= _TOLERANCE * max(spread, 1e-6):
        raise LrtError(
            f"{name}: the logits are not what the unembedding makes of {READS} (they differ by {error:.3g}, their "
            f"spread is {spread:.3g}): something after it changes them, and the theory does not hold for it"
        )
