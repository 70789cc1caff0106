"""Modules of TensorDicts: a new tree comes back, from a key where it samples, alone and mapped."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    InteractionType,
    NormalParamExtractor,
    TensorDictModule,
    set_interaction_type,
)
from torch import nn
from torchrl.modules import MLP, ProbabilisticActor

from paramtree import check_grads, compose, from_module, rng, td_model, tree, vmap
from tests.paramtree.nn_module.modules import assert_close, draw, seeded, spread


def actor(train=True):
    layers = nn.Sequential(MLP(3, 4, depth=1, num_cells=5), NormalParamExtractor())
    return seeded(
        ProbabilisticActor(
            TensorDictModule(layers, ["observation"], ["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=torch.distributions.Normal,
            return_log_prob=True,
        )
    ).train(train)


def batch(*size):
    following = TensorDict({"observation": draw("next", *size, 3)}, size)
    return TensorDict({"observation": draw("now", *size, 3), "next": following}, size).lock_()


def by_key(td):
    return {str(key): td.get(key) for key in sorted(td.keys(True, True), key=str)}


def test_an_actor_gives_a_new_tree():
    module, td = actor(), batch(4)
    model, params, buffers = from_module(module)
    keys, kept = set(td.keys(True)), by_key(td.clone())
    with set_interaction_type(InteractionType.DETERMINISTIC):
        out, wanted = model(params, buffers, td), module(td.clone())
    assert out.is_locked and out["next"].is_locked and out["observation"] is td["observation"]
    assert_close(by_key(out), by_key(wanted))
    assert set(td.keys(True)) == keys
    assert_close(by_key(td), kept, rtol=0, atol=0)
    with set_interaction_type(InteractionType.RANDOM):
        with pytest.raises(ValueError, match="draws random numbers .* and there is no key"):
            model(params, buffers, td)


def test_an_actor_draws_from_its_key_and_carries_gradient():
    model, params, buffers = from_module(actor(), key=rng.key(4))
    td, keys = batch(4), rng.split(rng.key(7), 3)
    with set_interaction_type(InteractionType.RANDOM):
        out, after = model.apply(params, buffers, td)
        assert_close(by_key(out), by_key(model.apply(params, buffers, td)[0]), rtol=0, atol=0)
        following = model.apply(params, after, td)[0]
        assert not torch.allclose(out["action"], following["action"])
        assert torch.allclose(out["loc"], following["loc"])
        z = (out["action"] - out["loc"]) / out["scale"]
        wanted = -z.square() / 2 - out["scale"].log() - 0.9189385332046727
        assert_close(out["action_log_prob"], wanted)
        check_grads(lambda p: model.apply(p, buffers, td)[0]["action"], params, max_entries=4)

        many = spread(params, 3)
        states = tree.stack([tree.replace(buffers, {"key": key}) for key in keys])
        mapped = vmap(model.apply, (0, 0, None))(many, states, td)[0]
        for i in range(3):
            one = model.apply(many[i], states[i], td)[0]
            assert_close(by_key(mapped[i]), by_key(one), rtol=1e-10, atol=1e-12)


def test_a_module_may_write_into_its_tree():
    class Adds(nn.Module):
        def forward(self, td):
            td["observation"].mul_(2)
            return td.set("sum", td["observation"].sum(-1))

    td = batch(4)
    kept, (model, params, buffers) = by_key(td.clone()), from_module(Adds())
    out = model(params, buffers, td)
    assert_close(out["sum"], 2 * td["observation"].sum(-1))
    assert_close(out["observation"], 2 * td["observation"])
    assert_close(by_key(td), kept, rtol=0, atol=0)


def test_composes_with_other_models():
    policy, value = (
        nn.Linear(3, 2).double(),
        nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)).double(),
    )
    agent = compose(
        actor=td_model(from_module(policy)[0], "observation", "logits"),
        critic=td_model(from_module(value, key=rng.key(0))[0], "observation", "state_value"),
    )
    params, buffers = vmap(agent.init)(rng.split(rng.key(1), 3))
    assert params["critic", "0", "weight"].shape == (3, 1, 3)
    out, after = vmap(agent.apply, (0, 0, None))(params, buffers, batch(4))
    assert out["logits"].shape == (3, 4, 2) and not after["critic", "key"].equal(
        buffers["critic", "key"]
    )
    wanted = batch(4)["observation"] @ params["actor", "weight"][1].mT + params["actor", "bias"][1]
    assert_close(out["logits"][1], wanted)
