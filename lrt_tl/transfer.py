"""The whole chain as one call: fit the map, find the vectors, carry them over, measure, and judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.ends import HookNames, Layers, both_ends, resolve_ends
from lrt_tl.alignment.fit import fit_moments, harvest_moments
from lrt_tl.alignment.layer_search import LayerSearch
from lrt_tl.alignment.selection import Method
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, read_behavior, texts_of
from lrt_tl.evaluation.capability import ChoiceQuestion, capability, read_questions
from lrt_tl.evaluation.controls import N_DRAWS
from lrt_tl.evaluation.decide import decide
from lrt_tl.evaluation.effects import COEFFICIENTS, check_coefficients
from lrt_tl.evaluation.evaluate import evaluate_transfer
from lrt_tl.evaluation.forecast import Forecast, forecasts
from lrt_tl.evaluation.layer_choice import LayerChoice, choose_layer
from lrt_tl.evaluation.off_target import off_target
from lrt_tl.evaluation.pareto import pareto
from lrt_tl.evaluation.recovery import FEWEST_DRAWS
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.evaluation.side_effects import side_effects
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.models.hook_names import check_writable
from lrt_tl.models.protocol import HookedModel
from lrt_tl.models.reinitialized import reinitialized
from lrt_tl.runs.provenance import digest
from lrt_tl.runs.run import BehaviorTransfer, TransferRun, folder_name
from lrt_tl.steering.contrast import ContrastPair, read_contrast_pairs
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.steering.states import PairPosition, check_pair_position
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.storyworld.named import (
    default_documents,
    default_questions,
    named_behavior,
    named_contrast_pairs,
    named_documents,
)
from lrt_tl.text.batches import Layout
from lrt_tl.text.documents import TEST, Documents, Exclusion, read_documents, split_of

_NEUTRAL_TEXTS, _SAMPLE_PROMPTS, _WRITTEN_PROMPTS = 8, 3, 4


@dataclass(frozen=True)
class _Task:
    contrast: Sequence[ContrastPair]
    behavior: Behavior


@dataclass(frozen=True)
class _Vectors:
    """One behavior's."""

    of_source: list[SteeringVector]
    transferred: SteeringVector
    native: SteeringVector


@dataclass(frozen=True)
class _Chain:
    """What all steps share."""

    source: HookedModel
    target: HookedModel
    documents: Documents
    tasks: Sequence[_Task]
    reading: Mapping[str, Any]
    """Of contrast texts."""
    harvesting: Mapping[str, Any]
    fitting: Mapping[str, Any]

    @property
    def prepend_bos(self) -> bool:
        return bool(self.reading["prepend_bos"])


def transfer(
    source: HookedModel,
    target: HookedModel,
    documents: Any = None,
    tasks: Sequence[tuple[Any, Any]] = (),
    *,
    layers: tuple[Layers, Layers] | None = None,
    hook_names: tuple[HookNames, HookNames] | None = None,
    method: Method = "whitened",
    select_layers: bool = False,
    position: PairPosition = "mean",
    coefficients: Sequence[float] = COEFFICIENTS,
    n_draws: int = N_DRAWS,
    random_weights: bool = True,
    questions: Any = None,
    search: LayerSearch | None = None,
    comparison: Verdict | None = None,
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    prepend_bos: bool = True,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
) -> TransferRun:
    """Carry steering vectors from source to target, measure what they do there and what they cost, and judge it.

    Args:
        documents: what the map is fitted on; whatever `read_documents` takes, or "storyworld", which is the default
            where both models are of that family. Those that contain a contrast text or a prompt of a behavior are
            dropped, and counted.
        tasks: contrast pairs and behavior of each vector; whatever `read_contrast_pairs` and `read_behavior` take, or
            "storyworld:mood" and the like for either.
        layers: source and target layer, or several source layers and the target's; or `hook_names`, of both. With
            several, the source's own slope is that of the last one's vector. Of several *target* layers one is chosen
            on half of each behavior's prompts, and everything else is measured on the other half.
        method: which map: see `fit_affine_map`.
        select_layers: of several source layers, keep those that the map needs.
        position: where the contrast texts' states are read.
        coefficients: in units of the native vector.
        n_draws: random vectors, and shuffled maps.
        random_weights: measure what a source with random weights carries, which takes another pass over the text. What
            is left out is named in the report.
        questions: multiple choice, to see what steering does to what the target can do: whatever `read_questions`
            takes. Models of storyworld have their own.
        search: of layers, where one is at hand, to be shown in the report.
        comparison: what the two share as predictors, `compare(source, target).verdict`, where it is at hand: shown in
            the report and in the forecasts.
        arguments: what to note down as the way to reproduce the run; by default these options.

    Raises:
        LrtError: any input is refused. Behaviors and contrast pairs are checked before the models run.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> model, texts = storyworld.load("small"), storyworld.documents(60)
        >>> task = (storyworld.contrast_pairs("refusal", 16), storyworld.behavior("refusal", 8))
        >>> options = {"method": "ridge", "coefficients": (-1.0, 0.0, 1.0), "n_draws": 19, "random_weights": False}
        >>> run = lrt.transfer(model, model, texts, [task], layers=(1, 2), **options)  # from a layer to the next
        >>> round(run.behaviors[0].result.recovery.estimate, 1)
        0.9
    """
    check_coefficients(coefficients)
    if n_draws < FEWEST_DRAWS:
        raise LrtError(f"n_draws={n_draws}: a recovery takes {FEWEST_DRAWS} random vectors or more")
    check_pair_position(position)
    read = _read_tasks(tasks, source, target)
    source_hooks, target_hooks = resolve_ends(source, target, layers, hook_names)
    for model, names in ((source, source_hooks), (target, target_hooks)):
        for name in names:
            check_writable(model, name)
    asked = default_questions(target) if questions is None else read_questions(questions)
    documents = read_documents(named_documents(default_documents(source, target) if documents is None else documents))
    texts = texts_of(*(part for task in read for part in (task.contrast, task.behavior)))
    harvesting: dict[str, Any] = {"layers": layers, "hook_names": hook_names, "exclude": texts, "layout": layout}
    harvesting |= {"batch_size": batch_size, "context_length": context_length, "prepend_bos": prepend_bos}
    fitting: dict[str, Any] = {"method": method, "select_layers": select_layers}
    reading = {"position": position, "prepend_bos": prepend_bos, "batch_size": batch_size}
    chain = _Chain(source, target, documents, read, reading, harvesting, fitting)
    neutral = neutral_texts(documents, Exclusion(texts))

    maps = _maps(chain)
    found = [_vectors(chain, affine_map) for affine_map in maps]
    known: dict[str, Any] = {"search": search, "verdict": comparison}
    forecasts_of_maps = [_forecasts(chain, each, of_map, known) for each, of_map in zip(maps, found, strict=True)]
    choice, behaviors = _choose_layer(chain, found, coefficients, seed)
    chosen = 0 if choice is None else choice.chosen
    affine_map, vectors, foreseen = maps[chosen], found[chosen], forecasts_of_maps[chosen]
    untrained, without = _untrained(chain, affine_map, seed) if random_weights else ([None] * len(read), "")
    evaluating: dict[str, Any] = {
        "coefficients": coefficients,
        "n_draws": n_draws,
        "prepend_bos": prepend_bos,
        "seed": seed,
    }
    measured = []
    for place, (behavior, own) in enumerate(zip(behaviors, vectors, strict=True)):
        others = [each.transferred.direction for each in vectors[:place] + vectors[place + 1 :]]
        baseline, contrast = untrained[place], read[place].contrast[0]
        result = evaluate_transfer(
            target,
            own.transferred,
            behavior,
            native=own.native,
            affine_map=affine_map,
            controls={"unrelated": torch.stack(others)} if others else {},
            baselines={} if baseline is None else {"random_weights": baseline.direction[None]},
            source=(source, own.of_source[-1]),
            examples=() if behavior.instruction else (contrast.positive, contrast.negative),
            neutral=neutral,
            **evaluating,
        )
        if without:
            result = replace(result, missing={**result.missing, "baselines": without})
        measured.append(_judged(chain, affine_map, own, result, foreseen[place], neutral, asked, seed))
    natives, carried = (
        {behavior.name: getattr(own, kind) for behavior, own in zip(behaviors, vectors, strict=True)}
        for kind in ("native", "transferred")
    )
    options: dict[str, Any] = {
        "layers": None if layers is None else both_ends(layers, None),
        "hook_names": None if hook_names is None else both_ends(None, hook_names),
        "method": method,
        "select_layers": select_layers,
        "position": position,
        "coefficients": list(coefficients),
        "n_draws": n_draws,
        "random_weights": random_weights,
        "questions": str(questions) if isinstance(questions, (str, Path)) else questions and "as given",
        "context_length": context_length,
        "layout": layout,
        "prepend_bos": prepend_bos,
        "batch_size": batch_size,
        "seed": seed,
    }
    return TransferRun(
        affine_map,
        measured,
        arguments or options,
        off_target=off_target(
            target,
            natives,
            behaviors,
            transferred=carried,
            coefficients=coefficients,
            prepend_bos=prepend_bos,
            seed=seed,
        ),
        search=search,
        comparison=comparison,
        layer_choice=choice,
        data={"documents": digest(document.text for document in documents)},
    )


def _read_tasks(tasks: Sequence[tuple[Any, Any]], source: HookedModel, target: HookedModel) -> list[_Task]:
    read = [
        _Task(read_contrast_pairs(named_contrast_pairs(contrast)), read_behavior(named_behavior(behavior)))
        for contrast, behavior in tasks
    ]
    _check_behaviors([task.behavior for task in read], source, target)
    return read


def _maps(chain: _Chain) -> list[AffineMap]:
    """A map to each layer of the target that is asked for."""
    harvested = harvest_moments(chain.source, chain.target, chain.documents, **chain.harvesting)
    return [fit_moments(harvested, target=site, **chain.fitting) for site in harvested.targets]


def _vectors(chain: _Chain, affine_map: AffineMap) -> list[_Vectors]:
    """Of every behavior: found in the source, carried over, and found in the target."""
    at = [site.hook_name for site in affine_map.sources]
    found = []
    for task in chain.tasks:
        of_source = mean_difference(chain.source, task.contrast, hook_name=at, **chain.reading)
        native = mean_difference(chain.target, task.contrast, hook_name=affine_map.target.hook_name, **chain.reading)
        found.append(_Vectors(of_source, affine_map.transport(of_source), native))
    return found


def _untrained(chain: _Chain, affine_map: AffineMap, seed: int) -> tuple[Sequence[SteeringVector | None], str]:
    """What a source with random weights carries to the same layer; or why it cannot be told."""
    try:
        return _carried_untrained(chain, affine_map, reinitialized(chain.source, seed=seed)), ""
    except LrtError as error:
        return [None] * len(chain.tasks), str(error)


def _carried_untrained(chain: _Chain, affine_map: AffineMap, untrained: HookedModel) -> list[SteeringVector]:
    at = [site.hook_name for site in affine_map.sources]
    ends = {"layers": None, "hook_names": (at, affine_map.target.hook_name)}
    harvested = harvest_moments(untrained, chain.target, chain.documents, **{**chain.harvesting, **ends})
    carries = fit_moments(harvested, method=chain.fitting["method"])
    return [
        carries.transport(mean_difference(untrained, task.contrast, hook_name=at, **chain.reading))
        for task in chain.tasks
    ]


def _choose_layer(
    chain: _Chain, found: Sequence[Sequence[_Vectors]], coefficients: Sequence[float], seed: int
) -> tuple[LayerChoice | None, list[Behavior]]:
    """Where there are several layers: the choice, on half of the prompts, and the behaviors with the other half."""
    behaviors = [task.behavior for task in chain.tasks]
    if len(found) == 1:
        return None, behaviors
    halves = [behavior.split(seed) for behavior in behaviors]
    tried = [[(each.native, each.transferred) for each in of_layer] for of_layer in found]
    choice = choose_layer(
        chain.target, tried, [half for half, _ in halves], coefficients=coefficients, prepend_bos=chain.prepend_bos
    )
    return choice, [half for _, half in halves]


def _forecasts(
    chain: _Chain, affine_map: AffineMap, vectors: Sequence[_Vectors], known: Mapping[str, Any]
) -> list[Forecast]:
    """Made of the source and the map, before the target is steered."""
    reading = {name: chain.harvesting[name] for name in ("batch_size", "prepend_bos")}
    of_source = [each.of_source for each in vectors]
    return forecasts(chain.source, chain.target, chain.documents, of_source, affine_map=affine_map, **reading, **known)


def _judged(
    chain: _Chain,
    affine_map: AffineMap,
    vectors: _Vectors,
    result: TransferResult,
    forecast: Forecast,
    neutral: Sequence[str],
    questions: Sequence[ChoiceQuestion],
    seed: int,
) -> BehaviorTransfer:
    """The costs at the coefficient that was chosen, texts, and the verdict."""
    target, shared = chain.target, {"prepend_bos": chain.prepend_bos}
    strength = result.strength.coefficient or min(value for value in result.coefficients if value > 0)
    equal = vectors.transferred.scaled_to(vectors.native.norm)
    steering = {"native": vectors.native.add(strength), "transferred": equal.add(strength)}
    prompts = result.prompts[:_WRITTEN_PROMPTS]
    effects = side_effects(target, steering, neutral, prompts=prompts, seed=seed, **shared)
    doses = pareto(target, result, vectors.native, vectors.transferred, neutral, seed=seed, **shared)
    shown = {"plain": None, **steering, "transferred, reversed": equal.add(-strength)}
    return BehaviorTransfer(
        tuple(vectors.of_source),
        vectors.transferred,
        vectors.native,
        result,
        sample_texts(target, result.prompts[:_SAMPLE_PROMPTS], shown, seed=seed, **shared),
        strength,
        side_effects=effects,
        pareto=doses,
        capability=capability(target, steering, questions, **shared) if questions else None,
        forecast=forecast,
        decision=decide(result, affine_map=affine_map, forecast=forecast, pareto=doses, side_effects=effects),
    )


def _check_behaviors(behaviors: Sequence[Behavior], source: HookedModel, target: HookedModel) -> None:
    if not behaviors:
        raise LrtError("there is nothing to transfer: give contrast pairs and a behavior")
    names = [folder_name(behavior.name).lower() for behavior in behaviors]
    if len(set(names)) < len(names):
        called = [behavior.name for behavior in behaviors]
        raise LrtError(f"behaviors need different names, in the letters and digits of their folders: {called}")
    for behavior in behaviors:
        for model in (source, target):
            behavior.scorer(model.tokenizer)


def neutral_texts(documents: Any, exclusion: Exclusion | None = None) -> list[str]:
    """The first few test documents: no map was fitted on them.

    Raises:
        LrtError: no document is in the test split, which holds about a tenth of them.
    """
    exclusion = Exclusion(()) if exclusion is None else exclusion
    texts = (document.text for document in read_documents(documents))
    found = list(islice((text for text in texts if split_of(text) == TEST and text not in exclusion), _NEUTRAL_TEXTS))
    if not found:
        raise LrtError("no document is in the test split, from which neutral text is taken: give a hundred or more")
    return found
