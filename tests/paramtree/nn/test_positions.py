import math

import pytest
import torch

from paramtree import grad, nn, rng, tree
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_kinds,
    check_vmapped,
    close,
    draw,
    moved,
)
from tests.paramtree.nn.flax_cases import load

ROTARY = load("sequence_layers.npz")["rotary"]


@pytest.mark.parametrize("case", ROTARY, ids=[str(int(case["in/base"])) for case in ROTARY])
def test_rotary_equals_equinox(case):
    x = case["in/x"].requires_grad_()
    out = nn.rotary(x, base=float(case["in/base"]))
    close(out, case["out"])
    close(torch.autograd.grad((out * case["w"]).sum(), x)[0], case["grad/x"])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_a_product_with_complex_numbers(interleaved):
    x, positions = draw(2, 5, 6), draw(5, seed=1) * 9
    parts = x.unflatten(-1, (3, 2)) if interleaved else x.unflatten(-1, (2, 3)).mT
    powers = torch.tensor([7.0 ** (-i / 3) for i in range(3)], dtype=DOUBLE)
    angles = positions.unsqueeze(-1) * powers
    one = torch.ones((), dtype=DOUBLE)
    turned = torch.view_as_complex(parts.contiguous()) * torch.polar(one, angles)
    expected = torch.view_as_real(turned)
    expected = expected.flatten(-2) if interleaved else expected.mT.flatten(-2)
    close(nn.rotary(x, positions, 7.0, interleaved=interleaved), expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_of_rotated_vectors_know_differences_alone(interleaved):
    q, k, positions = draw(5, 8), draw(5, 8, seed=1), torch.arange(5)

    def scores(shift):
        turned = (nn.rotary(x, positions + shift, interleaved=interleaved) for x in (q, k))
        left, right = turned
        return left @ right.mT

    close(scores(0), scores(100), rtol=1e-8, atol=1e-8)
    close(scores(0).diagonal(), (q * k).sum(-1))
    assert not torch.allclose(scores(0), q @ k.mT)


def test_rotary_of_positions_by_batch_and_of_long_sequences():
    x, positions = draw(3, 2, 4, 6), rng.randint(rng.key(0), (3, 1, 4), 0, 9)
    rows = [nn.rotary(x[i, j], positions[i, 0]) for i in range(3) for j in range(2)]
    close(nn.rotary(x, positions), torch.stack(rows).reshape(x.shape))
    close(nn.rotary(x), nn.rotary(x, torch.arange(4)))
    half = nn.rotary(x.bfloat16(), positions + 300)
    assert half.dtype == torch.bfloat16  # whose own whole numbers end at 256
    torch.testing.assert_close(half.double(), nn.rotary(x, positions + 300), rtol=0.05, atol=0.05)


def test_the_base_has_a_gradient():
    attention, _ = nn.multi_head_attention(6, 1, dtype=DOUBLE).init(rng.key(0))
    x, base = draw(4, 6), torch.tensor(9.0, dtype=DOUBLE, requires_grad=True)
    for fn in (
        lambda base: nn.rotary(x, base=base),
        lambda base: nn.sinusoidal(torch.arange(5), 4, base, dtype=DOUBLE),
        lambda base: nn.multi_head_attention(6, 1, rotary_base=base)(attention, EMPTY, x),
    ):
        close(fn(base.detach()), fn(9.0))
        assert torch.autograd.gradcheck(fn, base) and torch.autograd.gradgradcheck(fn, base)


def test_sinusoidal_is_the_papers_table():
    table = nn.sinusoidal(torch.arange(7), 6, dtype=DOUBLE)
    for t in range(7):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            wanted = torch.tensor([math.sin(angle), math.cos(angle)], dtype=DOUBLE)
            close(table[t, 2 * i : 2 * i + 2], wanted)
    positions = draw(2, 3)
    assert nn.sinusoidal(positions, 4).shape == (2, 3, 4)
    assert nn.sinusoidal(positions, 4).dtype == torch.float32


EMBEDDING = nn.position_embedding(5, 3, dtype=DOUBLE)


def test_position_embedding_adds_a_row_for_each_step():
    params, _ = moved(EMBEDDING, rng.key(0))
    x, positions = draw(2, 4, 3), torch.tensor([[3, 1, 4, 0]])
    close(EMBEDDING(params, EMPTY, x), x + params["weight"][:4])
    close(EMBEDDING(params, EMPTY, (x, positions)), x + params["weight"][positions])
    slope = grad(lambda p: EMBEDDING(p, EMPTY, (x, positions)).sum())(params)["weight"]
    close(slope.sum(-1), torch.tensor([6.0, 6, 0, 6, 6], dtype=DOUBLE))
    weight = nn.position_embedding(100, 50).init(rng.key(0))[0]["weight"]
    torch.testing.assert_close(weight.std(), torch.tensor(0.02), rtol=0.05, atol=0)


def test_position_embedding_in_every_way():
    check_derivatives(EMBEDDING, draw(2, 4, 3))
    check_vmapped(EMBEDDING, draw(2, 4, 3))
    check_compiled(EMBEDDING, draw(2, 4, 3))
    check_kinds(lambda dtype: nn.position_embedding(5, 3, dtype=dtype), draw(2, 4, 3))


X = draw(2, 4, 3)
PARAMS = EMBEDDING.init(rng.key(0))[0]
REFUSED = [
    (lambda: nn.rotary(X), ValueError, r"rotary: x has shape \(2, 4, 3\), .* with n even"),
    (lambda: nn.rotary(draw(4)), ValueError, r"rotary: x has shape \(4,\)"),
    (lambda: nn.rotary(torch.ones(2, 2).long()), TypeError, "rotary: x is torch.int64"),
    (lambda: nn.rotary(draw(3, 2), torch.arange(4)), ValueError, r"positions has shape \(4,\)"),
    (lambda: nn.rotary(draw(3, 2), [1, 2, 3]), TypeError, "rotary: positions is a list"),
    (lambda: nn.rotary(draw(3, 2), base=0), ValueError, "rotary: base is 0, expected a number abo"),
    (lambda: nn.rotary(draw(3, 2), base=-1.0), ValueError, "rotary: base is -1.0"),
    (lambda: nn.sinusoidal(X, 3), ValueError, "sinusoidal: n is 3, expected an even"),
    (lambda: nn.sinusoidal(3, 4), TypeError, "sinusoidal: positions is a int"),
    (lambda: nn.position_embedding(0, 3), ValueError, "position_embedding: length is 0"),
    (lambda: EMBEDDING(PARAMS, EMPTY, draw(6, 3)), ValueError, "expected at most 5 steps .from"),
    (lambda: EMBEDDING(PARAMS, EMPTY, draw(3)), ValueError, r"x has shape \(3,\), expected \[\*ba"),
    (lambda: EMBEDDING(PARAMS, EMPTY, draw(4, 2)), ValueError, r"x has shape \(4, 2\)"),
    (
        lambda: EMBEDDING(PARAMS, EMPTY, (X, torch.tensor([5]))),
        ValueError,
        r"embedding: index holds 5, expected it in \[0, 5\)",
    ),
    (lambda: EMBEDDING(PARAMS, EMPTY, (X, torch.arange(3))), ValueError, "positions has shape"),
    (lambda: EMBEDDING(PARAMS, EMPTY, (X, X)), TypeError, "index is torch.float64"),
    (lambda: EMBEDDING(PARAMS, EMPTY, (X, X, X)), ValueError, "the input is a tuple of 3"),
    (lambda: EMBEDDING(tree.new({}), EMPTY, X), ValueError, "position_embedding: params lack"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
