"""Targets and maps: what is shown is what was measured."""

import math

import numpy as np
import pytest
import torch

from paramtree.cli import plots


def test_correlation_is_numpys():
    gen = np.random.default_rng(0)
    x, y = gen.normal(size=(2, 5, 4))
    wanted = np.corrcoef(x.ravel(), y.ravel())[0, 1]
    assert plots.correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(wanted)
    assert math.isnan(plots.correlation(torch.ones(3), torch.arange(3.0)))


def test_the_line_is_that_of_least_squares():
    gen = np.random.default_rng(1)
    x = gen.normal(size=200)
    y = 3 - 2 * x + gen.normal(size=200)
    same = torch.ones(4)
    pairs = {("return", "pi_hat"): (torch.tensor(x), torch.tensor(y)), ("a", "b"): (same, same)}
    figure = plots.targets_figure(pairs)
    first, second = figure.axes
    ends = first.lines[0].get_xydata()
    slope, constant = np.polyfit(x, y, 1)
    np.testing.assert_allclose(ends[:, 0], [x.min(), x.max()])
    np.testing.assert_allclose(ends[:, 1], constant + slope * ends[:, 0], rtol=1e-6)
    said = f"correlation {np.corrcoef(x, y)[0, 1]:.2f}, 200 steps"
    assert first.get_title(loc="left") == said and first.get_xlabel() == "return"
    assert not second.lines and "nan" in second.get_title(loc="left")


def test_maps_share_their_colors_and_leave_out_walls():
    mask = torch.tensor([True, True, False, True])
    rows = [
        ("plain", [("a", torch.tensor([1.0, 2.0, 99.0, 3.0])), ("b", torch.tensor([4.0] * 4))]),
        ("signed", [("c", torch.tensor([-1.0, 0.5, -99.0, 0.0]))]),
    ]
    figure = plots.cells_figure(rows, mask, {0: "S"})
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    shown = [axes.images[0] for axes in panels]
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
    assert [image.get_clim() for image in shown] == [(1, 4), (1, 4), (-1, 1)]
    values = np.asarray(shown[0].get_array().filled(np.nan), float)
    np.testing.assert_array_equal(values, [[1, 2], [np.nan, 3]])
    assert panels[0].texts[0].get_text() == "S"


def test_a_long_row_has_several_lines():
    maps = [(str(k), torch.full((4,), float(k))) for k in range(6)]
    figure = plots.cells_figure([("six", maps)], torch.ones(4, dtype=torch.bool))
    places = {a.get_title(): a.get_subplotspec() for a in figure.axes if a.get_title()}
    where = {name: (s.rowspan.start, s.colspan.start) for name, s in places.items()}
    assert where == {str(k): divmod(k, 3) for k in range(6)}
