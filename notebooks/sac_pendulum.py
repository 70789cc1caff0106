"""SAC on Gymnasium's Pendulum-v1, on one page: solved in some 5,000 steps and half a minute."""

import gymnasium
import torch

from losses import sac_actor_loss, sac_critic_loss, sac_temperature_loss, tanh_normal, total
from paramtree import Model, detach, envs, grad, nn, optim, rng, td_model, tree, with_next
from paramtree.interop.gymnasium import evaluate, reset, rollout

GAMMA, TAU, RATE, BATCH = 0.99, 0.01, 2e-3, 256
NOTHING, ACT = tree.new({}), {"dist_class": tanh_normal, "rescale": True}
NET = nn.sequential(nn.mlp(3, 64, 64, final_activation=torch.relu), nn.squashed_normal_head(64, 1))
DRAW = Model(NET.init, lambda p, b, x: (tanh_normal(*NET(p, b, x[0])).sample_with(x[1]), b))
ACTOR = td_model(NET, "observation", ["loc", "scale"])
SAMPLE = td_model(DRAW, ["observation", "noise"], ["action_actor", "action_log_prob_actor"])
CRITICS = nn.ensemble(nn.mlp(4, 64, 64, 1), 2)


def values(critics, td, action):  # by both critics at once, [B, 2]
    x = torch.cat([td["observation"], td[action]], -1)
    return CRITICS(critics, NOTHING, x).squeeze(-1).mT


def loss(params, target, td):  # of actor, critics and temperature; each learns by its own alone
    td, alpha = with_next(SAMPLE)(params["actor"], NOTHING, td), params["log_alpha"].exp().detach()
    entries = {
        "state_action_value": values(params["critics"], td, "action"),
        "state_action_value_actor": values(detach(params["critics"]), td, "action_actor"),
        "next.state_action_value": values(target, td["next"], "action_actor"),
    }
    td, drawn = tree.replace(td, entries), detach(tree.select(td, "action_log_prob_actor"))
    own = {"log_alpha": params["log_alpha"], "target_entropy": -1.0}
    parts = sac_critic_loss(td, gamma=GAMMA, alpha=alpha), sac_actor_loss(td, alpha=alpha)
    return sum(map(total, [*parts, sac_temperature_loss(drawn, **own)]))


def train(seed, steps=8_000, report=print):  # the parameters after so many steps
    world = gymnasium.make_vec("Pendulum-v1", 1, vector_kwargs={"autoreset_mode": "SameStep"})
    world = gymnasium.wrappers.vector.RecordEpisodeStatistics(world)
    key, optimizer, replay = rng.key(seed), optim.adam(RATE), envs.replay_buffer(100_000)
    actor, critics = (m.init(rng.fold_in(key, i))[0] for i, m in enumerate((NET, CRITICS)))
    params = tree.new({"actor": actor, "critics": critics, "log_alpha": torch.zeros(())})
    target, state, adam, memory = critics, reset(world, seed), optimizer.init(params), None
    for i in range(steps):
        key, acting, choosing, drawing = rng.split(key, 4)
        state, _, td = rollout(world, ACTOR, params["actor"], NOTHING, state, acting, 1, **ACT)
        td = td.select("observation", "action", "next")
        memory = replay.add(memory if i else replay.init(td), td, donate=True)
        noise = dict(zip(("noise", "next.noise"), rng.normal(drawing, (2, BATCH, 1)), strict=True))
        td = tree.replace(replay.sample(memory, choosing, BATCH), noise)
        params, adam = optim.step(optimizer, grad(loss)(params, target, td), adam, params)
        target = optim.incremental_update(params["critics"], target, TAU)
        if i % 200 == 199:  # an episode is over
            report(f"{i + 1:6d} steps, last return {world.return_queue[-1]:7.1f}")
    world.close()
    return params


if __name__ == "__main__":
    print(evaluate("Pendulum-v1", ACTOR, train(0)["actor"], NOTHING, rng.key(1), 100, **ACT).mean())
