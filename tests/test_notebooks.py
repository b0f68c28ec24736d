"""Every notebook runs, is stored without outputs, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

CLAIMS = {
    "01_quickstart": "assert mean_of_last_epochs(robust.worst) >= mean_of_last_epochs(plain.worst)"
    " + 0.1\nassert mean_of_last_epochs(robust.average) >= mean_of_last_epochs(plain.average)",
    "05_poisoning": "assert sum(fooled) >= 2\nassert 0 < len(dropped) < 300\n"
    "assert sum(accuracies_with_epic) >= sum(accuracies) - 4 * 0.05",
}
"""What must hold at the end of each notebook, in its own words."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_what_it_says(path, monkeypatch):
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS[path.stem]))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    print(printed)
    assert "lightning_robust/" not in printed, "a warning of ours"
