import pytest
import torch
from torch.testing import assert_close

from paramtree.optim import constant, linear


def counts(n):
    return [torch.tensor(i) for i in range(n)]


def test_linear_goes_through_both_ends_and_stays():
    got = [float(linear(0.3, 0.1, 4)(count)) for count in counts(7)]
    assert_close(got, [0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1], rtol=1e-15, atol=0)
    assert got[0] == 0.3 and got[4] == 0.1


def test_linear_is_torchs():
    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.7)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=5)
    for count in counts(8):
        assert_close(
            float(linear(0.7, 0.14, 5)(count)), theirs.get_last_lr()[0], rtol=1e-14, atol=0
        )
        optimizer.step()
        theirs.step()


def test_slopes_in_the_ends():
    start, end = torch.tensor(0.3), torch.tensor(0.1, dtype=torch.float64)
    for i, count in enumerate(counts(7)):
        fraction = min(i / 4, 1.0)
        for argnums, wanted in [(0, 1 - fraction), (1, fraction)]:
            slope = torch.func.grad(lambda a, b, n=count: linear(a, b, 4)(n), argnums)(start, end)
            assert_close(float(slope), wanted, rtol=1e-6, atol=0)


def test_constant():
    value = torch.tensor(0.3)
    assert constant(value)(torch.tensor(5)) is value
    assert constant(0.3)(torch.tensor(5)) == 0.3


def test_under_vmap_each_count_has_its_own_value():
    many = torch.arange(6)
    got = torch.func.vmap(linear(0.3, 0.1, 4))(many)
    assert_close(got, torch.stack([linear(0.3, 0.1, 4)(count) for count in many]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear(0.1, 0.2, 0), ValueError, "linear: steps is 0, expected at least 1"),
        (lambda: linear(0.1, 0.2, 2.5), TypeError, "linear: steps is a float, expected an int"),
        (lambda: linear(0.1, 0.2, True), TypeError, "linear: steps is a bool, expected an int"),
        (lambda: linear(0.1, torch.ones(2), 3), ValueError, r"linear: end has shape \(2,\)"),
        (lambda: linear("x", 0.2, 3), TypeError, "linear: start is a str"),
        (lambda: constant(None), TypeError, "constant: value is a NoneType"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
