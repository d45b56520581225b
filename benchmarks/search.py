"""What does a search over all pairs of layers cost beside one pair?

`python benchmarks/search.py` interleaves the pass over the text and the fit of all pairs of layers with those of one:
the middle layers, and the last ones, to which the models run as far as for all. The null, which runs no model but
searches all pairs on shuffled positions of a fixed sample, is timed apart. Prints a table for people, and last one line
of JSON.
"""

import argparse
import json
from itertools import islice
from typing import Any

from timing import interleaved, seconds

import lrt_tl as lrt
from lrt_tl.alignment.accumulation import accumulate
from lrt_tl.alignment.fit import RELATIVE_RIDGES
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.layer_search import N_NULLS, _all_pairs, _null, _sample
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.identity import site_of
from lrt_tl.storyworld.named import named_documents
from lrt_tl.tables import print_table
from lrt_tl.text.documents import read_documents


def main() -> None:
    """Time one pair, all pairs, and the null."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="storyworld-small")
    parser.add_argument("--target", default="storyworld-large")
    parser.add_argument("--documents", default="storyworld")
    parser.add_argument("--n-documents", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    models = [lrt.load_model(name) for name in (given.source, given.target)]
    all_documents = read_documents(named_documents(given.documents))
    documents = read_documents([document.text for document in islice(all_documents, given.n_documents)])

    def search(layers: list[list[int]]) -> tuple[Harvest, list[list[str]], Moments, Any]:
        """What `search_layers` does before its null."""
        hooks = [[resolve_hook_name(m, layer=layer) for layer in of] for m, of in zip(models, layers, strict=True)]
        keys = [[f"{side}:{hook}" for hook in of] for side, of in zip(("source", "target"), hooks, strict=True)]
        sites = [[site_of(m, hook_name=hook) for hook in of] for m, of in zip(models, hooks, strict=True)]
        harvest = Harvest(models[0], models[1], hooks[0], hooks[1], documents)
        harvested = accumulate(harvest, sites[0], sites[1], fit_pairs(*keys))
        return harvest, keys, harvested.moments, _all_pairs(harvested.moments, keys, RELATIVE_RIDGES)

    depths = [model.cfg.n_layers for model in models]
    one, every = [[depth // 2] for depth in depths], [list(range(depth)) for depth in depths]
    last = [[depth - 1] for depth in depths]
    works = {"one_pair": lambda: search(one), "last_pair": lambda: search(last), "all_pairs": lambda: search(every)}
    found = interleaved(works, given.repeats)
    harvest, keys, moments, _ = search(every)
    calibration = harvest.calibrate()
    sample = _sample(harvest, calibration)
    null = seconds(lambda: _null(sample, calibration, keys, RELATIVE_RIDGES, N_NULLS, 0))
    ratios = {name: found["all_pairs"][1] / found[name][1] for name in ("one_pair", "last_pair")}
    positions = int(moments.count.sum())
    names = {
        "one_pair": f"one pair, L{one[0][0]} → L{one[1][0]}",
        "last_pair": f"one pair, L{last[0][0]} → L{last[1][0]}",
        "all_pairs": f"all {depths[0] * depths[1]} pairs",
    }
    print_table(
        f"{given.source} → {given.target}, {positions:,} positions",
        {
            **{names[name]: f"{median:.2f} s [{low:.2f}, {high:.2f}]" for name, (low, median, high) in found.items()},
            "all pairs over the middle one": f"{ratios['one_pair']:.2f}",
            "all pairs over the last one": f"{ratios['last_pair']:.2f}",
            f"null, {N_NULLS} draws on {len(sample.splits):,} positions": f"{null:.2f} s",
        },
    )
    print(
        json.dumps(
            {
                "benchmark": "search",
                "ratio_all_pairs_to_one": ratios["one_pair"],
                "ratio_all_pairs_to_last": ratios["last_pair"],
                "null_seconds": null,
                "positions": positions,
                "pairs": depths[0] * depths[1],
                "seconds": found,
            }
        )
    )


if __name__ == "__main__":
    main()
