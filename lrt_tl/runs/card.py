"""A run's card for the Hugging Face hub: metadata, and what a stranger has to know before using the vectors."""

import re
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from lrt_tl.models.identity import describe_sites
from lrt_tl.report.page import Row
from lrt_tl.report.text import markdown_text, shown, shown_name
from lrt_tl.runs.provenance import call_of, versions
from lrt_tl.runs.run import TransferRun, folder_name
from lrt_tl.runs.sections import recovery_rows

_LIMITS = """- Map and vectors belong to these two models, in this basis of the residual stream; others are refused.
- The effect was measured on the prompts of each behavior, at these coefficients. It need not hold on other text.
- R² and cosine are no evidence of an effect. Recovery, over what random vectors do, is.
- A steering vector changes what a model is likely to say. It is no safeguard, and other text can undo it."""


def card_of(run: TransferRun) -> str:
    """The card: YAML metadata and markdown. Names of models and behaviors are escaped in both."""
    title = shown_name(f"{describe_sites(run.affine_map.sources)} to {run.affine_map.target}")
    answer = run.answer()
    decided = answer.verdict or "nothing was decided: the figures are for the reader to judge"
    return f"""---
{_metadata(run, title).to_yaml().strip()}
---

# Steering vectors from {markdown_text(title)}

**Answer.** {markdown_text(answer.sentence)}

**Verdict.** {markdown_text(decided)}.

{_table(recovery_rows(run))}

Recovery is the share of the effect of the target's own vector that the transferred vector has, over what random vectors
do, with its 95 % interval. None is stated where the target's own vector does no better than random ones.

**Nulls**, measured beside it: {markdown_text(_nulls(run))}.
`summary.json` holds all figures, and `report.html` shows them.

## Limits

{_LIMITS}

## Use

```python
import lrt_tl as lrt

vector = lrt.SteeringVector.load("vectors/{folder_name(run.behaviors[0].result.behavior)}/transferred")
affine_map = lrt.AffineMap.load("map")
```

## Reproduce

{_fenced(call_of(run.arguments), "sh" if "command" in run.arguments else "python")}

With {", ".join(f"{name} {number}" for name, number in versions().items())}.
"""


def _metadata(run: TransferRun, title: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="steering-vector-transfer",
            dataset_type="behavior",
            dataset_config=shown_name(behavior.result.behavior),  # without it, results of one dataset_type become one
            dataset_name=shown_name(behavior.result.behavior),
            metric_type="recovery",
            metric_value=round(behavior.result.recovery.estimate, 4),
        )
        for behavior in run.behaviors
        if behavior.result.recovery.estimate is not None
    ]
    return ModelCardData(
        library_name="lrt_tl",
        tags=["steering-vectors", "linear-representation-transferability", "transformer-lens"],
        base_model=_base_models(run) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _base_models(run: TransferRun) -> list[str]:
    """Names of the models, as far as the hub can take them for names."""
    named = [site.model.name for site in (*run.affine_map.sources, run.affine_map.target) if site.model is not None]
    return [name for name in dict.fromkeys(named) if re.fullmatch(r"\w[\w.-]*", name, re.ASCII)]


def _nulls(run: TransferRun) -> str:
    counts = {name: len(draws) for each in run.behaviors for name, draws in each.result.controls.items()}
    return ", ".join(f"{name.replace('_', ' ')} ({count})" for name, count in counts.items())


def _table(rows: Sequence[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(markdown_text, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(code: str, language: str) -> str:
    """A block of code, in a fence longer than any in it."""
    code = shown(code)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
