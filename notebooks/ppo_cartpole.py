"""PPO on Gymnasium's CartPole-v1, on one page: solved in 50,000 steps and some seconds."""

import gymnasium
import torch

from losses import add_advantage, ppo_clip_loss, total
from paramtree import compose, grad, nn, optim, rng, td_model, with_next
from paramtree.interop.gymnasium import evaluate, reset, rollout

WORKERS, LENGTH, EPOCHS, MINIBATCH = 8, 128, 8, 256
GAMMA, LMBDA, RATE = 0.99, 0.95, 2e-3

AGENT = compose(
    actor=td_model(nn.mlp(4, 64, 64, 2, activation=torch.tanh), "observation", "logits"),
    critic=td_model(nn.mlp(4, 64, 64, 1, activation=torch.tanh), "observation", "state_value"),
)
READ = ("observation", "action", "action_log_prob", "advantage", "value_target")


def loss(params, buffers, td):
    out = AGENT(params, buffers, td)
    return total(ppo_clip_loss(out, entropy_coeff=0.0, normalize_advantage=True))


def learn(optimizer, params, buffers, memory, td, key):
    """Parameters and optimizer's memory after some epochs of minibatches of a trajectory."""
    td = add_advantage(with_next(AGENT)(params, buffers, td), GAMMA, LMBDA)
    td = td[td["mask"]].select(*READ)  # without the steps that only reset a worker
    for epoch_key in rng.split(key, EPOCHS):
        for index in rng.permutation(epoch_key, len(td)).split(MINIBATCH):
            grads = grad(loss)(params, buffers, td[index])
            params, memory = optim.step(optimizer, grads, memory, params)
    return params, memory


def train(seed, steps=50_000, report=print):
    """Parameters and buffers of an agent that has played so many steps."""
    key, rounds = rng.key(seed), steps // (WORKERS * LENGTH)
    envs = gymnasium.make_vec("CartPole-v1", WORKERS)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    rate = optim.linear(RATE, 0.0, rounds * EPOCHS * WORKERS * LENGTH // MINIBATCH)
    optimizer = optim.chain(clip=optim.clip_by_global_norm(0.5), adam=optim.adam(rate))
    params, buffers = AGENT.init(rng.fold_in(key, "init"))
    memory, state = optimizer.init(params), reset(envs, seed)
    for i in range(rounds):
        acting, learning = rng.split(rng.fold_in(key, i))
        state, buffers, td = rollout(envs, AGENT, params, buffers, state, acting, LENGTH)
        params, memory = learn(optimizer, params, buffers, memory, td, learning)
        mean = sum(envs.return_queue) / max(len(envs.return_queue), 1)
        report(f"{(i + 1) * WORKERS * LENGTH:6d} steps, last 100 returns {mean:5.1f}")
    envs.close()
    return params, buffers


if __name__ == "__main__":
    agent = train(0, report=lambda text: print(text, end="\r"))
    print("\nevaluation", evaluate("CartPole-v1", AGENT, *agent, rng.key(1), 100).mean())
