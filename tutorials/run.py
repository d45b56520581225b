"""Run the notebooks top to bottom, and keep what they show: `make tutorials`, or `python tutorials/run.py FILE …`.

Pictures are kept as PNG, which GitHub, nbviewer and Colab show without running anything, and which is a tenth of what
plotly's own form takes. (Chrome or Chromium makes them.) Who runs a notebook sees plotly's, which answer to the mouse.
Neither progress nor times are kept. The seventh takes a large GPU, and is left as it is.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

os.environ["PLOTLY_RENDERER"] = "png"

for path in map(Path, sys.argv[1:] or sorted(Path(__file__).parent.glob("[!7]*.ipynb"))):
    started, notebook = time.monotonic(), nbformat.read(path, as_version=4)
    NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": path.parent}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB")
