"""The steering experiments of Bello et al. 2025 (arXiv 2506.00653) from Gemma-2 2b to 9b, with the nulls they lack.

Steering vectors are found in the small model, carried to the large one by an affine map, and compared there with its
own: on multiple-choice tasks of Tan et al. (arXiv 2407.12404) in the base models, and on refusal in the instruction-
tuned ones (sections 3.3 and 3.4 of version 3 of the preprint). The paper maps layer 20 to layer 20; layer 33 is about
as deep in the large model as 20 is in the small one. Beside the paper's r stands that of random vectors.

    python gemma_section_4.py --documents pile.jsonl --chats chats.jsonl --tasks tasks --refusal refusal --out section_4

--documents holds text, a `{"text": …}` a line, and --chats conversations, a `{"messages": […]}` a line, a third of what
the map of the instruction-tuned models is fitted on. --tasks is a folder of model-written evaluations (Perez et al.,
arXiv 2212.09251), a `.jsonl` file a task: in github.com/anthropics/evals the five on HHH, self-awareness and reward are
in advanced-ai-risk/lm_generated_evals, the other eight in persona. --refusal is a folder with harmful.jsonl and
harmless.jsonl, a `{"text": …}` a line (the paper's are AdvBench and Alpaca). The paper let GPT-4.1 judge whole answers;
here the score is how much likelier one beginning of an answer is than another, and a positive slope is more refusal.

In bfloat16 both models fit one GPU of 80 GB. This has not been run on the real models yet. A run that was stopped goes
on: maps and tasks that are in --out are not made again. Prints a table, and last one line of JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

import lrt_tl as lrt

PAPER = {
    "corrigible-neutral-HHH": 0.807, "self-awareness-text-model": 0.810, "self-awareness-good-text-model": 0.833,
    "self-awareness-training-web-gpt": 0.906, "anti-LGBTQ-rights": 0.894, "openness": 0.878,
    "believes-AIs-are-not-an-existential-threat-to-humanity": 0.884, "subscribes-to-deontology": 0.918,
    "myopic-reward": 0.728, "believes-it-is-not-being-watched-by-humans": 0.981,
    "subscribes-to-average-utilitarianism": 0.924, "narcissism": 0.968,
    "willingness-to-use-physical-force-to-achieve-benevolent-goals": 0.957,
}  # fmt: skip
"""Mean r over steering strengths, table 1 of the paper; layer 20 → 20."""
GRID = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""Coefficients, in lengths of the large model's own vector."""
FITTING: dict[str, Any] = {"method": "ridge", "context_length": 512}
"""The paper's map is what ridge solves, and its rows have 512 tokens."""
N_NEUTRAL = 32


@dataclass(frozen=True)
class Task:
    """What a vector is made from, where its texts are read, and what it is tried on."""

    pairs: list[lrt.ContrastPair]
    position: str
    behavior: lrt.Behavior


def options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=2, default=["google/gemma-2-2b", "google/gemma-2-9b"])
    parser.add_argument("--chat-models", nargs=2, default=["google/gemma-2-2b-it", "google/gemma-2-9b-it"])
    parser.add_argument("--documents", required=True, help="text to fit the maps on: .jsonl, .parquet or .txt")
    parser.add_argument("--chats", help="conversations: .jsonl or .parquet")
    parser.add_argument("--tasks", type=Path, help="a folder of multiple-choice tasks, a .jsonl file each")
    parser.add_argument("--refusal", type=Path, help="a folder with harmful.jsonl and harmless.jsonl; needs --chats")
    parser.add_argument("--answers", nargs=2, default=["I cannot", "Here"], help="how a refusal begins, and an answer")
    parser.add_argument("--layers", default="20:20,33", help="a layer of the small model, and some of the large one")
    parser.add_argument("--out", type=Path, required=True, help="a folder: new, or that of a run that was stopped")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="to fit a map on")
    parser.add_argument("--pairs", type=int, default=128, help="contrast pairs of a task")
    parser.add_argument("--prompts", type=int, default=100, help="questions or requests that a vector is tried on")
    parser.add_argument("--draws", type=int, default=64, help="random vectors, and maps of shuffled pairs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    given = parser.parse_args(argv)
    if not (given.tasks or given.refusal) or (given.refusal and not given.chats):
        parser.error("give --tasks, or --refusal with --chats, or all three")
    return given


def multiple_choice_tasks(given: argparse.Namespace) -> dict[str, Task]:
    """Of each file some questions with both answers, and others to try the vector on."""
    tasks = {}
    for file in sorted(given.tasks.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        random.Random(0).shuffle(rows)
        n = min(given.prompts, len(rows) // 2)
        behavior = lrt.multiple_choice(rows[:n], name=file.stem)
        tasks[file.stem] = Task(lrt.read_contrast_pairs(rows[n:][: given.pairs]), "answer", behavior)
    return tasks


def refusal_task(tokenizer: Any, given: argparse.Namespace) -> dict[str, Task]:
    """Harmful requests against harmless ones, and other harmful ones to try the vector on."""

    def asked(file: Path) -> list[str]:
        turns = ([{"role": "user", "content": document.text}] for document in lrt.read_documents(file))
        texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
        return [text.removeprefix(tokenizer.bos_token or "") for text in texts]

    harmful, harmless = asked(given.refusal / "harmful.jsonl"), asked(given.refusal / "harmless.jsonl")
    n = min(given.prompts, len(harmful) // 2)
    refused, answered = ((beginning,) * n for beginning in given.answers)
    behavior = lrt.Behavior("refusal", tuple(harmful[:n]), lrt.Continuations(refused, answered))
    pairs = zip(harmful[n:][: given.pairs], harmless, strict=False)
    return {"refusal": Task(lrt.read_contrast_pairs(pairs), "last", behavior)}


def first_tokens(documents: Iterable[Any], tokenizer: Any, n: float) -> list[str]:
    """The first documents, n tokens in all."""
    texts, count = [], 0
    for document in documents:
        texts.append(document.text)
        count += len(tokenizer(document.text).input_ids)
        if count >= n:
            break
    return texts


def say_floor(
    models: list[str], tasks: dict[str, Task], texts: list[str], ends: tuple[list[int], ...], given: argparse.Namespace
) -> None:
    """The least memory and time that it can take, from the models' shapes and the rate of a matrix product here."""
    (begin,), to = ends
    dtype, sizes = getattr(torch, given.dtype), []
    for name in models:
        c = AutoConfig.from_pretrained(name)
        attention = 2 * c.hidden_size * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
        sizes.append((c.hidden_size, attention + 3 * c.hidden_size * c.intermediate_size, c.num_hidden_layers))
    (d, small, _), (e, large, depth) = sizes
    weights = sum(block * layers + width * c.vocab_size for width, block, layers in [*sizes, sizes[0]])  # and untrained
    kept = 7 * 8 * (d * d + len(to) * (d * e + e * e))  # float64, of five folds, validation and test
    products = d * d / 2 + len(to) * (d * e + e * e / 2)  # of a symmetric one half is taken
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    prompts = [prompt for task in tasks.values() for prompt in task.behavior.prompts]
    tokens, asked = (sum(map(len, tokenizer(some).input_ids)) for some in (texts, prompts))
    arms = 2 * given.draws + len(tasks) + 4  # random, shuffled, unrelated; native, carried, untrained, padded, mean
    maps = (
        2 * 2 * tokens * ((begin + 1) * small + (max(to) + 1) * large + products)
    )  # for the trained and the untrained
    steered = sum(2 * asked * arms * (len(GRID) - 1) * (depth - 1 - layer) * large for layer in to)
    n, rate = 8192 if given.device.startswith("cuda") else 512, 0.0
    matrix = torch.randn(n, n, device=given.device, dtype=dtype)
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        rate = max(rate, 2 * n**3 / (time.perf_counter() - started))
    gigabytes, hours = (weights * dtype.itemsize + kept) / 1e9, (maps + steered) / rate / 3600
    print(
        f"{' → '.join(models)}: {tokens:,} tokens to fit on, {tokens / d:.0f} a source dimension (it takes 20).\n"
        f"At least {gigabytes:.3g} GB: weights in {given.dtype}, and the sums of the map.\n"
        f"At least {hours:.2g} hours: {maps:.2g} FLOPs for the maps and {steered:.2g} for the steered runs, at the "
        f"{rate / 1e12:.3g} TFLOP/s of a matrix product on {given.device}; a model reaches less than that.",
        flush=True,
    )


def arguments_of(given: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    said = {name: value if isinstance(value, (int, list)) else str(value) for name, value in vars(given).items()}
    return {name: value for name, value in said.items() if name not in ("out", "device")}


def run(
    kind: str, models: list[str], tasks: dict[str, Task], texts: list[str], given: argparse.Namespace
) -> list[Path]:
    """Fit the maps; then find, carry and try each task's vector whose folder is not there. Returns the folders."""
    (begin,), to = ends = tuple([int(layer) for layer in end.split(",")] for end in given.layers.split(":"))
    folders = {(name, layer): given.out / f"{begin}-{layer}" / name for layer in to for name in tasks}
    if all(map(Path.exists, folders.values())):
        return list(folders.values())
    for task in tasks.values():
        task.behavior.scorer(AutoTokenizer.from_pretrained(models[0]))  # refuses answers that cannot be scored
    say_floor(models, tasks, texts, ends, given)
    neutral, fitted_on = texts[:N_NEUTRAL], texts[N_NEUTRAL:]
    tried_on = lrt.texts_of(*(part for task in tasks.values() for part in (task.pairs, task.behavior)))
    source, target = (lrt.load_model(name, device=given.device, dtype=getattr(torch, given.dtype)) for name in models)

    def maps_from(model: Any, name: str) -> lrt.AffineMaps:
        if not (folder := given.out / "maps" / name).exists():
            reading = {"layers": ends, "exclude": tried_on, "checkpoint": given.out / "checkpoints" / name}
            lrt.fit_affine_maps(model, target, fitted_on, **reading, **FITTING).save(folder)
        return lrt.AffineMaps.load(folder)

    def vectors(model: Any, at: Any) -> dict[str, Any]:
        return {name: lrt.mean_difference(model, t.pairs, layer=at, position=t.position) for name, t in tasks.items()}

    maps, own, natives = maps_from(source, kind), vectors(source, begin), vectors(target, to)
    untrained = lrt.reinitialized(source)
    untrained_maps, untrained_own = maps_from(untrained, f"{kind}-untrained"), vectors(untrained, begin)
    del untrained
    for place, layer in enumerate(to):
        carried = {name: maps[place].transport(vector) for name, vector in own.items()}
        for number, (name, task) in enumerate(tasks.items(), 1):
            if folders[name, layer].exists():
                continue
            print(f"layer {begin} → {layer}, {name} ({number} of {len(tasks)})", flush=True)
            native, others = natives[name][place], [v.direction for other, v in carried.items() if other != name]
            baseline = untrained_maps[place].transport(untrained_own[name])
            result = lrt.evaluate_transfer(
                target, carried[name], task.behavior, native=native, affine_map=maps[place],
                controls={"unrelated": torch.stack(others)} if others else {},
                baselines={"random_weights": baseline.direction[None]},
                source=(source, own[name]), neutral=neutral, coefficients=GRID, n_draws=given.draws,
            )  # fmt: skip
            steering = {"native": native.add(1.0), "transferred": carried[name].scaled_to(native.norm).add(1.0)}
            cost = lrt.side_effects(target, steering, neutral)
            samples = lrt.sample_texts(target, task.behavior.prompts[:3], {"plain": None, **steering})
            decision = lrt.decide(result, affine_map=maps[place], side_effects=cost)
            found = lrt.BehaviorTransfer(
                (own[name],), carried[name], native, result, samples, 1.0, side_effects=cost, decision=decision
            )
            lrt.TransferRun(maps[place], [found], arguments_of(given)).save(folders[name, layer])
    return list(folders.values())


def row_of(folder: Path) -> dict[str, Any]:
    """A run's figures; r is a mean over the coefficients but 0, where it is 1 whatever was carried."""
    summary = lrt.read_run(folder).summary
    found = summary["behaviors"][0]
    steered = [each for each in found["agreement"] if each["coefficient"] != 0]
    r, r_random, high = (mean(each[name] for each in steered) for name in ("r", "r_random", "r_random_high"))
    return {
        "layers": folder.parent.name.replace("-", ":"),
        "task": found["name"],
        "r_paper_20:20": PAPER.get(found["name"]),
        "r": r,
        "r_random": r_random,
        "r_random_q95": high,
        "recovery": found["recovery"]["estimate"],
        "recovery_low": found["recovery"]["low"],
        "recovery_high": found["recovery"]["high"],
        "recovery_untrained_source": found["baselines"]["random_weights"]["recovery"]["estimate"],
        "rank_among_random": found["random_slope"]["rank_of_transferred"],
        "prompts_moved_wrong_way": found["anti_steerable"]["transferred"],
        "kl_over_native": found["side_effects"]["transferred"]["kl"] / found["side_effects"]["native"]["kl"],
        "map_r2": summary["map"]["test_r2"],
        "verdict": found["decision"]["verdict"],
    }


def main(argv: list[str] | None = None) -> None:
    """All tasks of both pairs of models, one pair in memory at a time."""
    given, folders = options(argv), []
    record = given.out / "arguments.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != arguments_of(given):
        raise SystemExit(f"{given.out} was made with other arguments ({record}): choose another --out")
    given.out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(arguments_of(given), indent=2), encoding="utf-8")
    if given.tasks:
        tokenizer, tasks = AutoTokenizer.from_pretrained(given.models[0]), multiple_choice_tasks(given)
        texts = first_tokens(lrt.read_documents(given.documents), tokenizer, given.tokens)
        folders += run("tasks", given.models, tasks, texts, given)
    if given.refusal:
        tokenizer = AutoTokenizer.from_pretrained(given.chat_models[0])
        texts = first_tokens(lrt.read_documents(given.documents), tokenizer, given.tokens * 2 / 3)
        chats = lrt.read_documents(given.chats, chat_template=tokenizer)
        texts += first_tokens(chats, tokenizer, given.tokens / 3)
        folders += run("refusal", given.chat_models, refusal_task(tokenizer, given), texts, given)
    if not folders:
        raise SystemExit(f"{given.tasks} holds no .jsonl file")
    rows = [row_of(folder) for folder in folders]
    lines = [[name.replace("_", " ") for name in rows[0]], ["---"] * len(rows[0])]
    for row in rows:
        cells = row.values()
        lines.append(["–" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (given.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n")
    found = {"paper_20:20": {"mean": mean(PAPER.values()), "least": min(PAPER.values()), "most": max(PAPER.values())}}
    for layers in dict.fromkeys(row["layers"] for row in rows if row["task"] != "refusal"):
        of_tasks = [row for row in rows if row["layers"] == layers and row["task"] != "refusal"]
        found[layers] = {name: mean(row[name] for row in of_tasks) for name in ("r", "r_random")}
    print(json.dumps({"experiment": "gemma_section_4", "r_of_tasks": found, "rows": rows}))


if __name__ == "__main__":
    main()
