"""Are two models one distribution, as far as samples of their completions tell?

For black boxes: the same prompts are given to both, and each answers every prompt several times (Gao et al. 2024,
*Model Equality Testing*, arXiv 2410.20247). The maximum mean discrepancy, with the kernel that counts agreeing
positions, is compared with what it is after samples of each prompt are exchanged between the models at random: if the
distributions are equal, the p-value is exact, however few samples there are.
"""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.progress import BAR
from lrt_tl.tables import flattened, html_table

_TIE = 1e-9
"""Sums of the same terms in another order differ by less."""


@dataclass(frozen=True)
class SampleTest:
    """Whether samples of two models differ within prompts.

    Attributes:
        discrepancy: the squared maximum mean discrepancy, a mean over prompts, unbiased (so it can be negative).
        p_value: the share of permutations with at least this discrepancy, itself among them.
        prompts: how many.
        samples: of each prompt, from either model.
        permutations: how many were drawn.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> p = torch.zeros(4, 5, 3, dtype=torch.long)
        >>> found = lrt.compare_samples(p, torch.ones_like(p))
        >>> found.prompts, found.samples, found.p_value
        (4, (5, 5), 0.001)
    """

    discrepancy: float
    p_value: float
    prompts: int
    samples: tuple[int, int]
    permutations: int

    def summary(self) -> dict[str, str]:
        """For a table."""
        return flattened(asdict(self))

    def to_json(self) -> dict[str, float | int | list[int]]:
        """All figures."""
        return {**asdict(self), "samples": list(self.samples)}

    def __str__(self) -> str:
        return f"discrepancy {self.discrepancy:.3g}, p = {self.p_value:.3g}, of {self.prompts} prompts"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def compare_samples(
    p: Int[Tensor, "prompt sample position"],
    q: Int[Tensor, "prompt sample_of_q position"],
    *,
    n_permutations: int = 999,
    seed: int = 0,
) -> SampleTest:
    """Test samples of two models after the same prompts for a difference. A large p-value is no evidence of equality.

    Args:
        p: token ids of one model's completions, padded to one length with an id of their own.
        q: the other's, by the same tokenizer.

    Raises:
        LrtError: prompts or positions are not as many, a prompt has fewer than two samples from either, or there are
            too few permutations for any p-value under .05.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> p, q = (torch.randint(high, (8, 10, 5), generator=generator) for high in (20, 10))  # 8 prompts
        >>> print(lrt.compare_samples(p, q))
        discrepancy 0.0502, p = 0.001, of 8 prompts
        >>> lrt.compare_samples(p, p).p_value
        1.0
    """
    if p.shape[0] != q.shape[0] or p.shape[2] != q.shape[2] or not p.shape[0] * p.shape[2]:
        raise LrtError(f"samples {tuple(p.shape)} and {tuple(q.shape)}: of the same prompts, padded to one length")
    if min(p.shape[1], q.shape[1]) < 2 or n_permutations < 19:
        raise LrtError(
            f"{p.shape[1]} and {q.shape[1]} samples a prompt, {n_permutations} permutations: give two and 19, or more"
        )
    n_prompts, n_p, n_q = len(p), p.shape[1], q.shape[1]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1 + n_permutations, dtype=torch.float64)
    for ours, theirs in tqdm(zip(p, q, strict=True), total=n_prompts, desc="prompts", **BAR):
        samples = torch.cat([ours, theirs])
        kernel = (samples[:, None] == samples[None]).double().mean(2)
        order = torch.rand(n_permutations, n_p + n_q, generator=generator).argsort(1)
        of_p = torch.cat([torch.arange(n_p + n_q)[None], order]) < n_p
        total += _discrepancies(kernel, of_p.double(), n_p, n_q)
    found = total / n_prompts
    extreme = int((found[1:] >= found[0] - _TIE).sum())
    return SampleTest(float(found[0]), (1 + extreme) / (1 + n_permutations), n_prompts, (n_p, n_q), n_permutations)


def _discrepancies(
    kernel: Float64[Tensor, "sample sample"], of_p: Float64[Tensor, "labelling sample"], n_p: int, n_q: int
) -> Float64[Tensor, "labelling"]:
    """The squared maximum mean discrepancy for each way to label the samples; none is paired with itself."""
    kernel = kernel - torch.diag(kernel.diagonal())
    to_p = of_p @ kernel
    within_p, across = (to_p * of_p).sum(1), (to_p * (1 - of_p)).sum(1)
    within_q = kernel.sum() - within_p - 2 * across
    return within_p / math.perm(n_p, 2) + within_q / math.perm(n_q, 2) - 2 * across / (n_p * n_q)
