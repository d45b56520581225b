"""The examples in the docstrings, one for every public name, run as they stand."""

import doctest
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import lrt_tl
import lrt_tl.models.loading
import lrt_tl.storyworld

EXEMPT = {
    "lrt_tl.storyworld.TASKS": "a mapping has no docstring of its own, and help() shows that of its class",
}
"""Names whose docstring cannot hold an example, and why."""
MODULES = (lrt_tl, lrt_tl.storyworld)
NAMES = [f"{module.__name__}.{name}" for module in MODULES for name in module.__all__]


_load_model = lrt_tl.models.loading.load_model
_loaded: dict[str, Any] = {}


def _load_once(name_or_folder: Any, **options: Any) -> Any:
    """A bundled model, as it is by default, is read from disk once for all examples."""
    if options or not str(name_or_folder).startswith("storyworld-"):
        return _load_model(name_or_folder, **options)
    if name_or_folder not in _loaded:
        _loaded[name_or_folder] = _load_model(name_or_folder)
    return _loaded[name_or_folder]


def named(qualified: str) -> Any:
    """The object behind `lrt_tl.storyworld.documents`."""
    module, name = qualified.rsplit(".", 1)
    return getattr({each.__name__: each for each in MODULES}[module], name)


def example_of(qualified: str) -> doctest.DocTest:
    """What the docstring has behind `>>>`, with no names but those of its own."""
    text = named(qualified).__doc__ or ""
    return doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, qualified, qualified, 0)


def is_runnable(line: doctest.Example) -> bool:
    return not line.options.get(doctest.SKIP, False)


@pytest.mark.parametrize("qualified", [name for name in NAMES if name not in EXEMPT])
def test_the_example_runs(qualified: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And shows what the docstring says, and leaves nothing on a model that the next one is given."""
    example = example_of(qualified)
    assert any(is_runnable(line) and line.want for line in example.examples), (
        f"the docstring of {qualified} has no example that runs and shows a result:\n\n{named(qualified).__doc__}"
    )
    monkeypatch.chdir(tmp_path)
    for module in (lrt_tl, lrt_tl.models.loading, lrt_tl.storyworld):
        monkeypatch.setattr(module, "load_model", _load_once)
    report = StringIO()
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=report.write)
    assert not outcome.failed, f"\n{report.getvalue()}"
    for model in _loaded.values():
        left = [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
        assert not left, f"the example leaves hooks on {model.cfg.model_name}: {left}"
        assert not lrt_tl.steered(model)


def test_what_is_exempt_is_public_and_has_no_example() -> None:
    assert set(EXEMPT) <= set(NAMES)
    assert not any(example_of(name).examples for name in EXEMPT)
