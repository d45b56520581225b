"""How fast is the harvest at the size of Bello et al. (arXiv 2506.00653), from Gemma-2 2b to 9b?

`python benchmarks/gpu_gemma_shapes.py` makes two models of those shapes with random weights in bfloat16 on a GPU
(nothing is downloaded; the vocabulary is small, for neither embedding nor unembedding is timed), and random words for
them, 512 tokens a row. It interleaves the bare forward passes of both up to the layers of a pair with harvest and
moments of the same text, for layers 20 → 20 and 20 → 33, and says what 10 million positions would take; the authors'
fit by gradient descent took about 200 minutes of a Grace-Hopper node. `--small` tries the same code on tiny shapes on
the CPU, which says nothing about speed. Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import interleaved
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedTokenizerFast

from lrt_tl.alignment.harvest import Harvest, HarvestCounts
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.models.capture import capture
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.protocol import HookedModel
from lrt_tl.tables import print_columns
from lrt_tl.text.batches import token_batches
from lrt_tl.text.documents import N_SPLITS, read_documents

POSITIONS, MINUTES = 10_000_000, 200
SHAPES: dict[str, dict[str, int]] = {
    "2b": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
           "num_key_value_heads": 4, "head_dim": 256},
    "9b": {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
           "num_key_value_heads": 8, "head_dim": 256},
}  # fmt: skip
SMALL: dict[str, dict[str, int]] = {
    "2b": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
           "num_key_value_heads": 1, "head_dim": 16},
    "9b": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2,
           "num_key_value_heads": 1, "head_dim": 16},
}  # fmt: skip
WORDS = [f"word{number}" for number in range(1000)]


def tokenizer() -> Any:
    """One token a word."""
    words = ["<unk>", "<s>", "</s>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def gemma(shape: dict[str, int], name: str, device: torch.device) -> HookedModel:
    """A Gemma-2 of this shape, its random weights made where they are used."""
    from transformer_lens.model_bridge import TransformerBridge

    words = tokenizer()
    tokens = {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = Gemma2Config(**shape, **tokens, architectures=["Gemma2ForCausalLM"])
    with torch.device(device):
        huggingface = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    with TemporaryDirectory() as folder:  # configuration and tokenizer are read from it; the weights are here
        place = Path(folder) / name
        config.save_pretrained(place)
        words.save_pretrained(place)
        model: Any = TransformerBridge.boot_transformers(
            str(place), device=str(device), dtype=torch.bfloat16, hf_model=huggingface.eval()
        )
    model.cfg.model_name = name
    checked: HookedModel = model.eval()
    return checked


def documents(n: int, n_words: int) -> list[str]:
    """Random words, one row of tokens each."""
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=n_words)) for _ in range(n)]


def time_pair(
    pair: tuple[HookedModel, HookedModel], layers: tuple[int, int], texts: list[str], given: Any
) -> dict[str, Any]:
    """Bare forward passes, and the harvest with its moments."""
    hooks = [resolve_hook_name(model, layer=layer) for model, layer in zip(pair, layers, strict=True)]
    options: dict[str, Any] = {"batch_size": given.batch_size, "context_length": given.context_length}
    harvest = Harvest(*pair, hooks[:1], hooks[1:], read_documents(texts), **options)
    calibration = harvest.calibrate()
    batches = list(token_batches([pair[0].tokenizer], harvest.documents, **options))
    pairs = fit_pairs([f"source:{hooks[0]}"], [f"target:{hooks[1]}"])
    moments = Moments.empty(N_SPLITS, calibration.means, pairs)

    def forward() -> None:
        for batch in batches:
            for model, hook in zip(pair, hooks, strict=True):
                capture(model, batch.source.tokens, batch.source.mask, [hook])

    def ours() -> None:
        for batch in harvest.run(calibration, HarvestCounts()):
            moments.update(batch.states, batch.splits)

    found = interleaved({"forward": forward, "harvest": ours}, given.repeats)
    positions = sum(int(batch.source.content.sum()) for batch in batches)
    rate = positions / found["harvest"][1]
    return {
        "layers": layers,
        "positions": positions,
        "seconds": found,
        "positions_per_second": rate,
        "ratio_to_forward": found["harvest"][1] / found["forward"][1],
        "minutes_of_10m_positions": POSITIONS / rate / 60,
    }


def main() -> None:
    """Time both pairs of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU")
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured (--small tries the code on the CPU)")
        print(json.dumps({"benchmark": "gpu_gemma_shapes", "skipped": "no GPU"}))
        return
    device = torch.device("cpu" if given.small else "cuda")
    shapes, layers = (SMALL, ((2, 2), (2, 3))) if given.small else (SHAPES, ((20, 20), (20, 33)))
    torch.manual_seed(0)
    source, target = (gemma(shapes[name], f"gemma-2-{name}-shape", device) for name in ("2b", "9b"))
    texts = documents(given.batches * given.batch_size, given.context_length - 1)
    found = [time_pair((source, target), pair, texts, given) for pair in layers]
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, tiny shapes"
    print_columns(
        f"Gemma-2 2b → 9b, random weights, bfloat16, {given.batch_size} × {given.context_length} tokens, {where}",
        [
            {
                "layers": f"{one['layers'][0]} → {one['layers'][1]}",
                "positions/s": f"{one['positions_per_second']:,.0f}",
                "over the bare forward passes": f"{one['ratio_to_forward']:.2f} ×",
                "10M positions": f"{one['minutes_of_10m_positions']:.1f} min (Bello et al.: about {MINUTES})",
            }
            for one in found
        ],
    )
    ratio = max(one["ratio_to_forward"] for one in found)
    small = {"small": True} if given.small else {}
    print(json.dumps({"benchmark": "gpu_gemma_shapes", **small, "ratio_to_forward": ratio, "pairs": found}))


if __name__ == "__main__":
    main()
