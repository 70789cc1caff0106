"""What the ways to differentiate through an inner loop refuse, and in which words."""

import pytest
import torch

from paramtree import tree
from paramtree.meta import checkpointed, truncated
from tests.paramtree.meta.problems import D, quadratic
from tests.paramtree.meta.ways import modes, of


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"steps": 0}, ValueError, "steps is 0, expected at least 1"),
    ({"steps": 2.0}, TypeError, "steps is 2.0, expected an int"),
    ({"steps": True}, TypeError, "steps is True, expected an int"),
    ({"argnums": 2}, ValueError, r"argnums is 2, expected 0 \(hyper\)"),
    ({"argnums": -1}, ValueError, "argnums is -1"),
    ({"argnums": (0, 0)}, ValueError, r"argnums is \(0, 0\)"),
    ({"argnums": ()}, ValueError, r"argnums is \(\)"),
    ({"argnums": "hyper"}, TypeError, "argnums is 'hyper'"),
    ({"argnums": [0]}, TypeError, r"argnums is \[0\]"),
])  # fmt: skip
@modes
def test_bad_options(mode, options, error, message):
    p = quadratic()
    options = {"steps": 5, **options}
    with pytest.raises(error, match=message):
        mode(p.step, p.outer, **options)


@pytest.mark.parametrize(("mode", "options", "error", "message"), [
    (truncated, {"window": 0}, ValueError, "truncated: window is 0, expected at least 1"),
    (truncated, {"window": 6}, ValueError, r"window is 6, expected at most 5 \(from steps\)"),
    (truncated, {"window": 1.5}, TypeError, "window is 1.5, expected an int"),
    (checkpointed, {"segment": 0}, ValueError, "checkpointed: segment is 0, expected at least 1"),
    (checkpointed, {"segment": "2"}, TypeError, "segment is '2'"),
])  # fmt: skip
def test_bad_window_and_segment(mode, options, error, message):
    p = quadratic()
    with pytest.raises(error, match=message):
        mode(p.step, p.outer, 5, **options)


X = torch.zeros(3, dtype=D)


@pytest.mark.parametrize(("after", "error", "message"), [
    ({"y": X}, ValueError, "only the state after step 0 has 'y'; only the state before it has 'x'"),
    ({"x": X[:2]}, ValueError, r"step 0 changes state at 'x' from \(3,\) to \(2,\)"),
    ({"x": X.float()}, TypeError, "state at 'x' from torch.float64 to torch.float32"),
])  # fmt: skip
@modes
def test_a_step_that_changes_the_state(mode, after, error, message):
    p = quadratic()
    with pytest.raises(error, match=message):
        of(mode, p._replace(step=lambda h, s, k: tree.new(after)))(p.hyper, p.state)


def test_the_step_that_changes_the_state_is_named():
    p = quadratic()
    late = lambda h, s, k: p.step(h, s, k) if k < 3 else tree.new({"x": X[:1]})  # noqa: E731
    with pytest.raises(ValueError, match="checkpointed: step 3 changes"):
        of(checkpointed, p._replace(step=late))(p.hyper, p.state)


@pytest.mark.parametrize(("outer", "has_aux", "error", "message"), [
    (lambda h, s: s["x"], False, ValueError, r"outer returned a tensor of shape \(3,\), expected"),
    (lambda h, s: 1.0, False, ValueError, "outer returned a float, expected a 0-d tensor"),
    (lambda h, s: (s["x"].sum(), 1), False, ValueError, "outer returned a tuple, expected"),
    (lambda h, s: s["x"].sum(), True, ValueError, r"expected \(scalar, aux\) with has_aux"),
    (lambda h, s: s["x"].sum().long(), False, TypeError, "outer returned torch.int64"),
])  # fmt: skip
@modes
def test_bad_outer(mode, outer, has_aux, error, message):
    p = quadratic()._replace(outer=outer)
    with pytest.raises(error, match=message):
        of(mode, p, has_aux=has_aux)(p.hyper, p.state)


@modes
def test_bad_hyper_and_state(mode):
    p = quadratic()
    whole = tree.new({**tree.entries(p.hyper), "n": torch.tensor(3)})
    with pytest.raises(TypeError, match="hyper at 'n' is torch.int64, expected a float dtype"):
        of(mode, p)(whole, p.state)
    assert of(mode, p, argnums=1)(whole, p.state)[1]["x"].shape == (3,)
    with pytest.raises(TypeError, match="hyper is a float without tensors"):
        of(mode, p)(0.1, p.state)
    with pytest.raises(TypeError, match="state at 'n' is torch.int64, expected a float dtype"):
        of(mode, p, argnums=1)(p.hyper, {"n": torch.tensor(3)})
