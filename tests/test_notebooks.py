"""Notebooks keep their form, show what they make and run again; the pages beside them learn."""

import importlib.util
import re
from importlib.resources import files

import nbformat
import pytest
import torch

from paramtree import rng, tree
from paramtree.interop.gymnasium import evaluate
from tests.notebooks import FOLDER, METADATA, answer, executed, read

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PAGES = sorted(FOLDER.glob("*.py"))
BY_CHANCE = re.compile(r"(?<![\w.~/])/(?:\w[\w.-]*/)+[\w.-]+|\bat 0x[0-9a-f]+")  # paths, addresses
PACKED = re.compile(r"&quot;(?:[\w+/]{4})+[\w+/=]{0,4}&quot;")  # a picture's numbers, in base64

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


@each
def test_a_notebook_reads_well(path):
    notebook = read(path)
    first, *_, last = notebook.cells
    code = code_cells(notebook)
    assert first.cell_type == last.cell_type == "markdown" and first.source.startswith("# ")
    assert "Exercise" in last.source and answer(notebook)
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    assert len(notebook.cells) - len(code) >= len(code) / 2
    assert any("assert " in cell.source for cell in code)


@each
def test_a_notebook_is_kept_as_it_ran(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA and not any(cell.metadata for cell in notebook.cells)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))
    assert not [text for text in texts(notebook) if BY_CHANCE.search(text)]
    pages = [text for text in texts(notebook) if 'class="pt-view"' in text]
    for asset in ("page.js", "page.css"):  # of today: make notebooks writes it
        assert all(files("paramtree.display").joinpath(asset).read_text() in page for page in pages)


def texts(notebook):
    for output in outputs(notebook):
        data = output.get("data", {"text/plain": output.get("text", "")})
        for kind, text in data.items():
            if not kind.startswith("image/"):
                yield PACKED.sub("", str(text))


@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
@each
def test_a_notebook_and_its_answer_run(path):
    notebook = read(path)
    kinds = [output_kinds(cell) for cell in code_cells(notebook)]
    notebook.cells.append(nbformat.v4.new_code_cell(answer(notebook)))
    fresh = code_cells(executed(notebook))
    assert [output_kinds(cell) for cell in fresh[:-1]] == kinds


def output_kinds(cell):
    """What a cell shows, whatever the numbers: the kinds of its outputs."""
    return [sorted(output.get("data", {output.get("name"): 0})) for output in cell.outputs]


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
