"""Capability on the tasks of lm-eval, the language model evaluation harness (Gao et al., Zenodo 10256836), plain and
steered."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.likelihood import log_likelihoods
from lrt_tl.models.protocol import HookedModel
from lrt_tl.progress import BAR
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.steering import Steering
from lrt_tl.tables import html_columns
from lrt_tl.text.batches import tokenize

_MAX_NEW_TOKENS = 256
"""Of an answer, where its task does not say."""


@dataclass(frozen=True)
class Metric:
    """A figure of one task, with its standard error where lm-eval knows one."""

    value: float
    stderr: float | None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.stderr is None else f" ± {self.stderr:.2g}")


@dataclass(frozen=True)
class HarnessResult:
    """By steering, task and metric (`acc`; with its filter where there is one, as `exact_match,strict`); `"plain"` is
    the model without any.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl.evaluation.harness import Metric
        >>> result = lrt.HarnessResult({"plain": {"arc_easy": {"acc": Metric(0.61, 0.01)}}})  # of lm_eval_tasks
        >>> result
        HarnessResult(arc_easy; plain)
        >>> result.rows()
        [{'task': 'arc_easy', 'metric': 'acc', 'plain': '0.61 ± 0.01'}]
    """

    metrics: Mapping[str, Mapping[str, Mapping[str, Metric]]]

    def rows(self) -> list[Mapping[str, str]]:
        """For a table, a row a metric of a task."""
        return [
            {"task": task, "metric": name} | {arm: str(tasks[task][name]) for arm, tasks in self.metrics.items()}
            for task, found in self.metrics["plain"].items()
            for name in found
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            arm: {task: {name: vars(metric) for name, metric in found.items()} for task, found in tasks.items()}
            for arm, tasks in self.metrics.items()
        }

    def __repr__(self) -> str:
        return f"HarnessResult({', '.join(self.metrics['plain'])}; {', '.join(self.metrics)})"

    def _repr_html_(self) -> str:
        return html_columns(self.rows())


def lm_eval_tasks(
    target: HookedModel,
    steering: Mapping[str, Steering],
    tasks: Sequence[str],
    *,
    task_folder: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    prepend_bos: bool = True,
) -> HarnessResult:
    """Run lm-eval's tasks on the plain model and on each steering by name: its questions, prompts and metrics, our
    model with its hooks. It needs `pip install 'lrt-tl[evals]'`, and for tasks that are not on disk the network.

    lm-eval sets the seeds of Python, NumPy and PyTorch.

    Args:
        tasks: names, as `lm_eval --tasks list` prints them, or those of `task_folder`.
        task_folder: of tasks of your own (`.yaml`, as lm-eval describes them).
        num_fewshot: examples before each question; by default what the task says.
        limit: only so many questions of each task.
        batch_size: rows in a forward pass.

    Raises:
        LrtError: lm-eval is not installed, there is no such task, a steering is named "plain", or the model is being
            steered.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> large = storyworld.load("large")
        >>> steering = lrt.mean_difference(large, storyworld.contrast_pairs("refusal", 8), layer=5).add(4.0)
        >>> steering
        Steering(add × 4 on storyworld-large L5)
        >>> lrt.lm_eval_tasks(large, {"refusal": steering}, ["arc_easy"], limit=100)  # doctest: +SKIP
        HarnessResult(arc_easy; plain, refusal)
    """
    require_at_rest(target)
    if "plain" in steering:
        raise LrtError("a steering cannot be named 'plain': that is the model without any")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise LrtError(f"lm-eval is needed for its tasks ({error}): pip install 'lrt-tl[evals]'") from error
    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    if missing := [task for task in tasks if task not in manager.all_tasks]:
        raise LrtError(f"lm-eval has no task {', '.join(missing)}: `lm_eval --tasks list` prints those that it has")
    model = _as_lm(target, batch_size, prepend_bos)
    options = {"task_manager": manager, "num_fewshot": num_fewshot, "limit": limit, "log_samples": False}
    metrics = {}
    arms: dict[str, Steering | None] = {"plain": None, **steering}
    for name, each in arms.items():
        with nullcontext() if each is None else each.apply(target):
            found = simple_evaluate(model, tasks=list(tasks), **options)
        metrics[name] = {task: _metrics(values) for task, values in found["results"].items()}
    return HarnessResult(metrics)


def _metrics(values: Mapping[str, Any]) -> dict[str, Metric]:
    """From lm-eval's `{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "…"}`."""
    found = {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if filtered and not name.endswith("_stderr"):
            stderr = values.get(f"{name}_stderr,{filtered}")
            found[name if filtered == "none" else key] = Metric(
                float(value), float(stderr) if isinstance(stderr, (int, float)) else None
            )
    return found


def _as_lm(model: HookedModel, batch_size: int, prepend_bos: bool) -> Any:
    """The model as lm-eval asks one: hooks act, since it is run as it is."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class HookedLM(TemplateLM):  # type: ignore[misc]
        tokenizer = model.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(model.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            bos = model.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else int(bos)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return tokenize(model.tokenizer, [string], prepend_bos=prepend_bos and add_special_tokens is not False)[0]

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            """Of too long a text the beginning is dropped, as lm-eval's own models do."""
            pairs = [(context[-max(1, model.cfg.n_ctx + 1 - len(said)) :], said) for _, context, said in requests]
            return log_likelihoods(model, pairs, batch_size=batch_size)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            found = []
            for request in requests:
                tokens = self.tok_encode(request.args[0], add_special_tokens=False)
                windows = get_rolling_token_windows(tokens, self.prefix_token_id, model.cfg.n_ctx, context_len=1)
                pairs = [(None, *make_disjoint_window(window)) for window in windows]
                found.append(sum(value for value, _ in self._loglikelihood_tokens(pairs)))
            return found

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            asked = tqdm(requests, desc="generate", unit=" texts", **BAR, disable=disable_tqdm)
            return [_written(model, self.tok_encode(request.args[0]), **request.args[1]) for request in asked]

    return HookedLM()


def _written(
    model: HookedModel,
    context: list[int],
    *,
    until: str | Sequence[str] = (),
    max_gen_toks: int = _MAX_NEW_TOKENS,
    do_sample: bool = False,
    temperature: float = 0.0,
    **others: Any,
) -> str:
    """What the model says after a context, up to the first of the texts in `until`."""
    if others:
        raise LrtError(
            f"a task asks to generate with {', '.join(others)}: known here are until, max_gen_toks, do_sample and "
            "temperature"
        )
    max_gen_toks = min(max_gen_toks, model.cfg.n_ctx - 1)
    tokens = torch.tensor([context[-(model.cfg.n_ctx - max_gen_toks) :]], device=model.cfg.device)
    written = model.generate(
        tokens,
        max_new_tokens=max_gen_toks,
        do_sample=do_sample and temperature > 0,
        temperature=temperature or 1.0,
        stop_at_eos=model.tokenizer.eos_token_id is not None,
        return_type="tokens",
        verbose=False,
    )
    given, whole = (
        str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in (tokens[0].tolist(), written[0].tolist())
    )
    said = whole[len(given) :]
    for end in [until] if isinstance(until, str) else until:
        said = said.split(end)[0] if end else said
    return said
