"""The demonstration: vectors of the bundled models, carried from one to another, as a table and as stories."""

from collections.abc import Mapping, Sequence
from typing import get_args

from lrt_tl.alignment.ends import Layers
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.decide import Verdict
from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.models.protocol import HookedModel
from lrt_tl.runs.run import BehaviorTransfer, TransferRun
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.storyworld.judge import score
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.named import is_storyworld
from lrt_tl.storyworld.tasks import behavior, contrast_pairs, find_task
from lrt_tl.text.positions import Positions
from lrt_tl.transfer import transfer

BEHAVIORS = ("mood", "register", "language", "refusal")
N_DRAWS, N_PAIRS, N_PROMPTS, N_DOCUMENTS = 24, 96, 32, 1500
COEFFICIENTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_STORY_TOKENS = 110
_LENGTHS, _NATS = 1.5, 4.0


def demonstrate(
    source: HookedModel,
    target: HookedModel,
    behaviors: Sequence[str] = BEHAVIORS,
    *,
    layers: tuple[Layers, int] | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    arguments: Mapping[str, str] | None = None,
) -> TransferRun:
    """Carry the vectors of storyworld's tasks from source to target, and measure them.

    Args:
        layers: by default all of the source's together, and the target's at half of its depth.

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
        layers=layers or ("all", middle_layer(target)),
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
    """The result as a table for newcomers, a row a behavior. Its headers are broken where 80 columns need it."""
    found = []
    for transfer_ in run.behaviors:
        result = transfer_.result
        toward = _said(result.behavior, find_task(result.behavior).positive)
        found.append(
            {
                "behavior": f"{result.behavior}: {toward}",
                "own\nvector": f"{result.slope('native'):+.2f}",
                "carried\nover": f"{result.slope('transferred'):+.2f}",
                "largest\nrandom": f"{max(result.control_slopes('random').tolist(), key=abs):+.2f}",
                "recovered": str(result.recovery),
                "verdict": "" if transfer_.decision is None else transfer_.decision.verdict,
            }
        )
    return found


def legend(run: TransferRun) -> dict[str, str]:
    """What the figures of `rows` are."""
    result = run.behaviors[0].result
    low, high = min(result.coefficients), max(result.coefficients)
    return {
        "effect:": f"slope by least squares over the coefficients {low:g} … {high:g}, "
        "in lengths of the target's own vector",
        "largest random:": f"of {len(result.controls['random'])} random vectors of that length, of either sign",
        "recovered:": "(carried over - random) / (own vector - random), random their mean, with its 95 % interval",
    }


def best_first(found: Sequence[BehaviorTransfer]) -> list[BehaviorTransfer]:
    """By verdict, from go to no-go; of one verdict the largest recovery first."""
    verdicts = get_args(Verdict)

    def place(each: BehaviorTransfer) -> tuple[int, float]:
        verdict = len(verdicts) if each.decision is None else verdicts.index(each.decision.verdict)
        estimate = each.result.recovery.estimate
        return verdict, float("inf") if estimate is None else -estimate

    return sorted(found, key=place)


def stories(target: HookedModel, found: BehaviorTransfer, *, seed: int = 0) -> tuple[str, list[dict[str, str]]]:
    """One text of the target three times, from the same random numbers: plain, and steered by either vector, away from
    what the plain text says: by 1.5 lengths of the target's own vector, or fewer where that is much (4 nats) already.
    A story is steered at every word, an answer by its request alone, since its first word decides it.

    Returns:
        How it was steered, and a row a text, with the share of it that the grammar finds to be so.
    """
    behavior_name = found.result.behavior
    task, prompt = find_task(behavior_name), english_prompt(behavior_name)
    positive, negative = (_said(behavior_name, value) for value in (task.positive, task.negative))
    positions: Positions = "prompt" if task.given["kind"] == "request" else "all"

    def told(name: str, vector: SteeringVector | None, coefficient: float) -> tuple[float, dict[str, str]]:
        steering = {name: None if vector is None else vector.add(coefficient, positions=positions)}
        written = sample_texts(target, [prompt], steering, max_new_tokens=_STORY_TOKENS, seed=seed)
        text = prompt + written[0][name]
        share = score(text, behavior_name).probabilities[task.positive]
        return share, {"steered by": name, "text": text, "the grammar says": f"{positive} {100 * share:.0f} %"}

    share, plain = told("nothing", None, 0.0)
    strength = min(_LENGTHS, _NATS / max(found.result.slope("native"), 1e-9))
    toward, coefficient = (negative, -strength) if share > 0.5 else (positive, strength)
    where = "at the prompt" if positions == "prompt" else "at every token"
    how = (
        f"{behavior_name} ({positive} or {negative}): {target.cfg.model_name}, from the same random numbers, "
        f"steered toward {toward} {where}, at {strength:.2f} lengths of its own vector"
    )
    vectors = {"its own vector": found.native, "the one carried over": found.transferred.scaled_to(found.native.norm)}
    return how, [plain, *(told(name, vector, coefficient)[1] for name, vector in vectors.items())]


def english_prompt(name: str) -> str:
    """The first of a task's neutral prompts that is not Spanish, for newcomers to read."""
    prompts = behavior(name, N_PROMPTS).prompts
    return next((prompt for prompt in prompts if score(prompt, "language").probabilities["Spanish"] < 0.6), prompts[0])


def _said(name: str, value: str) -> str:
    """A value in words for newcomers: what is harmful is refused."""
    return {"harmful": "refusing", "harmless": "complying"}[value] if name == "refusal" else value
