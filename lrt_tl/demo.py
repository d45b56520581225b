"""The demonstration: vectors of the bundled models, carried from one to another, as a table and as stories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.models.protocol import HookedModel
from lrt_tl.storyworld.judge import score
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.named import is_storyworld
from lrt_tl.storyworld.tasks import behavior, contrast_pairs, find_task
from lrt_tl.transfer import BehaviorTransfer, TransferRun, transfer

BEHAVIORS = ("mood", "language", "refusal", "register")
N_DRAWS, N_PAIRS, N_PROMPTS, N_DOCUMENTS = 24, 96, 32, 1500
COEFFICIENTS = (-4.0, -2.0, 0.0, 2.0, 4.0)
_PROMPTS = {"story": "Mira:", "request": "User: Please do what my letter says.\nAssistant:"}
_STORY_TOKENS = 110


@dataclass(frozen=True)
class Story:
    """A text of the target, and what the grammar makes of it.

    Attributes:
        name: how it was steered.
        text: with the prompt.
        verdict: the value that the text should have after steering, and the share of it that has, as "happy 100 %".
    """

    name: str
    text: str
    verdict: str


def demonstrate(
    source: HookedModel,
    target: HookedModel,
    behaviors: Sequence[str] = BEHAVIORS,
    *,
    layers: tuple[int, int] | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    arguments: Mapping[str, str] | None = None,
) -> TransferRun:
    """Carry the vectors of storyworld's tasks from source to target, and measure them.

    Args:
        layers: by default those at half of each model's depth.

    Raises:
        LrtError: a model is not of storyworld, or there is no such task.
    """
    for model in (source, target):
        if not is_storyworld(model):
            raise LrtError(
                f"the demonstration is for storyworld's models, not {model.cfg.model_name}: see lrt_tl.transfer"
            )
    tasks = [(contrast_pairs(name, N_PAIRS), behavior(name, N_PROMPTS)) for name in behaviors]
    return transfer(
        source,
        target,
        documents(N_DOCUMENTS),
        tasks,
        layers=layers or (middle_layer(source), middle_layer(target)),
        position="last",
        coefficients=COEFFICIENTS,
        n_draws=n_draws,
        batch_size=64,
        seed=seed,
        arguments=arguments,
    )


def middle_layer(model: HookedModel) -> int:
    """The block at half of the depth: its output is neither about the last token alone nor about the next one."""
    return int(model.cfg.n_layers) // 2


def rows(run: TransferRun) -> list[dict[str, str]]:
    """The result as a table for newcomers, a row a behavior."""
    found = []
    for transfer_ in run.behaviors:
        result = transfer_.result
        random = result.control_slopes("random")
        shuffled = result.control_slopes("shuffled_map")
        found.append(
            {
                "to make the target's text": find_task(result.behavior).positive,
                "target's own vector": f"{result.slope('native'):+.2f}",
                "carried over": f"{result.slope('transferred'):+.2f}",
                "strongest random": f"{max(random.tolist(), key=abs):+.2f}",
                "strongest by a shuffled map": f"{max(shuffled.tolist(), key=abs):+.2f}",
                "recovered": str(result.recovery),
            }
        )
    return found


def stories(target: HookedModel, found: BehaviorTransfer, *, strength: float = 3.0, seed: int = 0) -> list[Story]:
    """One text of the target three times, from the same random numbers: plain, and steered by either vector."""
    task = find_task(found.result.behavior)
    prompt = _PROMPTS[task.given["kind"]]
    steering = {
        "plain": None,
        "steered by its own vector": (found.native, strength),
        "steered by the one carried over": (found.transferred.scaled_to(found.native.norm), strength),
    }
    texts = sample_texts(target, [prompt], steering, max_new_tokens=_STORY_TOKENS, seed=seed)[0]
    told = []
    for name in steering:
        share = score(prompt + texts[name], found.result.behavior).probabilities[task.positive]
        told.append(Story(name, prompt + texts[name], f"{task.positive} {100 * share:.0f} %"))
    return told
