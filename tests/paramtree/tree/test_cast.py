"""Trees in other dtypes, and training in bfloat16 over float32 masters."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import grad, hvp, nn, optim, rng, td_model, tree, value_and_grad


def make():
    meta = TensorDict({"w": torch.arange(3.0), "n": torch.arange(3)})
    policy = TensorDict({"w": torch.ones(2, 3), "z": torch.ones(2, dtype=torch.complex64)}, [2])
    return tree.lock(TensorDict({"meta": meta, "policy": policy}))


def dtypes(params):
    rows = zip(tree.paths(params), tree.leaves(params), strict=True)
    return {".".join(path): leaf.dtype for path, leaf in rows}


def test_floats_change_and_nothing_else():
    params = make()
    out = tree.cast(params, torch.bfloat16)
    assert dtypes(out) == {
        "meta.n": torch.int64,
        "meta.w": torch.bfloat16,
        "policy.w": torch.bfloat16,
        "policy.z": torch.complex64,
    }
    assert out.is_locked and out["policy"].batch_size == (2,)
    assert out["meta", "n"] is params["meta", "n"]


def test_patterns_paths_and_predicates_choose():
    params = make()
    by_pattern = dtypes(tree.cast(params, torch.float64, "policy.**"))
    assert by_pattern["policy.w"] == torch.float64 and by_pattern["meta.w"] == torch.float32
    by_path = dtypes(tree.cast(params, torch.float64, ("meta", "w")))
    assert by_path["policy.w"] == torch.float32 and by_path["meta.w"] == torch.float64
    by_rule = dtypes(tree.cast(params, torch.float64, lambda path, x: x.ndim == 2))
    assert by_rule["policy.w"] == torch.float64 and by_rule["meta.w"] == torch.float32


def test_gradient_comes_back_in_the_dtype_of_the_masters():
    params = tree.new({"w": torch.tensor([1.0, 2.0, 4.0]), "b": torch.tensor(3.0)})

    def energy(p):
        p = tree.cast(p, torch.bfloat16)
        return (p["w"].square().sum() * p["b"]).float()

    slope = grad(energy)(params)
    assert set(dtypes(slope).values()) == {torch.float32}
    assert slope["w"].tolist() == [6.0, 12.0, 24.0] and slope["b"] == 21
    assert hvp(energy, params, params)["w"].tolist() == [12.0, 24.0, 48.0]


def test_what_cast_refuses():
    with pytest.raises(ValueError, match="cast: 'policy.q' matches nothing; the nearest names are"):
        tree.cast(make(), torch.float64, "policy.q")
    with pytest.raises(TypeError, match="cast: dtype is torch.int64, expected a real float dtype"):
        tree.cast(make(), torch.int64)
    with pytest.raises(TypeError, match="cast: tree is a Tensor"):
        tree.cast(torch.ones(2), torch.float64)


NET = td_model(nn.mlp(3, 64, 64, 1, activation=torch.tanh), "x", "y")


def curve(compute, master, steps=600):
    """Losses of a regression whose products are taken in one dtype and sums kept in another."""
    params, buffers = NET.init(rng.key(0))
    params = tree.cast(params, master)
    adam = optim.adam(1e-3)
    state, losses = adam.init(params), []
    for t in range(steps):
        x = rng.normal(rng.fold_in(rng.key(1), t), (64, 3))
        wanted = (x.sin().sum(-1, keepdim=True) + x[:, :1] * x[:, 1:2]) / 2
        batch = tree.cast(tree.new({"x": x}, (64,)), compute)

        def loss(params, batch=batch, wanted=wanted):
            out = NET(tree.cast(params, compute), buffers, batch)["y"]
            return (out.float() - wanted).square().mean()

        value, slope = value_and_grad(loss)(params)
        assert set(dtypes(slope).values()) == {master}
        updates, state = adam.update(slope, state, params)
        params = optim.apply_updates(params, updates)
        losses.append(float(value))
    return torch.tensor(losses)


def test_bfloat16_over_float32_masters_learns_as_float32_does():
    full = curve(torch.float32, torch.float32)
    mixed = curve(torch.bfloat16, torch.float32)
    pure = curve(torch.bfloat16, torch.bfloat16)
    windows = [x.unflatten(0, (6, 100)).mean(-1) for x in (full, mixed, pure)]
    full, mixed, pure = windows
    assert full[-1] < 0.15 * full[0]
    assert ((mixed - full).abs() < 0.02 * full).all()
    assert pure[-1] > 1.3 * mixed[-1]  # small updates are lost without the masters
