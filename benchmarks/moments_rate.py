"""How near does `Moments.update` come to the matrix products that it cannot do without?

`python benchmarks/moments_rate.py` takes batches of random activations, and interleaves updates with the bare products
XᵀX, XᵀY and YᵀY of the same batches. An update takes a little more than half of the symmetric ones, so that it can come
out faster than the bare products, in spite of all else that it does. Prints a table for people, and last one line of
JSON.
"""

import argparse
import json

import torch
from timing import interleaved

from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.tables import print_table
from lrt_tl.text.documents import N_SPLITS


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="512,1024", help="of source and target")
    parser.add_argument("--positions", type=int, default=16384, help="in a batch")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    d_source, d_target = map(int, given.widths.split(","))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = (torch.randn(given.positions, width, device=device) for width in (d_source, d_target))
    splits = torch.randint(N_SPLITS, (given.positions,))
    moments = Moments.empty(N_SPLITS, {"x": x.double().mean(0), "y": y.double().mean(0)}, fit_pairs(["x"], ["y"]))

    def update() -> None:
        moments.update({"x": x, "y": y}, splits)

    def products() -> None:
        _ = x.T @ x, x.T @ y, y.T @ y

    found = interleaved({"products": products, "update": update}, given.repeats)
    flops = 2 * given.positions * (d_source**2 + d_source * d_target + d_target**2)
    fraction = found["products"][1] / found["update"][1]
    print_table(
        f"{given.positions:,} positions, {d_source} → {d_target}, {device}, {torch.get_num_threads()} threads",
        {
            **{
                name: f"{1e3 * median:.1f} ms [{1e3 * low:.1f}, {1e3 * high:.1f}], {flops / median / 1e9:,.0f} GFLOP/s"
                for name, (low, median, high) in found.items()
            },
            "fraction of the bare products' rate": f"{fraction:.2f}",
        },
    )
    print(
        json.dumps(
            {
                "benchmark": "moments_rate",
                "widths": [d_source, d_target],
                "positions": given.positions,
                "device": str(device),
                "seconds": found,
                "fraction_of_gemm": fraction,
            }
        )
    )


if __name__ == "__main__":
    main()
