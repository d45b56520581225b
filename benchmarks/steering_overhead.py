"""What does steering cost `generate`?

`python benchmarks/steering_overhead.py` interleaves, on one model and one prompt, greedy generation with the KV cache:
plain; with a TransformerLens hook that adds the same vector; and steered by `vector.apply`, at several positions and
with the log. `ratio_to_plain` and `ratio_to_bare_hook` are tokens per second over those of the other, the median of the
ratios of all rounds.

With `--steering-vectors PYTHON`, the interpreter of an environment that holds the library of that name, the same model
goes to it as a Hugging Face folder, and each library's steered `generate` of Transformers is set against the plain one
of its own process.

Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrt_tl as lrt
from lrt_tl.models.identity import site_of
from lrt_tl.tables import print_table

_THEIRS = """
import json, sys, time, torch
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM

folder, layer, tokens, new, repeats, threads = sys.argv[1], *map(json.loads, sys.argv[2:])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
direction = 0.01 * torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
vector = SteeringVector({layer: direction}, "decoder_block")
asked = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
ids = torch.tensor(tokens)

def plain():
    return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)

def steered():
    with vector.apply(model):
        return plain()

taken = {"plain": [], "steered": []}
for repeat in range(repeats + 2):
    for name, work in [("plain", plain), ("steered", steered)][:: 1 if repeat % 2 else -1]:
        started = time.perf_counter()
        work()
        if repeat > 1:
            taken[name].append(time.perf_counter() - started)
print(json.dumps(taken))
"""


def theirs(python: str, layer: int, tokens: Tensor, given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round in the other library's environment."""
    bundled = Path(lrt.__file__).parent / "storyworld" / "weights" / given.model
    folder = bundled if bundled.is_dir() else Path(given.model).absolute()
    numbers = [layer, tokens.tolist(), given.tokens, given.repeats, given.threads]
    command = [python, "-c", _THEIRS, str(folder), *map(json.dumps, numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tempfile.gettempdir())
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


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


def median(some: list[float]) -> float:
    return sorted(some)[len(some) // 2]


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
    parser.add_argument("--steering-vectors", metavar="PYTHON")
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
        name: f"{given.tokens / median(some):,.0f} tokens a second, {ratio(some, taken['plain']):.3f} of plain"
        for name, some in taken.items()
    }
    print_table(f"{given.model}, {given.model_class}, {given.tokens} new tokens, {given.threads} thread(s)", rows)
    figures = {
        "model": given.model,
        "model_class": given.model_class,
        "ratio_to_plain": ratio(taken["steered"], taken["plain"]),
        "ratio_to_bare_hook": ratio(taken["steered"], taken["a bare hook"]),
        "seconds": {name: median(some) for name, some in taken.items()},
        "repeats": given.repeats,
    }
    if given.steering_vectors:
        transformers = {"max_new_tokens": given.tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

        def hf_generate() -> Any:
            return model.hf_generate(tokens, attention_mask=torch.ones_like(tokens), **transformers)

        def hf_steered() -> Any:
            with vector.apply(model):
                return hf_generate()

        ours = rounds({"plain": hf_generate, "steered": hf_steered}, given.repeats)
        other = theirs(given.steering_vectors, model.cfg.n_layers // 2, tokens, given)
        figures["hf_generate_ratio_to_plain"] = ratio(ours["steered"], ours["plain"])
        figures["steering_vectors_ratio_to_plain"] = ratio(other["steered"], other["plain"])
        shown = {
            name: f"{given.tokens / median(some['steered']):,.0f} tokens a second, "
            f"{ratio(some['steered'], some['plain']):.3f} of its own plain"
            for name, some in (("lrt_tl, hf_generate", ours), ("steering-vectors, generate", other))
        }
        print_table("Transformers' generate, steered", shown)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
