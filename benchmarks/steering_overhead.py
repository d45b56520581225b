"""What does steering cost `generate`?

`python benchmarks/steering_overhead.py` interleaves, on one model and one prompt, greedy generation with the KV cache:
plain; with a TransformerLens hook that adds the same vector; and steered by `vector.apply`, at all positions, at what is
generated only, and on a padded batch. With `--steering-vectors PYTHON`, the interpreter of an environment where that
library is installed beside a copy of the model as a Hugging Face folder, it also times its generation on the Hugging Face
model, plain and steered. Prints a table for people, and last one line of JSON: `ratio_to_plain` and
`ratio_to_bare_hook` are tokens per second over those of the other, by the median of the paired ratios of all rounds.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lrt_tl as lrt
from lrt_tl.models.identity import site_of
from lrt_tl.tables import print_table


def bare(model: Any, name: str, delta: Tensor, run: Callable[[], Any]) -> Any:
    """With a hook as anyone would write it."""

    def add(activation: Tensor, hook: Any) -> Tensor:
        return activation + delta

    with model.hooks(fwd_hooks=[(name, add)]):
        return run()


def rounds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work in each round, in turns and in an order that turns round too; two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 2):
        order = list(works) if repeat % 2 else list(works)[::-1]
        for name in order:
            started = time.perf_counter()
            works[name]()
            if repeat > 1:
                taken[name].append(time.perf_counter() - started)
    return taken


def ratio(of: list[float], to: list[float]) -> float:
    """Rate over rate: the median over the rounds."""
    return float((torch.tensor(to) / torch.tensor(of)).median())


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storyworld-large")
    parser.add_argument("--model-class", default="bridge", choices=["bridge", "hooked"])
    parser.add_argument("--prompt", default="Mira: Once, she lived in the harbor")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = lrt.load_model(given.model, model_class=given.model_class)
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    vector = lrt.SteeringVector(0.01 * direction, site_of(model, layer=model.cfg.n_layers // 2))
    tokens = torch.tensor([model.tokenizer(given.prompt)["input_ids"]], device=model.cfg.device)
    settings = {"max_new_tokens": given.tokens, "do_sample": False, "stop_at_eos": False, "verbose": False}

    def generate() -> Any:
        return model.generate(tokens, **settings)

    def steered(**how: Any) -> Callable[[], Any]:
        def run() -> Any:
            with vector.apply(model, 1.0, **how):
                return generate()

        return run

    delta = vector.direction.to(model.cfg.device)
    works = {
        "plain": generate,
        "a bare hook": lambda: bare(model, vector.site.hook_name, delta, generate),
        "steered": steered(),
        "steered, what is generated": steered(positions="generated"),
        "steered, last of the prompt, and generated": steered(positions={"prompt": {"last": 1}, "generated": "all"}),
        "steered, with the log": steered(log=True),
    }
    assert torch.equal(works["a bare hook"](), works["steered"]())
    taken = rounds(works, given.repeats)
    rows = {
        name: f"{given.tokens / sorted(some)[len(some) // 2]:,.0f} tokens a second, {ratio(some, taken['plain']):.3f} of plain"
        for name, some in taken.items()
    }
    print_table(f"{given.model}, {given.model_class}, {given.tokens} new tokens, {given.threads} thread(s)", rows)
    figures = {
        "model": given.model,
        "model_class": given.model_class,
        "ratio_to_plain": ratio(taken["steered"], taken["plain"]),
        "ratio_to_bare_hook": ratio(taken["steered"], taken["a bare hook"]),
        "seconds": {name: sorted(some)[len(some) // 2] for name, some in taken.items()},
        "repeats": given.repeats,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
