"""Every notebook runs, is stored without outputs, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

CLAIMS = {
    "01_quickstart": "assert mean_of_last_epochs(robust.worst) >= mean_of_last_epochs(plain.worst)"
    " + 0.1\nassert mean_of_last_epochs(robust.average) >= mean_of_last_epochs(plain.average)",
    "02_spurious_correlations": """
worst = {"plain": plain, "spare": with_spare, "mat": best_epoch, "mat_last": last_epoch}
worst = {name: found["test/worst_group_acc"] for name, found in worst.items()}
print(worst)
assert worst["plain"] == by_group[min(by_group, key=by_group.get)] < 0.45
assert worst["spare"] >= worst["plain"] + 0.15
assert worst["mat"] >= worst["plain"] + 0.2
assert small[minority].float().mean() > 0.9
assert inferred[minority].float().mean() > 0.9
assert minority[inferred].float().mean() > 0.7
diagonal = [v for k, v in by_group.items() if test_set.group_names.index(k) % 6 == 0]
assert min(diagonal) > 0.85
assert best.best_model_score > 0.6
""",
    "03_write_your_own_method": """
assert average(hard_first) >= average(plain) + 0.05
assert recall > 0.8
assert difference < 1e-3
assert (orders[0] - weights(Nothing())).abs().max() > 0.01
assert neutral
""",
    "04_train_on_less": """
print(scores)
assert scores["S2L"] >= scores["random"] + 0.02
assert int(kept["S2L"].min()) >= 2 * int(kept["random"].min())
assert scores["CREST"] >= scores["random batches"] + 0.03
assert left_in_pool < 0.3
assert copies_left < 0.5
""",
    "05_poisoning": "assert sum(fooled) >= 2\nassert 0 < len(dropped) < 300\n"
    "assert sum(accuracies_with_epic) >= sum(accuracies) - 4 * 0.05",
    "06_what_the_model_uses": """
[slow, *_, fast] = runs
assert fast.acc >= slow.acc + 0.05
assert fast.compressibility > slow.compressibility
selective = {rate: noted[rate][-1]["representation/class_selectivity"] for rate in noted}
assert selective[0.5] > selective[0.05] + 0.1
assert {one.attribute for one in report.ranking[:2]} == {"a red patch", "a cyan patch"}
assert all(one.discrepancy > 0.05 for one in report.ranking[:2])
worst = {name: found["test/worst_group_acc"] for name, found in results.items()}
assert worst["after"] >= worst["before"] + 0.02
assert aiou["after"].min() > aiou["before"].min()
""",
    "07_your_own_data": """
import json
print(plain["test/worst_group_acc"], robust["test/worst_group_acc"])
assert counts["01_red"] > 200 and min(counts.values()) < 5
assert robust["test/worst_group_acc"] >= plain["test/worst_group_acc"] + 0.15
assert robust["test/acc"] >= plain["test/acc"] + 0.1
[found] = json.loads((root / "runs" / "sweep.json").read_text())
worst = [run["worst_group_acc"] for run in found["runs"]]
assert len(worst) == 2 and sum(worst) / 2 >= plain["test/worst_group_acc"] + 0.1
""",
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
