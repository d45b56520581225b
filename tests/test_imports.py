"""What importing costs: `lrt-tl --help` must answer at once."""

import subprocess
import sys

import pytest

import lrt_tl


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    script = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(finished.stdout.split("\n")[-2].split())


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformer_lens", "transformers", "numpy", "plotly", "sklearn", "jinja2"}
    assert not heavy & loaded_after("import lrt_tl.cli")


def test_the_package_loads_neither_plotly_nor_scikit_learn_nor_transformer_lens() -> None:
    names = "; ".join(f"lrt_tl.{name}" for name in lrt_tl.__all__)
    assert not {"transformer_lens", "plotly", "sklearn"} & loaded_after(f"import lrt_tl; {names}")


def test_public_names() -> None:
    assert {"fit_affine_map", "mean_difference", "evaluate_transfer", "read_documents"} <= set(dir(lrt_tl))
    with pytest.raises(AttributeError):
        lrt_tl.no_such_name  # noqa: B018
