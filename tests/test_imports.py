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
    for name, message in (
        ("no_such_name", "lrt_tl has no attribute no_such_name$"),
        ("fit_map", r"lrt_tl has no attribute fit_map: do you mean fit_affine_map\?$"),
        ("__no_such_name__", "no_such_name"),
    ):
        with pytest.raises(AttributeError, match=message):
            getattr(lrt_tl, name)
    with pytest.raises(ImportError):
        from lrt_tl import no_such_name  # noqa: F401
