"""Seeds as one more axis: a whole training is written for one agent, and mapped over seeds."""

import pytest
import torch

from losses import add_advantage, ppo_clip_loss, total
from paramtree import compose, envs, grad, nn, optim, rng, td_model, tree, vmap, with_next

AGENT = compose(
    actor=td_model(nn.mlp(4, 32, 32, 2, activation=torch.tanh), "observation", "logits"),
    critic=td_model(nn.mlp(4, 32, 32, 1, activation=torch.tanh), "observation", "state_value"),
)
WORLD, BUFFERS = envs.cart_pole(), AGENT.init(rng.key(0))[1]
READ = ("observation", "action", "action_log_prob", "advantage", "value_target")


def loss(params, td):
    out = AGENT(params["policy"], BUFFERS, td)
    return total(ppo_clip_loss(out, entropy_coeff=0.0, normalize_advantage=True))


def train(key, lr, updates, *, workers, length, epochs, minibatch, dtype=torch.float32):
    """PPO on the pure cart pole: parameters, and the mean length of episodes at each update."""
    level = envs.cart_pole_level(dtype=dtype)
    policy = AGENT.init(rng.fold_in(key, "policy"))[0]
    params = tree.new({"policy": tree.map(lambda x: x.to(dtype), policy)})
    optimizer = optim.chain(clip=optim.clip_by_global_norm(0.5), adam=optim.adam(lr))
    memory, lengths = optimizer.init(params), []
    state = WORLD.reset(level, WORLD.noise(level, rng.fold_in(key, "first"), (workers,)))
    for i in range(updates):
        acting, learning = rng.split(rng.fold_in(key, i))
        agent = AGENT, params["policy"], BUFFERS
        state, _, td = envs.rollout(WORLD, *agent, level, state, acting, length)
        lengths.append(workers * length / td["next", "done"].sum())
        td = add_advantage(with_next(AGENT)(params["policy"], BUFFERS, td), 0.99, 0.95)
        td = td.select(*READ).reshape(-1)
        for epoch_key in rng.split(learning, epochs):
            for index in rng.permutation(epoch_key, workers * length).split(minibatch):
                grads = grad(loss)(params, td[index])
                params, memory = optim.step(optimizer, grads, memory, params)
    return params, torch.stack(lengths)


def test_trainings_of_many_seeds_and_rates_at_once_are_the_single_ones():
    sizes = {"workers": 4, "length": 16, "epochs": 2, "minibatch": 32, "dtype": torch.float64}
    keys, rates = rng.split(rng.key(0), 3), torch.tensor([1e-3, 3e-3, 1e-2], dtype=torch.float64)
    many, lengths = vmap(lambda key, lr: train(key, lr, 2, **sizes))(keys, rates)
    assert many.batch_size == (3,) and lengths.shape == (3, 2)
    for i in range(3):
        one, own = train(keys[i], rates[i], 2, **sizes)
        assert tree.allclose(many[i], one, rtol=1e-9, atol=1e-12)
        assert torch.allclose(lengths[i], own)
    assert not torch.equal(
        many["policy", "actor", "linear_0", "bias"][0],
        many["policy"][1]["actor", "linear_0", "bias"],
    )


def test_a_seeds_policy_is_a_tree_that_works():
    params = vmap(lambda key: tree.new({"policy": AGENT.init(key)[0]}))(rng.split(rng.key(0), 3))
    policy = params[1]["policy"]
    assert tree.paths(policy) == tree.paths(AGENT.init(rng.key(0))[0])
    alone = AGENT.init(rng.split(rng.key(0), 3)[1])[0]
    assert tree.allclose(policy, alone, rtol=0, atol=0)
    td = tree.new({"observation": rng.normal(rng.key(1), (5, 4))}, (5,))
    assert torch.equal(AGENT(policy, BUFFERS, td)["logits"], AGENT(alone, BUFFERS, td)["logits"])
    slope = grad(lambda p: AGENT(p[1]["policy"], BUFFERS, td)["logits"].square().sum())(params)
    touched = slope["policy", "actor", "linear_0", "weight"].abs().sum((1, 2)) > 0
    assert touched.tolist() == [False, True, False]


@pytest.mark.slow
def test_every_seed_learns():
    sizes = {"workers": 8, "length": 64, "epochs": 6, "minibatch": 128}
    keys, rates = rng.split(rng.key(0), 4), torch.tensor([1e-3, 1e-3, 3e-3, 3e-3])
    _, lengths = vmap(lambda key, lr: train(key, lr, 40, **sizes))(keys, rates)
    assert (lengths[:, :2].mean(1) < 40).all() and (lengths[:, -5:].mean(1) > 100).all()
