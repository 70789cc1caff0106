"""Notebooks keep their form and run; the pages beside them learn."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from paramtree import rng, tree
from paramtree.interop.gymnasium import evaluate

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PAGES = sorted(FOLDER.glob("*.py"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_reads_well(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, *_, last = notebook.cells
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert first.cell_type == last.cell_type == "markdown" and first.source.startswith("# ")
    assert "Exercise" in last.source and "<details>" in last.source
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    assert len(sources(notebook, "markdown")) >= len(code) / 2
    assert any("assert " in cell.source for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_a_page(path):
    assert len(path.read_text().splitlines()) <= 60


def test_ppo_learns_and_a_seed_decides_all():
    page, lines = load("ppo_cartpole"), []
    params, buffers = page.train(3, 8192, lines.append)
    again, _ = page.train(3, 8192, lines.append)
    assert tree.allclose(params, again, rtol=0, atol=0) and len(lines) == 16
    start = page.AGENT.init(rng.key(0))[0]
    before, after = (
        evaluate("CartPole-v1", page.AGENT, p, buffers, rng.key(1), 30) for p in (start, params)
    )
    assert before.mean() < 40 and after.mean() > 70


def test_sac_runs_and_a_seed_decides_all():
    page, lines = load("sac_pendulum"), []
    params = page.train(3, 210, lines.append)
    again = page.train(3, 210, lines.append)
    assert tree.allclose(params, again, rtol=0, atol=0) and len(lines) == 2
    assert all(torch.isfinite(leaf).all() for leaf in tree.leaves(params))
    assert params["critics", "linear_0", "weight"].shape == (2, 64, 4)
