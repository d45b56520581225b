"""What pages of the site take from elsewhere in the repository when it is built, so that nothing is told twice.

`<!-- file CHANGELOG.md -->` in a page becomes that file, with its links made those of the site; `<!-- scripts -->` and
`<!-- tutorials -->` what each benchmark and notebook says of itself; `<!-- coverage -->` and the like, the figures that
a benchmark has left in `benchmarks/results`. Each notebook becomes a page.
"""

import ast
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
NOTEBOOKS = sorted((ROOT / "tutorials").glob("[0-9]*.ipynb"))

PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "CHANGELOG.md": "changelog.md",
    **{f"tutorials/{path.name}": f"tutorials/{path.stem}.md" for path in NOTEBOOKS},
}
"""Files of the repository, outside `docs/`, that are pages of the site."""

SIGNS = {
    r"^{-\top}": "⁻ᵀ", "^2": "²", r"\lVert ": "‖", r" \rVert": "‖", r"\,": " ", r"\;": " ", " - ": " − ", " .": ".",
    r"\approx": "≈", r"\sum": "Σ", r"\cdot": "·", r"\mid": "|", r"\lambda": "λ", r"\min": "min", r"\tanh": "tanh",
}  # fmt: skip
"""What the notebooks' formulas are written with, as plain text, which the site's formulas are."""


def on_files(files: Any, *, config: Any) -> None:
    """Called by mkdocs with what it has found in `docs/`."""
    from mkdocs.structure.files import File  # the tests need no mkdocs

    for path in NOTEBOOKS:
        uri = f"tutorials/{path.stem}.md"
        files.append(File.generated(config, uri, content=notebook(json.loads(path.read_text(encoding="utf-8")), uri)))


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with every page."""
    uri = page.file.src_uri

    def put(place: re.Match[str]) -> str:
        name, file = place[1], place[2]
        return relinked((ROOT / file).read_text(encoding="utf-8"), ".", uri) if name == "file" else TABLES[name]()

    text = relinked(markdown, f"docs/{os.path.dirname(uri)}", uri)
    return re.sub(r"^<!-- (\w+) ?(\S*) -->$", put, text, flags=re.MULTILINE)


def relinked(text: str, folder: str, uri: str) -> str:
    """Text of that folder of the repository, on that page of the site: links lead to the site's pages; what is only in
    the repository, such as a schema, is named without a link. Links to nothing stay, for mkdocs to find."""

    def link(match: re.Match[str]) -> str:
        label, path, anchor = match.groups()
        file = os.path.normpath(os.path.join(folder, path))
        within = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if within is not None:
            return f"[{label}]({os.path.relpath(within, os.path.dirname(uri))}{anchor or ''})"
        return label if (ROOT / file).exists() else match[0]

    return outside_code(lambda part: re.sub(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)", link, part), text)


def outside_code(change: Callable[[str], str], text: str) -> str:
    """The text changed, but for its blocks of code, which have brackets and the like of their own."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = map(change, parts[::2])
    return "".join(parts)


def notebook(content: dict[str, Any], uri: str) -> str:
    """A notebook as that page of the site: its text, its code without the cell that installs, and what that showed."""
    parts = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # The title comes first. The badge is a picture from elsewhere, of which its words are kept.
            source = re.sub(r"\A\[!\[(.*?)\]\(.*?\)\](\(.*?\))\s+(# .*)", r"\3\n\n[\1]\2", source)
            source = source.replace("<details>", '<details markdown="1">')
            parts.append(relinked(outside_code(plain_formulas, source), "tutorials", uri))
        elif "%pip" not in source:
            parts += [f"```python\n{source}\n```", *shown(cell["outputs"])]
    return "\n\n".join(parts) + "\n"


def shown(outputs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What a cell of a notebook showed, as Markdown: the best form of each output; what was printed, in one block."""
    forms = [
        {name: "".join(form) for name, form in output.get("data", {"text/plain": output.get("text")}).items()}
        for output in outputs
    ]
    for is_text, group in itertools.groupby(forms, lambda form: set(form) == {"text/plain"}):
        if is_text:
            text = "\n".join(form["text/plain"].rstrip("\n") for form in group)
            yield f"```text\n{text}\n```"
            continue
        for form in group:
            if "image/png" in form:
                picture = "".join(form["image/png"].split())
                yield f'<img alt="What the code above draws" src="data:image/png;base64,{picture}">'
            else:
                yield f"<div>{form['text/html']}</div>" if "text/html" in form else form["text/markdown"]


def plain_formulas(text: str) -> str:
    """Formulas between dollars as code, on a line of their own or in one."""

    def plain(match: re.Match[str]) -> str:
        formula = re.sub(r"\\(?:text|mathrm){(.*?)}", r"\1", match[1] or match[2])
        formula = re.sub(r"\\frac{(.*?)}{(.*?)}", r"(\1) / (\2)", formula)
        for written, sign in SIGNS.items():
            formula = formula.replace(written, sign)
        formula = " ".join(formula.split())
        return f"```text\n{formula}\n```" if match[1] else f"`{formula}`"

    return re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", plain, text)


def scripts() -> str:
    """Of each script its question, how it answers it, and the command."""
    parts = []
    for path in sorted(BENCHMARKS.glob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        command = re.search(rf"`(python benchmarks/{path.name}[^`]*)`", said)
        if command is not None:  # the others are what the scripts share
            parts.append(f"### {path.name}\n\n{said}\n\n```sh\n{' '.join(command[1].split())}\n```\n")
    return "\n".join(parts)


def tutorials() -> str:
    """Of each notebook its title and its question, which stand in its first cell."""
    parts = []
    for path in NOTEBOOKS:
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, rest = re.split(r"^# (.*)$", first, maxsplit=1, flags=re.MULTILINE)[1:]
        question = plain_formulas(rest.strip().split("\n\n")[0])
        parts.append(relinked(f"## [{title.strip()}]({path.name})\n\n{question}\n", "tutorials", "tutorials.md"))
    return "\n".join(parts)


def results(name: str) -> Any:
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: Iterable[str], rows: Iterable[Iterable[object]], command: str) -> str:
    lines = [list(heads), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + f"\n\n```sh\n{command}\n```"


def coverage() -> str:
    found = results("coverage")
    rows = [
        (f"{row['source']} → large", row["behavior"], row["prompts"], row["simulations"], f"{row['coverage']:.1%}")
        for row in found["results"]
    ]
    heads = ("pair", "behavior", "prompts", "measurements", "hold the truth")
    return table(heads, rows, found["command"])


def decision() -> str:
    found = results("decision")
    rows = []
    for target in dict.fromkeys(row["target"] for row in found["counts"]):
        for row in found["counts"]:
            if row["target"] == target and row["way"] == "all":
                rows.append((target, row["kind"], row["judged"], row["go"], row["caution"], row["no-go"]))
    return table(("target", "transfers that are", "judged", "go", "caution", "no-go"), rows, found["command"])


def forecast() -> str:
    found = results("forecast")
    figures = found["figures"]
    rows = [
        ("transfers, pairs of models", f"{figures['transfers']}, {figures['pairs']}"),
        ("mean error of a forecast", f"{figures['error']:.2f}"),
        ("mean error of the mean of the other pairs", f"{figures['error_of_mean']:.2f}"),
        ("rank correlation of forecast and outcome", f"{figures['rank_correlation']:.2f}"),
        ("outcomes within the interval", f"{figures['coverage']:.0%}"),
        ("half of the interval's width", f"{figures['half_width']:.2f}"),
    ]
    return table(("each pair of models left out in turn", ""), rows, found["command"])


def equality() -> str:
    found = results("equality_power")
    sizes = [size for size in next(iter(found["equality"].values())) if size != "needed"]
    rows = [
        (f"{float(share):.2f} ε", *(f"{row[size]:.1%}" for size in sizes), row["needed"] or "–")
        for share, row in found["equality"].items()
    ]
    heads = ("true mean KL", *(f"{size} contexts" for size in sizes), "said to be needed")
    return table(heads, rows, found["command"])


def one_distribution() -> str:
    found = results("one_distribution")
    rows = []
    for row in found["results"]:
        of = row["features"]
        figures = (f"{of['kl']:.2g}", f"{of['context_r2']:.3f}", f"{of['context_worst_r2']:.2f}")
        rows.append((row["model"], *figures, f"{of['duality_residual']:.2g}", "yes" if row["premise"] else "not shown"))
    heads = ("large and", "KL, nats", "R² of contexts", "worst direction", "duality residual", "one distribution")
    return table(heads, rows, found["command"])


def learning() -> str:
    found = results("what_learning_does")
    rows = []
    for arm, runs in found["arms"].items():
        means = [sum(run[name] for run in runs) / len(runs) for name in ("kl", "context_r2", "context_worst_r2")]
        rows.append((arm, len(runs), f"{means[0]:.3f}", f"{means[1]:.2f}", f"{means[2]:.2f}"))
    heads = ("unlike the reference in", "models", "KL, nats", "R² of contexts", "worst direction")
    return table(heads, rows, found["command"])


def circle() -> str:
    found = results("circle_permutation")
    rows = [
        (
            rho,
            f"{found['paper']['kl'][rho]:.2g}",
            f"{ours['kl']:.2g}",
            f"{ours['d_llv']:.2f}",
            f"{ours['mean_cca']:.3f}",
        )
        for rho, ours in found["ours"].items()
    ]
    return table(("ρ", "KL in the paper", "KL here", "d_LLV", "mean CCA"), rows, found["command"])


TABLES: dict[str, Callable[[], str]] = {
    "scripts": scripts,
    "tutorials": tutorials,
    "coverage": coverage,
    "decision": decision,
    "forecast": forecast,
    "equality": equality,
    "one_distribution": one_distribution,
    "learning": learning,
    "circle": circle,
}
