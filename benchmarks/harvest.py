"""What does the harvest cost beyond the two forward passes that it cannot do without?

`python benchmarks/harvest.py` interleaves, over the same batches of the same text: the bare forward passes of both
models up to the harvested layers; harvest and moments; and, for comparison, `run_with_cache` of everything, whose
activations are kept for a fit afterwards. Memory is counted, not measured: the bytes of the tensors that each keeps
alive at its peak, moments and one batch of activations against the caches. Prints a table for people, and last one line
of JSON.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from timing import interleaved

import lrt_tl as lrt
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.models.capture import capture
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.storyworld.named import named_documents
from lrt_tl.tables import print_table
from lrt_tl.text.batches import token_batches
from lrt_tl.text.documents import N_SPLITS, read_documents


def n_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """What tensors hold, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def main() -> None:
    """Time all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="storyworld-small")
    parser.add_argument("--target", default="storyworld-large")
    parser.add_argument("--documents", default="storyworld")
    parser.add_argument("--layers", default="2:4")
    parser.add_argument("--n-documents", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    ends = list(map(int, given.layers.split(":")))
    models = [lrt.load_model(name) for name in (given.source, given.target)]
    hooks = [resolve_hook_name(model, layer=layer) for model, layer in zip(models, ends, strict=True)]
    texts = [document.text for document in islice(read_documents(named_documents(given.documents)), given.n_documents)]
    documents = read_documents(texts)
    harvest = Harvest(models[0], models[1], hooks[:1], hooks[1:], documents, batch_size=given.batch_size)
    calibration = harvest.calibrate()
    options: dict[str, Any] = {"batch_size": given.batch_size, "context_length": harvest.context_length}
    batches = list(token_batches([models[0].tokenizer], documents, **options))
    keys = [f"source:{hooks[0]}", f"target:{hooks[1]}"]

    def forward() -> None:
        for batch in batches:
            for model, hook in zip(models, hooks, strict=True):
                capture(model, batch.source.tokens, batch.source.mask, [hook])

    held: dict[str, int] = {}

    def ours() -> None:
        moments = Moments.empty(N_SPLITS, calibration.means, fit_pairs(keys[:1], keys[1:]))
        for batch in harvest.run(calibration, HarvestCounts()):
            moments.update(batch.states, batch.splits)
            kept = [*moments.sums.values(), *moments.products.values(), *moments.shifts.values()]
            held["harvest"] = max(held.get("harvest", 0), n_bytes([*kept, *batch.states.values()]))

    def full_cache() -> None:
        kept = []
        for batch in batches:
            for model in models:
                with torch.no_grad():
                    _, cache = model.run_with_cache(
                        batch.source.tokens, attention_mask=batch.source.mask.long(), return_type=None
                    )
                kept.append(cache)
        held["full_cache"] = n_bytes(tensor for cache in kept for tensor in cache.values())

    found = interleaved({"forward": forward, "harvest": ours, "full_cache": full_cache}, given.repeats)
    positions = sum(int(batch.source.content.sum()) for batch in batches)
    ratio = found["harvest"][1] / found["forward"][1]
    speedup = found["full_cache"][1] / found["harvest"][1]
    memory_ratio = held["full_cache"] / held["harvest"]
    names = {
        "forward": "two bare forward passes to these layers",
        "harvest": "harvest and moments",
        "full_cache": "run_with_cache of everything",
    }
    print_table(
        f"{given.source} L{ends[0]} → {given.target} L{ends[1]}, {positions:,} positions",
        {
            **{
                names[name]: f"{median:.2f} s [{low:.2f}, {high:.2f}], {positions / median:,.0f} positions/s"
                for name, (low, median, high) in found.items()
            },
            "harvest over forward": f"{ratio:.2f}",
            "faster than a full cache": f"{speedup:.1f} ×",
            "tensors alive, harvest and full cache": f"{held['harvest'] / 1e6:,.1f} MB, "
            f"{held['full_cache'] / 1e6:,.0f} MB: {memory_ratio:,.0f} × (counted)",
        },
    )
    print(
        json.dumps(
            {
                "benchmark": "harvest",
                "ratio_to_forward": ratio,
                "speedup_vs_full_cache": speedup,
                "memory_ratio_vs_full_cache": memory_ratio,
                "bytes_counted": held,
                "positions": positions,
                "seconds": found,
            }
        )
    )


if __name__ == "__main__":
    main()
