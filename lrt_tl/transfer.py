"""The whole chain as one call: fit the map, find the vectors, carry them over, measure, and write it all down."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from lrt_tl.alignment.ends import Layers, both_ends, resolve_ends
from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.alignment.selection import Method
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior, read_behavior, texts_of
from lrt_tl.evaluation.controls import N_DRAWS, named_controls
from lrt_tl.evaluation.effects import COEFFICIENTS, check_coefficients
from lrt_tl.evaluation.evaluate import evaluate_transfer
from lrt_tl.evaluation.samples import sample_texts
from lrt_tl.models.hook_names import check_writable
from lrt_tl.models.protocol import HookedModel
from lrt_tl.runs.run import BehaviorTransfer, TransferRun, folder_name
from lrt_tl.steering.contrast import read_contrast_pairs
from lrt_tl.steering.extraction import mean_activation, mean_difference
from lrt_tl.steering.states import PairPosition, check_pair_position
from lrt_tl.storyworld.named import default_documents, named_behavior, named_contrast_pairs, named_documents
from lrt_tl.text.batches import Layout
from lrt_tl.text.documents import TEST, Exclusion, read_documents, split_of

_NEUTRAL_TEXTS, _SAMPLE_PROMPTS = 8, 3


def transfer(
    source: HookedModel,
    target: HookedModel,
    documents: Any = None,
    tasks: Sequence[tuple[Any, Any]] = (),
    *,
    layers: tuple[Layers, int] | None = None,
    hook_names: tuple[str | Sequence[str], str] | None = None,
    method: Method = "whitened",
    select_layers: bool = False,
    position: PairPosition = "mean",
    coefficients: Sequence[float] = COEFFICIENTS,
    n_draws: int = N_DRAWS,
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    prepend_bos: bool = True,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
) -> TransferRun:
    """Carry steering vectors from source to target, and measure what they do there.

    Args:
        documents: what the map is fitted on; whatever `read_documents` takes, or "storyworld", which is the default
            where both models are of that family. Those that contain a contrast text or a prompt of a behavior are
            dropped, and counted.
        tasks: contrast pairs and behavior of each vector; whatever `read_contrast_pairs` and `read_behavior` take, or
            "storyworld:mood" and the like for either.
        layers: source and target layer, or several source layers and the target's; or `hook_names`, of both.
            With several, the source's own slope is that of the last one's vector.
        method: which map: see `fit_affine_map`.
        select_layers: of several source layers, keep those that the map needs.
        position: where the contrast texts' states are read.
        coefficients: in units of the native vector.
        n_draws: random vectors, and shuffled maps.
        arguments: what to note down as the way to reproduce the run; by default these options.

    Raises:
        LrtError: any input is refused. Behaviors and contrast pairs are checked before the models run.
    """
    check_coefficients(coefficients)
    check_pair_position(position)
    read = [
        (read_contrast_pairs(named_contrast_pairs(contrast)), read_behavior(named_behavior(behavior)))
        for contrast, behavior in tasks
    ]
    _check_behaviors([behavior for _, behavior in read], source, target)
    source_hooks, (target_hook, *_) = resolve_ends(source, target, layers, hook_names)
    for model, name in [*((source, hook) for hook in source_hooks), (target, target_hook)]:
        check_writable(model, name)
    documents = read_documents(named_documents(default_documents(source, target) if documents is None else documents))
    texts = texts_of(*(part for task in read for part in task))
    affine_map = fit_affine_map(
        source,
        target,
        documents,
        layers=layers,
        hook_names=hook_names,
        exclude=texts,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        method=method,
        select_layers=select_layers,
    )
    neutral = neutral_texts(documents, Exclusion(texts))
    at_sources = [site.hook_name for site in affine_map.sources]
    reading: dict[str, Any] = {"position": position, "prepend_bos": prepend_bos}
    of_source = [mean_difference(source, pairs, hook_name=at_sources, **reading) for pairs, _ in read]
    natives = [mean_difference(target, pairs, hook_name=target_hook, **reading) for pairs, _ in read]
    carried = [affine_map.transport(vectors) for vectors in of_source]
    target_mean = mean_activation(target, neutral, hook_name=target_hook, prepend_bos=prepend_bos)
    behaviors = []
    for place, (_, behavior) in enumerate(read):
        vectors, native, transferred = of_source[place], natives[place], carried[place]
        others = carried[:place] + carried[place + 1 :]
        result = evaluate_transfer(
            target,
            transferred,
            behavior,
            native=native,
            affine_map=affine_map,
            controls=named_controls(vectors[-1], target_mean, others),
            source=(source, vectors[-1]),
            neutral=neutral,
            coefficients=coefficients,
            n_draws=n_draws,
            prepend_bos=prepend_bos,
            seed=seed,
        )
        strength = min(coefficient for coefficient in coefficients if coefficient > 0)
        steering = {"plain": None, "native": native.add(strength)}
        equal = transferred.scaled_to(native.norm)
        steering |= {"transferred": equal.add(strength), "transferred, reversed": equal.add(-strength)}
        samples = sample_texts(target, behavior.prompts[:_SAMPLE_PROMPTS], steering, prepend_bos=prepend_bos, seed=seed)
        behaviors.append(BehaviorTransfer(tuple(vectors), transferred, native, result, samples, strength))
    options: dict[str, Any] = {
        "layers": None if layers is None else both_ends(layers, None),
        "hook_names": None if hook_names is None else both_ends(None, hook_names),
        "method": method,
        "select_layers": select_layers,
        "position": position,
        "coefficients": list(coefficients),
    }
    options |= {"n_draws": n_draws, "context_length": context_length, "layout": layout, "prepend_bos": prepend_bos}
    return TransferRun(affine_map, behaviors, arguments or {**options, "batch_size": batch_size, "seed": seed})


def _check_behaviors(behaviors: Sequence[Behavior], source: HookedModel, target: HookedModel) -> None:
    if not behaviors:
        raise LrtError("there is nothing to transfer: give contrast pairs and a behavior")
    names = [folder_name(behavior.name) for behavior in behaviors]
    if len(set(names)) < len(names):
        raise LrtError(f"behaviors need different names: {[behavior.name for behavior in behaviors]}")
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
