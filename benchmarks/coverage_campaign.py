"""Does the 95 % interval of `recovery` hold the truth in 95 of 100 measurements?

`python benchmarks/coverage_campaign.py --out benchmarks/results/coverage.json` measures the slopes of a large pool of
storyworld's prompts once. The pool's recovery is the truth. Then it repeats the measurement that a user makes, with a
few prompts of the pool and 64 random vectors, hundreds of times, and counts how often the interval holds the truth.

Slopes of native and transferred vectors are those of the dose–response curve, as `evaluate_transfer` takes them. Those
of random vectors are the linear limit: the gradient of each prompt's score with respect to what is added to the
residual stream, dotted with the vector. So every measurement draws vectors of its own, and their mean slope over the
sphere, which the truth needs, is 0 exactly. `linear` in the results compares the limit with measured curves: the
correlation over draws and prompts, and the ratio of their spreads.

Prints a table for people, and last one line of JSON. It takes about fifteen minutes on one core; what was measured is
kept in `--work`, and not measured again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.demo import COEFFICIENTS, N_PAIRS, middle_layer
from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.controls import N_DRAWS, random_directions
from lrt_tl.evaluation.effects import dose_response, slopes
from lrt_tl.evaluation.recovery import recovery
from lrt_tl.models.attach import attached
from lrt_tl.models.loading import load_model
from lrt_tl.tables import print_columns
from lrt_tl.text.batches import pad, tokenize

TARGET = "large"
BEHAVIORS = {"small": ("mood", "register"), "medium": ("register",)}
"""By source; storyworld has thousands of different prompts of these."""
N_POOL, N_DOCUMENTS, N_SIMULATIONS = 5000, 1500, 500
SIZES = (16, 32, 64)
SEED = 1
"""Of the pool's prompts: not those of any demonstration."""
_CHECKED_PROMPTS, _CHECKED_DRAWS = 64, 16


@dataclass(frozen=True)
class Pool:
    """What the simulations draw from: slopes of each prompt, and how each responds to any small vector."""

    native: Tensor
    """[prompt]"""
    transferred: Tensor
    """[prompt]"""
    gradient: Tensor
    """[prompt d_model]: the slope for a unit vector v, scaled to the native one's length, is gradient · v."""
    linear: Tensor
    """[2]: of the slopes of a few random vectors by that limit and by measured curves, the correlation, and the ratio
    of the curves' spread to the limit's."""

    @property
    def truth(self) -> float:
        """Recovery over all prompts and all random vectors, whose mean slope is 0."""
        return float(self.transferred.mean() / self.native.mean())


def vectors(
    source_name: str, behaviors: Sequence[str], n_documents: int = N_DOCUMENTS
) -> tuple[Any, dict[str, tuple[lrt.SteeringVector, lrt.SteeringVector]]]:
    """The target, and by behavior its own vector and the one carried over, at the native one's length."""
    source, target = (load_model(f"storyworld-{name}") for name in (source_name, TARGET))
    layer = middle_layer(target)
    pairs = {name: storyworld.contrast_pairs(name, N_PAIRS) for name in behaviors}
    affine_map = lrt.fit_affine_map(
        source, target, storyworld.documents(n_documents), layers=("all", layer), batch_size=64
    )
    at = [site.hook_name for site in affine_map.sources]
    found = {}
    for name in behaviors:
        native = lrt.mean_difference(target, pairs[name], layer=layer, position="last")
        own = lrt.mean_difference(source, pairs[name], hook_name=at, position="last")
        found[name] = (native, affine_map.transport(own).scaled_to(native.norm))
    return target, found


def measure(target: Any, behavior: Behavior, native: lrt.SteeringVector, transferred: lrt.SteeringVector) -> Pool:
    """The pool of one behavior."""
    hook_name = native.site.hook_name
    directions = torch.stack([native.direction, transferred.direction])
    own, carried = slopes(dose_response(target, hook_name, directions, behavior, COEFFICIENTS), COEFFICIENTS)
    gradient = native.norm * gradients(target, hook_name, behavior)
    random = random_directions(_CHECKED_DRAWS, directions.shape[1], seed=SEED)
    some = Behavior(behavior.name, behavior.prompts[:_CHECKED_PROMPTS], behavior.score)
    curves = slopes(dose_response(target, hook_name, native.norm * random, some, COEFFICIENTS), COEFFICIENTS).flatten()
    limit = (random.double() @ gradient[:_CHECKED_PROMPTS].T).flatten()
    linear = torch.stack([torch.corrcoef(torch.stack([limit, curves]))[0, 1], curves.std() / limit.std()])
    return Pool(own, carried, gradient, linear)


def gradients(model: Any, hook_name: str, behavior: Behavior, batch_size: int = 128) -> Tensor:
    """Of each prompt's score with respect to a vector that is added at all positions: [prompt d_model]."""
    scorer = behavior.scorer(model.tokenizer)
    rows = tokenize(model.tokenizer, behavior.prompts)
    found = []
    for start in range(0, len(rows), batch_size):
        tokens, mask, _ = pad(model.tokenizer, rows[start : start + batch_size])
        added = torch.zeros(len(tokens), 1, model.cfg.d_model, requires_grad=True)

        def add(activation: Tensor, hook: object, mask: Tensor = mask, added: Tensor = added) -> Tensor:
            return activation + mask[..., None] * added

        with attached(model, [(hook_name, add)]):
            logits = model(tokens, attention_mask=mask.long())
        last = logits[torch.arange(len(tokens)), mask.sum(1) - 1]
        (gradient,) = torch.autograd.grad(scorer(last).sum(), added)
        found.append(gradient[:, 0].double())
    return torch.cat(found)


def simulate(pool: Pool, n_prompts: int, n_simulations: int, *, seed: int) -> dict[str, Any]:
    """The measurement over and over, each time with other prompts and other random vectors."""
    generator = torch.Generator().manual_seed(seed)
    below = above = refused = 0
    widths = []
    for _ in range(n_simulations):
        chosen = torch.randperm(len(pool.native), generator=generator)[:n_prompts]
        seeds = torch.randint(2**31, (2,), generator=generator).tolist()
        draws = random_directions(N_DRAWS, pool.gradient.shape[1], seed=seeds[0]).double()
        found = recovery(pool.native[chosen], pool.transferred[chosen], draws @ pool.gradient[chosen].T, seed=seeds[1])
        if found.low is None or found.high is None:
            refused += 1
            continue
        below += found.high < pool.truth
        above += found.low > pool.truth
        widths.append(found.high - found.low)
    stated = n_simulations - refused
    return {
        "prompts": n_prompts,
        "simulations": n_simulations,
        "refused": refused,
        "coverage": (stated - below - above) / stated if stated else None,
        "too_low": below,
        "too_high": above,
        "mean_width": sum(widths) / stated if stated else None,
    }


def row(found: Mapping[str, Any]) -> dict[str, str]:
    """The same for people."""
    covered = "none" if found["coverage"] is None else f"{100 * found['coverage']:.1f} %"
    return {
        "pair": f"{found['source']} → {TARGET}",
        "behavior": found["behavior"],
        "truth": f"{found['truth']:.3f}",
        "prompts": str(found["prompts"]),
        "coverage": covered,
        "interval all below, all above": f"{found['too_low']}, {found['too_high']}",
        "refused": str(found["refused"]),
    }


def main() -> None:
    """Measure the pools, simulate, and write it all down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    parser.add_argument("--work", type=Path, default=Path("coverage_work"), help="where measurements are kept")
    parser.add_argument("--simulations", type=int, default=N_SIMULATIONS)
    parser.add_argument("--pool", type=int, default=N_POOL, help="prompts")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for source, names in BEHAVIORS.items():
        for name, pool in pools(source, names, given.pool, given.work).items():
            correlation, spread = pool.linear.tolist()
            of = {"source": source, "behavior": name, "truth": pool.truth, "pool": len(pool.native)}
            for size in SIZES:
                simulated = simulate(pool, size, given.simulations, seed=size)
                found.append({**of, **simulated, "linear": {"correlation": correlation, "spread": spread}})
                print(row(found[-1]), flush=True)
    print_columns("How often the 95 % interval holds the truth", map(row, found))
    result = {
        "benchmark": "coverage_campaign",
        "command": "python benchmarks/coverage_campaign.py --out benchmarks/results/coverage.json",
        "seed": SEED,
        "results": found,
    }
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def pools(source: str, names: Sequence[str], n_prompts: int, work: Path) -> dict[str, Pool]:
    """By behavior; those in the folder are not measured again."""
    files = {name: work / f"{source}-{name}-{n_prompts}.safetensors" for name in names}
    missing = [name for name, file in files.items() if not file.is_file()]
    target, found = vectors(source, missing) if missing else (None, {})
    for name, (native, transferred) in found.items():
        pool = measure(target, storyworld.behavior(name, n_prompts, seed=SEED), native, transferred)
        save_file({key: tensor.contiguous() for key, tensor in vars(pool).items()}, files[name])
    return {name: Pool(**load_file(file)) for name, file in files.items()}


if __name__ == "__main__":
    main()
