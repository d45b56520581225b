"""The reference that costs no vector at all: asking for the behavior in the prompt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.effects import dose_response
from lrt_tl.evaluation.recovery import Effect, mean_effect
from lrt_tl.evaluation.strength import Strength
from lrt_tl.models.protocol import HookedModel
from lrt_tl.tables import html_table


@dataclass(frozen=True)
class Prompted:
    """What a text in front of the prompts does to the score, without steering.

    Attributes:
        effect: mean score with the positive example in front minus that with the negative one; or with an instruction
            minus without.
        over_native: that effect as a multiple of the native vector's at `Strength.coefficient`, both on the prompts
            that it is scored on. None where the native vector has no effect there.
        texts: the positive and the negative example, or the instruction.
        reason: why there is no effect.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> large, pairs = storyworld.load("large"), storyworld.contrast_pairs("language", 8)
        >>> vector = lrt.mean_difference(large, pairs, layer=3)
        >>> options = {"native": vector, "examples": (pairs[0].positive, pairs[0].negative), "n_draws": 2}
        >>> result = lrt.evaluate_transfer(large, vector, storyworld.behavior("language", 8), **options)
        >>> round(result.prompted.effect.estimate)  # nats, of a Spanish text in front instead of an English one
        3
    """

    effect: Effect | None = None
    over_native: float | None = None
    texts: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"texts": list(self.texts)}

    def table(self) -> dict[str, str]:
        """The same for people."""
        times = "" if self.over_native is None else f", {self.over_native:.2g} × the native vector's"
        return {"effect of a prompt alone": f"none: {self.reason}" if self.effect is None else f"{self.effect}{times}"}

    def __repr__(self) -> str:
        return f"Prompted({self.table()['effect of a prompt alone']})"

    def _repr_html_(self) -> str:
        return html_table(self.table())


def check_examples(examples: Sequence[str]) -> None:
    """Raises:
    LrtError: they are neither none nor two texts.
    """
    if examples and (isinstance(examples, str) or len(examples) != 2 or not all(text.strip() for text in examples)):
        raise LrtError(f"examples={examples!r:.80}: give two texts, one with the behavior and one without")


def prompted_effect(
    target: HookedModel,
    hook_name: str,
    behavior: Behavior,
    plain: Float[Tensor, "prompt"],
    strength: Strength,
    examples: Sequence[str] = (),
    *,
    batch_size: int = 256,
    prepend_bos: bool = True,
    seed: int = 0,
) -> Prompted:
    """Score the behavior with texts in front of its prompts, parted from them by a blank.

    Args:
        hook_name: any point that can be steered; nothing is added there.
        plain: the scores without anything in front.
        examples: a text with the behavior and one without; by default the behavior's instruction, where it has one.
    """
    texts = tuple(examples) or (() if behavior.instruction is None else (behavior.instruction,))
    if not texts:
        return Prompted(reason="no examples were given (examples=), and the behavior has no instruction")

    def scores_after(text: str) -> Tensor:
        nothing, asked = torch.zeros(1, target.cfg.d_model), behavior.after(text)
        scores: Tensor = dose_response(
            target, hook_name, nothing, asked, (0.0,), batch_size=batch_size, prepend_bos=prepend_bos
        )
        return scores[0, 0]

    try:
        with_it, *without = (scores_after(text) for text in texts)
    except LrtError as error:
        return Prompted(texts=texts, reason=f"with the text in front, {error}")
    effects = with_it - (without[0] if without else plain)
    native = 0.0 if strength.native is None else strength.native.estimate
    over_native = float(effects[list(strength.scoring)].mean()) / native if native > 0 else None
    return Prompted(mean_effect(effects, seed=seed), over_native, texts)
