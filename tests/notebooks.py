"""Executes notebooks in place, with outputs that are the same whenever the numbers are.

    python -m tests.notebooks notebooks/01_param_trees.ipynb ...

is what ``make notebooks`` runs. What a run leaves by chance is not kept: times, the interpreter's
version, and how the text that a cell prints was cut into pieces.
"""

import re
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 600  # for a cell


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def executed(notebook: NotebookNode) -> NotebookNode:
    """The notebook after a run in a fresh kernel; an error in a cell raises."""
    fresh = deepcopy(notebook)
    fresh.metadata = nbformat.from_dict(METADATA)
    place = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(
        fresh, timeout=SECONDS, resources=place, record_timing=False, coalesce_streams=True
    )
    client.execute()
    fresh.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(fresh.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict({})
    return fresh


def answer(notebook: NotebookNode) -> str:
    """The code of the exercise's answer, which goes on where the notebook ends."""
    folded = "".join(re.findall(r"(?s)<details>.*?</details>", notebook.cells[-1].source))
    return "\n\n".join(re.findall(r"(?s)```python\n(.*?)```", folded))


def main(names: list[str]) -> int:
    status = 0
    for path in map(Path, names):
        try:
            fresh = executed(read(path))
        except CellExecutionError as error:
            print(f"{path} failed: {error}", file=sys.stderr)
            status = 1
        else:
            path.write_text(nbformat.writes(fresh) + "\n")
            print(f"{path} executed")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
