# pyright: reportArgumentType=false, reportCallIssue=false
import pytest
import torch
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.objectives.value import MultiAgentGAE

from losses import add_advantage, gae


def by_hand(td, gamma, lmbda):
    """Through gae, with time last."""
    after = td["next"]
    args = [td["state_value"], after["state_value"], after["done"], after["terminated"]]
    value, follows, done, terminated = (x.movedim(-1, 0) for x in args)
    reward = after["reward"].movedim(-1, 0)
    return gae(reward, value, follows, done, terminated, gamma, lmbda).movedim(0, -1)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_advantage_and_target(trajectory, batch):
    td = trajectory(*batch)
    out = add_advantage(td, 0.9, 0.8)
    assert_close(out["advantage"], by_hand(td, 0.9, 0.8))
    assert_close(out["value_target"], out["advantage"] + td["state_value"])
    assert set(out.keys()) == {*td.keys(), "advantage", "value_target"}
    assert out.is_locked and out.batch_size == td.batch_size


@pytest.mark.parametrize(
    "keys",
    [
        [("next", "reward")],
        ["state_value"],
        [("next", "done"), ("next", "state_value")],
        [("next", "reward"), "state_value", ("next", "terminated")],
    ],
    ids=str,
)
def test_each_key_may_have_a_trailing_axis_of_one(trajectory, keys):
    td = trajectory(6)  # as many workers as steps: a product of [6, 6] and [6, 6, 1] would pass
    expected = add_advantage(td, 0.9, 0.8)
    for key in keys:
        td[key] = td[key].unsqueeze(-1)
    out = add_advantage(td, 0.9, 0.8)
    assert_close(out["advantage"], expected["advantage"])
    assert_close(out["value_target"], expected["value_target"])


def test_time_is_the_dimension_of_that_name(trajectory):
    td = trajectory(3, steps=5)
    expected = add_advantage(td, 0.9, 0.8)["advantage"]
    turned = td.transpose(0, 1).contiguous()
    turned.names = ["time", "worker"]
    assert_close(add_advantage(turned, 0.9, 0.8)["advantage"], expected.T)
    named = td.copy()
    named.names = ["worker", None]
    assert_close(add_advantage(named, 0.9, 0.8)["advantage"], expected)


def test_hyper_parameters_per_step(trajectory):
    td = trajectory(4)
    gamma = 0.5 + 0.5 * torch.rand(td.batch_size, dtype=torch.float64)
    expected = by_hand(td, gamma.T, 0.8)
    assert_close(add_advantage(td, gamma, 0.8)["advantage"], expected)
    entry = td.copy().set("gamma", gamma)
    assert_close(add_advantage(entry, lmbda=0.8)["advantage"], expected)
    assert_close(add_advantage(entry, 0.1, 0.8)["advantage"], expected)  # the entry wins
    column = td.copy().set("gamma", gamma.unsqueeze(-1)).set("lmbda", 0 * gamma + 0.8)
    assert_close(add_advantage(column)["advantage"], expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_of_hyper_parameters(trajectory, central, variant, normalize):
    td = trajectory(3)
    weight = torch.linspace(-1, 1, td.numel(), dtype=torch.float64).reshape(td.batch_size)

    def f(h):
        out = add_advantage(td, h[0], h[1], normalize=normalize, eps=h[2])
        return (weight * out["advantage"]).sum() + out["value_target"].square().sum()

    h = torch.tensor([0.9, 0.8, 0.05], dtype=torch.float64)
    assert_close(variant(grad(f))(h), central(f, h), rtol=1e-6, atol=1e-7)


def test_gradient_of_a_td_entry_of_full_shape(trajectory, central):
    td = trajectory(2, steps=4)

    def f(gamma):
        return add_advantage(td.copy().set("gamma", gamma), lmbda=0.8)["advantage"].sin().sum()

    gamma = torch.full(td.batch_size, 0.9, dtype=torch.float64)
    assert_close(grad(f)(gamma), central(f, gamma), rtol=1e-6, atol=1e-8)


def test_nothing_is_detached(trajectory, central):
    td = trajectory(2, steps=4)
    for key in ("state_value", ("next", "state_value"), ("next", "reward")):

        def f(x, key=key):
            out = add_advantage(td.clone().set(key, x), 0.9, 0.8)
            return out["advantage"].sin().sum() + out["value_target"].cos().sum()

        assert_close(grad(f)(td[key]), central(f, td[key]), rtol=1e-6, atol=1e-8)


def test_normalized_advantages(trajectory):
    td = trajectory(4)
    plain, out = (add_advantage(td, 0.9, 0.8, normalize=n) for n in (False, True))
    raw = plain["advantage"]
    expected = (raw - raw.mean()) / (raw.std(correction=0) + 1e-8)
    assert_close(out["advantage"], expected)
    assert_close(out["value_target"], plain["value_target"])
    wide = add_advantage(td, 0.9, 0.8, normalize=True, eps=0.5)["advantage"]
    assert_close(wide, (raw - raw.mean()) / (raw.std(correction=0) + 0.5))
    td["mask"] = mask = torch.arange(6).expand(4, 6) < 4
    raw, out = (add_advantage(td, 0.9, 0.8, normalize=n)["advantage"][mask] for n in (False, True))
    assert_close(out, (raw - raw.mean()) / (raw.std(correction=0) + 1e-8))


def test_equal_advantages_normalize_to_zero_with_finite_gradients(trajectory):
    td = trajectory(2)
    td["next"] = td["next"].copy().update({"done": ~torch.zeros(2, 6, dtype=torch.bool)})
    td["next", "terminated"] = td["next", "done"]
    td["next", "reward"] = td["state_value"] + 2.0

    def f(reward):
        with_it = td.clone().set(("next", "reward"), reward)
        return add_advantage(with_it, 0.9, 0.8, normalize=True, eps=0.1)["advantage"]

    reward = td["next", "reward"]
    assert_close(f(reward), torch.zeros(2, 6, dtype=torch.float64))
    assert grad(lambda r: f(r)[0, 0])(reward).isfinite().all()
    assert grad(lambda r: grad(lambda r: f(r)[0, 0])(r).sum())(reward).isfinite().all()


def test_what_stands_at_masked_steps_is_without_influence(trajectory):
    td = trajectory(3, steps=7)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:], mask[1, 2] = False, False
    td["mask"] = mask
    clean = add_advantage(td, 0.9, 0.8, normalize=True)
    spoiled = td.clone()
    for key in ("state_value", ("next", "state_value"), ("next", "reward")):
        spoiled[key] = torch.where(mask, td[key], torch.nan)
    out = add_advantage(spoiled, 0.9, 0.8, normalize=True)
    assert_close(out["advantage"], clean["advantage"])
    assert (out["advantage"][~mask] == 0).all() and (out["value_target"][~mask] == 0).all()

    def f(x, g):
        with_it = spoiled.clone().set("state_value", x)
        return add_advantage(with_it, g, 0.8, normalize=True)["advantage"].square().sum()

    gamma = torch.tensor(0.9, dtype=torch.float64)
    for result in grad(f, (0, 1))(spoiled["state_value"], gamma):
        assert result.isfinite().all()
    assert grad(grad(f, 1), 1)(spoiled["state_value"], gamma).isfinite()
    before = clean[0, :4], add_advantage(td.exclude("mask")[0, :4], 0.9, 0.8)
    assert_close(before[0]["value_target"], before[1]["value_target"])  # as if it ended there
    inner = add_advantage(td.exclude("mask")[1, :2], 0.9, 0.8)
    assert_close(clean[1, :2]["value_target"], inner["value_target"])


class Passing(torch.nn.Module):
    """A value network whose output is in the td already."""

    in_keys, out_keys = ["state_value"], ["state_value"]

    def forward(self, td, params=None):
        return td


def test_agents_are_a_dimension_like_any_other(trajectory):
    """Against TorchRL's MultiAgentGAE: values per agent, reward and flags of the team."""
    agents, steps = 3, 6
    td = trajectory(4, steps=steps)
    draw = torch.Generator().manual_seed(3)
    values, after = (
        torch.randn(4, steps, agents, generator=draw, dtype=torch.float64) for _ in range(2)
    )
    team = {key: td["next", key].unsqueeze(-1) for key in ("reward", "done", "terminated")}
    theirs = TensorDict({"state_value": values[..., None], "next": team}, (4, steps))
    theirs["next", "state_value"] = after[..., None]
    network = Passing()
    estimator = MultiAgentGAE(gamma=0.9, lmbda=0.8, value_network=network, vectorized=False)
    wanted = estimator(theirs)["advantage"].squeeze(-1)

    size = (4, steps, agents)
    following = {key: x.expand(size) for key, x in team.items()} | {"state_value": after}
    td = TensorDict({"state_value": values, "next": TensorDict(following, size)}, size)
    td.names = [None, "time", "agent"]
    assert_close(add_advantage(td, 0.9, 0.8)["advantage"], wanted)
    moved = td.transpose(1, 2)  # [4, agents, T]: time is last
    assert_close(add_advantage(moved, 0.9, 0.8)["advantage"], wanted.transpose(1, 2))
    td.names = None
    each = torch.stack([add_advantage(td[..., i], 0.9, 0.8, normalize=True) for i in range(3)], 2)
    mapped = vmap(lambda td: add_advantage(td, 0.9, 0.8, normalize=True), 2, 2)(td)
    assert_close(mapped["advantage"], each["advantage"])
    assert_close(mapped["advantage"].mean((0, 1)), torch.zeros(agents, dtype=torch.float64))


def test_mapped_over_tds(trajectory):
    many = trajectory(3, 2)
    out = vmap(lambda td: add_advantage(td, 0.9, 0.8, normalize=True))(many)
    for i in range(3):
        assert_close(
            out[i]["advantage"], add_advantage(many[i], 0.9, 0.8, normalize=True)["advantage"]
        )


def test_input_is_not_changed(trajectory, untouched):
    td = trajectory(3)
    locked = trajectory(3).lock_()
    with untouched(td, locked):
        add_advantage(td, 0.9, 0.8, normalize=True)
        add_advantage(locked, 0.9, 0.8)
    assert not td.is_locked and not td["next"].is_locked


def without(td, *keys):
    return td.exclude(*keys)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            lambda td: without(td, "state_value"),
            ValueError,
            r"td has no 'state_value' \(nearest: next.state_value\); its keys are action, ",
        ),
        (lambda td: without(td, ("next", "done")), ValueError, "td has no 'next.done'"),
        (
            lambda td: without(td, ("next", "state_value")),
            ValueError,
            r"no 'next.state_value'.*running the critic on td\['next'\]",
        ),
        (lambda td: without(td, "next"), ValueError, "td has no 'next.state_value'"),
        (
            lambda td: td.set(("next", "done"), td["next", "done"].float()),
            TypeError,
            "next.done has dtype float32, expected bool",
        ),
        (
            lambda td: td.set("state_value", td["state_value"].long()),
            TypeError,
            "state_value has dtype int64, expected a floating-point",
        ),
        (
            lambda td: td.set("state_value", torch.zeros(4, 6, 2)),
            ValueError,
            r"state_value has shape \(4, 6, 2\), expected \[4, 6\] or \[4, 6, 1\] \(the td's batch",
        ),
        (
            lambda td: TensorDict(td.to_dict(), []),
            ValueError,
            r"state_value has shape \(4, 6\), expected \[\] or \[1\]",
        ),
        (lambda td: td[0, 0], ValueError, r"batch size \[\], expected \[\*B, T\] with time last"),
        (lambda td: td[:, :0], ValueError, r"batch size \[4, 0\], expected .* at least one step"),
        (
            lambda td: td.refine_names("worker", "step"),
            ValueError,
            r"named \['worker', 'step'\], none of them 'time'",
        ),
        (lambda td: td.to_dict(), TypeError, "td is a dict, expected a TensorDict"),
        (
            lambda td: td.set("gamma", torch.zeros(4, 6, dtype=torch.int64)),
            TypeError,
            "gamma has dtype int64",
        ),
        (
            lambda td: td.set("mask", torch.ones(4, 6)),
            TypeError,
            "mask has dtype float32, expected bool",
        ),
    ],
)
def test_bad_td(trajectory, change, error, text):
    td = change(trajectory(4))
    with pytest.raises(error, match=f"^add_advantage: .*{text}") as caught:
        add_advantage(td, 0.9, 0.8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hyper", "error", "text"),
    [
        ((None, 0.8), ValueError, "gamma is neither given nor an entry of the td"),
        ((0.9,), ValueError, "lmbda is neither given nor an entry of the td"),
        ((1.1, 0.8), ValueError, "gamma is 1.1, expected a number from 0 to 1"),
        (("0.9", 0.8), TypeError, "gamma is a str, expected a float or a tensor"),
        ((torch.tensor(1), 0.8), TypeError, "gamma has dtype int64, expected a floating-point"),
        ((torch.zeros(6), 0.8), ValueError, r"gamma has shape \(6,\), expected \(\) or \[4, 6\]"),
        ((torch.zeros(1), 0.8), ValueError, r"gamma has shape \(1,\), expected \(\) or \[4, 6\]"),
        ((0.9, torch.zeros(4, 1)), ValueError, r"lmbda has shape \(4, 1\), expected \(\) or \[4"),
    ],
)
def test_bad_hyper_parameter(trajectory, hyper, error, text):
    with pytest.raises(error, match=f"^add_advantage: {text}"):
        add_advantage(trajectory(4), *hyper)


def test_a_compiled_estimator_keeps_the_name_of_time():
    draw = torch.Generator().manual_seed(0)
    size, names = (5, 3), ["time", None]
    following = {
        "state_value": torch.randn(size, generator=draw),
        "reward": torch.randn(size, generator=draw),
        "done": torch.rand(size, generator=draw) < 0.2,
        "terminated": torch.zeros(size, dtype=torch.bool),
    }
    entries = {"state_value": torch.randn(size, generator=draw)}
    td = TensorDict(
        {**entries, "next": TensorDict(following, size, names=names)}, size, names=names
    )
    run = torch.compile(lambda td: add_advantage(td, 0.9, 0.9), fullgraph=True, backend="aot_eager")
    assert run(td).names == names == add_advantage(td, 0.9, 0.9).names
    torch._dynamo.reset()
