"""One row for each public function; ``losses_*.py`` and ``optim_*.py`` hold those of two rooms."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import (
    autodiff,
    compose,
    envs,
    meta,
    methods,
    nn,
    optim,
    parallel,
    rng,
    td_model,
    tree,
    with_next,
)
from tests.contract.case import Case, D, draw, flags, params


def rows(room: str) -> list[Any]:
    """The rows of all files of a room, in the order of their names."""
    files = sorted(Path(__file__).parent.glob(f"{room}_*.py"))
    files = [file for file in files if room == "nn_module" or not file.stem.startswith("nn_module")]
    modules = [importlib.import_module(f"tests.contract.{file.stem}") for file in files]
    return [row for module in modules for row in module.ROWS]


LOSSES = rows("losses")


# ------------------------------------------------------------------------------------- trajectories

# ------------------------------------------------------------------------------------------ worlds

WORLD = envs.level_distribution("small")
MOVING = envs.level_distribution("rand_small")
AGENT = compose(
    actor=meta.agent_model(WORLD, 5, "logits"),
    critic=meta.agent_model(WORLD, 1, "state_value"),
    prediction=meta.agent_model(WORLD, 4, "prediction"),
)
NETWORK = meta.lpg_network(4, 5, n_embedding=3)
RULE = meta.lpg_rule(NETWORK, gamma=0.9, full_stop=False)
HABITAT = meta.Habitat(AGENT, WORLD.env, WORLD.sample, optim.sgd(0.5), workers=2, lifetime=10)
POPULATION = meta.lpg_population(WORLD, 2, n_prediction=4, workers=2, lifetime=6)
TRAINING = meta.lpg_training(
    meta.lpg_rule(NETWORK), {"small": POPULATION}, optim.adam(1e-2), updates=1, length=3
)


def double(nest: Any) -> Any:
    leaves, structure = tree.flatten(nest)
    return tree.unflatten(structure, [x.double() if x.is_floating_point() else x for x in leaves])


def life() -> TensorDict:
    return double(meta.birth(HABITAT, RULE, rng.key(1)))


def rule_params() -> TensorDict:
    params = RULE.init(rng.key(2))[0]
    head = rng.normal(rng.key(11), (1, 5))  # the head of pi_hat begins at zero, which hides much
    return double(tree.replace(params, {"pi_hat.weight": head}))


def play(state: TensorDict, key: torch.Tensor) -> Any:
    return envs.rollout(
        WORLD.env, AGENT, state["params"], state["buffers"], state["level"], state["env"], key, 3
    )


def lived(rule: meta.UpdateRule, rule_params: TensorDict, state: TensorDict) -> TensorDict:
    after, _ = meta.train_agent(
        rule,
        *HABITAT[:2],
        HABITAT.optimizer,
        rule_params,
        state["level"],
        state,
        rng.key(4),
        updates=1,
        length=3,
    )
    return after["params"]


def updated(rule_params: TensorDict, params: TensorDict, td: TensorDict) -> TensorDict:
    state = tree.new({**tree.entries(LIFE), "params": params})
    return meta.update_agent(RULE, AGENT, HABITAT.optimizer, rule_params, state, td)[0]["params"]


def looped(rule_params: TensorDict, agents: TensorDict) -> TensorDict:
    groups = {"a": (AGENT, WORLD.env, agents["level"])}
    states = tree.new({"a": agents})
    run = {"updates": 1, "length": 3}
    return meta.inner_loop(RULE, groups, HABITAT.optimizer, rule_params, states, rng.key(4), **run)[
        0
    ]["a", "params"]


def stepped(world: envs.LevelDistribution, key: torch.Tensor) -> Any:
    level = world.sample(key)
    noise = world.env.noise(level, key, (2,))
    state = world.env.reset(level, noise)
    return world.env.step(level, state, torch.zeros(2, dtype=torch.int64), noise)


def a2c_step(hyper: TensorDict, params: TensorDict) -> TensorDict:
    rule = meta.a2c_rule(
        hyper["gamma"],
        hyper["lmbda"],
        entropy_coeff=hyper["entropy_coeff"],
        critic_coeff=hyper["critic_coeff"],
    )
    state = tree.new({**tree.entries(LIFE), "params": params, "rule": tree.new({})})
    return meta.update_agent(rule, AGENT, optim.sgd(0.5), tree.new({}), state, SEEN)[0]["params"]


LIFE = life()
SEEN = play(LIFE, rng.key(3))[2]
NET = compose(net=td_model(nn.linear(3, 2), "x", "y"))
PARTS = {"encoder": nn.mlp(3, 4, 2, activation=torch.tanh), "decoder": nn.linear(2, 3)}
CODEC = methods(PARTS, encode="encoder", both=["encoder", "decoder"])
EYES = parallel(nn.linear(3, 2), {"x": "y", "next.x": "next.y"})


def net_args() -> tuple[Any, ...]:
    td = tree.new({"x": draw("x", 4, 3), "next": tree.new({"x": draw("next x", 4, 3)}, (4,))}, (4,))
    return double(NET.init(rng.key(0))[0]), td


def renewed(ages: torch.Tensor) -> torch.Tensor:
    """Two agents of these ages, and what becomes of them."""
    home = HABITAT._replace(lifetime=5)
    agents = meta.births(home, RULE, rng.key(0), 2)

    def born(rows: torch.Tensor) -> Any:
        return meta.births(home, RULE, rng.key(9), 2, rows=rows)

    return meta.renew(tree.replace(agents, {"age": ages}), born)["age"]


def square(x: torch.Tensor) -> torch.Tensor:
    return x.pow(3).sum()


HOST = "reads values on the host to decide how long to go on; not for hot paths"
MINUTE = "compiles, in half a minute: tests/paramtree/compile/test_lpg_step.py holds it"

CASES = [
    # trees
    Case("tree.new", lambda a: tree.new({"a": a}), lambda: (draw("a", 2),)),
    Case("tree.lock", lambda p: tree.lock(p), lambda: (params().clone(),)),
    Case(
        "tree.rebuild",
        lambda p: tree.rebuild(p, {"meta": p["meta"], "n": p["meta", "w"].sum()}),
        lambda: (params(),),
        covers=("tree.as_tree",),
    ),
    Case(
        "tree.entries",
        lambda p: (tree.entries(p), tree.values(p, ["policy", "meta"])),
        lambda: (params(),),
        covers=("tree.values",),
    ),
    Case(
        "tree.flatten",
        lambda p: tree.flatten(p)[0],
        lambda: (params(),),
        covers=("tree.leaves", "tree.leaves_like", "tree.paths", "tree.Structure"),
    ),
    Case("tree.unflatten", lambda p: tree.unflatten(*tree.flatten(p)[::-1]), lambda: (params(),)),
    Case("tree.leaves", lambda p: tree.leaves(p), lambda: (params(),)),
    Case("tree.select", lambda p: tree.select(p, "**.w"), lambda: (params(),)),
    Case("tree.exclude", lambda p: tree.exclude(p, ("meta", "w")), lambda: (params(),)),
    Case("tree.partition", lambda p: tree.partition(p, "policy.*"), lambda: (params(),)),
    Case("tree.merge", lambda p: tree.merge(*tree.partition(p, "**.b")), lambda: (params(),)),
    Case(
        "tree.replace",
        lambda p, x: tree.replace(p, {"meta.w": x, "meta.new": x}),
        lambda: (params(), draw("x", 3)),
        inductor=True,
    ),
    Case(
        "tree.map",
        lambda p, q: tree.map(torch.mul, p, q),
        lambda: (params(), params()),
        inductor=True,
    ),
    Case(
        "tree.map_with_path",
        lambda p: tree.map_with_path(lambda path, x: x * len(path), p),
        lambda: (params(),),
    ),
    Case("tree.stack", lambda p, q: tree.stack([p, q]), lambda: (params(), params())),
    Case("tree.unstack", lambda p: tree.unstack(tree.stack([p, p])), lambda: (params(),)),
    Case("tree.take", lambda p: tree.take(p, [1, 0, 1]), lambda: (params(),)),
    Case("tree.drop", lambda p: tree.drop(p, [0]), lambda: (params(),)),
    Case(
        "tree.concat",
        lambda p, q: tree.concat([p["policy"], q["policy"]]),
        lambda: (params(), params()),
    ),
    Case(
        "tree.cast",
        lambda p: tree.cast(p, torch.float32, "policy.w"),
        lambda: (params(),),
        smooth=0,  # central differences see the rounding: test_cast has the gradient
    ),
    Case("tree.ravel", lambda p: tree.ravel(p)[0].sin(), lambda: (params(),)),
    Case("tree.norm", tree.norm, lambda: (params(),), inductor=True),
    Case("tree.vdot", tree.vdot, lambda: (params(), params())),
    Case("tree.root", tree.root, lambda: (draw("x", 4, low=0.5),)),
    Case(
        "tree.where",
        lambda p, q: tree.where(torch.tensor(True), p, q),
        lambda: (params(), params()),
    ),
    Case(
        "tree.with_axis",
        lambda p: tree.unflatten(
            tree.with_axis(tree.flatten(p)[1], 2), [torch.stack([x, x]) for x in tree.leaves(p)]
        ),
        lambda: (params(),),
        covers=("tree.without_axis",),
    ),
    # models
    Case(
        "model.compose",
        lambda p, td: NET(p, NET.init(rng.key(0))[1], td)["y"],
        net_args,
        covers=("model.Model", "model.td_model"),
    ),
    Case(
        "model.with_next",
        lambda p, td: with_next(NET)(p, NET.init(rng.key(0))[1], td)["next", "y"],
        net_args,
    ),
    Case(
        "model.methods",
        lambda p, td: CODEC.both(p, CODEC.init(rng.key(0))[1], td["x"]),
        lambda: (double(CODEC.init(rng.key(0))[0]), net_args()[1]),
    ),
    Case(
        "model.parallel",
        lambda p, td: EYES(p, EYES.init(rng.key(0))[1], td)["next", "y"],
        lambda: (double(EYES.init(rng.key(0))[0]), net_args()[1]),
    ),
    # derivatives
    Case("autodiff.grad", autodiff.grad(square), lambda: (draw("x", 3),)),
    Case("autodiff.value_and_grad", autodiff.value_and_grad(square), lambda: (draw("x", 3),)),
    Case("autodiff.vmap", autodiff.vmap(square), lambda: (draw("x", 3, 2),)),
    Case(
        "autodiff.hvp",
        lambda x, v: autodiff.hvp(square, x, v),
        lambda: (draw("x", 3), draw("v", 3)),
    ),
    Case("autodiff.checkpoint", autodiff.checkpoint(square), lambda: (draw("x", 3),)),
    Case("autodiff.detach", autodiff.detach, lambda: (params(),), smooth=0),
    Case(
        "autodiff.check_grads",
        lambda x: autodiff.check_grads(square, x),
        lambda: (draw("x", 3),),
        smooth=0,
        vmapped=HOST,
        compiled=HOST,
    ),
    # random numbers
    Case("rng.key", lambda seed: rng.key(seed), lambda: (torch.tensor(3),), smooth=0),
    Case("rng.split", lambda k: rng.split(k, 3), lambda: (rng.key(1),), smooth=0),
    Case(
        "rng.fold_in",
        lambda k: (rng.fold_in(k, 3), rng.fold_in(k, "name")),
        lambda: (rng.key(1),),
        smooth=0,
    ),
    Case("rng.bits", lambda k: rng.bits(k, (5,)), lambda: (rng.key(1),), smooth=0),
    Case(
        "rng.uniform",
        lambda k, a, b: rng.uniform(k, (5,), a, b, dtype=D),
        lambda: (rng.key(1), draw("a", low=-2.0, high=-1.0), draw("b")),
        inductor=True,
    ),
    Case(
        "rng.normal",
        lambda k, a, b: rng.normal(k, (5,), a, b.exp(), dtype=D),
        lambda: (rng.key(1), draw("a"), draw("b")),
        inductor=True,
    ),
    Case(
        "rng.truncated_normal",
        lambda k, a: rng.truncated_normal(k, (5,), mean=a, dtype=D),
        lambda: (rng.key(1), draw("a")),
    ),
    Case("rng.bernoulli", lambda k: rng.bernoulli(k, 0.3, (5,)), lambda: (rng.key(1),), smooth=0),
    Case(
        "rng.categorical",
        lambda k, x: rng.categorical(k, x),
        lambda: (rng.key(1), draw("x", 4)),
        smooth=0,
    ),
    Case("rng.randint", lambda k: rng.randint(k, (5,), 0, 7), lambda: (rng.key(1),), smooth=0),
    Case("rng.permutation", lambda k: rng.permutation(k, 5), lambda: (rng.key(1),), smooth=0),
    Case("rng.philox4x32", rng.philox4x32, lambda: (torch.arange(4), torch.arange(2)), smooth=0),
    # layers, and torch's own modules
    *rows("nn"),
    *rows("nn_module"),
    # optimizers
    *rows("optim"),
    # environments
    Case(
        "envs.grid_world",
        partial(stepped, WORLD),
        lambda: (rng.key(2),),
        smooth=0,
        covers=("envs.Env", "envs.grid_level", "envs.level_distribution", "envs.LevelDistribution"),
    ),
    Case("envs.random_grid_world", partial(stepped, MOVING), lambda: (rng.key(2),), smooth=0),
    Case("envs.rollout", play, lambda: (life(), rng.key(3)), smooth=0),
    Case(
        "envs.optimal_return",
        lambda level: envs.optimal_return(level, 6),
        lambda: (WORLD.sample(rng.key(1)),),
        smooth=0,
        vmapped=HOST,
        compiled=HOST,
    ),
    Case(
        "envs.optimal_reward_rate",
        envs.optimal_reward_rate,
        lambda: (WORLD.sample(rng.key(1)),),
        smooth=0,
        vmapped=HOST,
        compiled=HOST,
    ),
    *rows("envs"),
    *[row if isinstance(row, Case) else row.case() for row in LOSSES],
    # learning to learn
    *rows("meta"),
    Case(
        "meta.lpg_network",
        lambda p, td: NETWORK(p, NETWORK.init(rng.key(0))[1], td)["y_hat"],
        lambda: (rule_params(), lpg_inputs()),
    ),
    Case(
        "meta.lpg_rule",
        updated,
        lambda: (rule_params(), life()["params"], SEEN),
        covers=("meta.update_agent", "meta.UpdateRule", "meta.agent_model"),
    ),
    Case(
        "meta.a2c_rule",
        a2c_step,
        lambda: (
            tree.new(
                {
                    n: torch.tensor(v, dtype=D)
                    for n, v in {
                        "gamma": 0.9,
                        "lmbda": 0.8,
                        "entropy_coeff": 0.1,
                        "critic_coeff": 0.5,
                    }.items()
                }
            ),
            life()["params"],
        ),
    ),
    Case(
        "meta.train_agent",
        partial(lived, RULE),
        lambda: (rule_params(), life()),
        smooth=0,
        covers=("meta.birth",),
    ),
    Case(
        "meta.inner_loop",
        looped,
        lambda: (rule_params(), double(meta.births(HABITAT, RULE, rng.key(1), 2))),
        smooth=0,
        covers=("meta.births",),
    ),
    Case(
        "meta.older",
        lambda p: meta.older(p, 2),
        lambda: (tree.new({"age": torch.tensor(1)}),),
        smooth=0,
    ),
    Case(
        "meta.renew",
        renewed,
        lambda: (torch.tensor([3, 7]),),
        smooth=0,
        compiled=MINUTE,
    ),
    Case(
        "meta.lpg_training",
        lambda s: TRAINING.step(s)[0]["rule"],
        lambda: (double(TRAINING.init(rng.key(0))),),
        smooth=0,
        compiled=MINUTE,
        covers=("meta.Training", "meta.Population", "meta.lpg_population"),
    ),
    Case(
        "meta.reward_curve",
        lambda levels: meta.reward_curve(
            HABITAT, RULE, RULE.init(rng.key(2))[0], levels, rng.key(1), updates=1, length=3
        ),
        lambda: (WORLD.sample(rng.split(rng.key(1), 2)),),
        smooth=0,
        compiled=MINUTE,
        covers=("meta.Habitat", "meta.a2c_habitat"),
    ),
]

# public, and nothing that a tensor goes through: names and structures
NOT_NUMBERS = {
    "tree.parse_path",
    "tree.show_path",
    "tree.require_same",
    "tree.require_tree",
    "tree.shared_batch_size",
    "model.located",
    "model.require_key",
    "model.require_model",
    "display.Row",  # text and pages: see tests/paramtree/display
    "display.Summary",
    "display.View",
    "display.load_ipython_extension",
    "display.show",
    "display.summary",
    "display.unload_ipython_extension",
    "checkpoint.save",  # files: see test_checkpoint
    "checkpoint.load",
    "checkpoint.load_metadata",
    "meta.load_rule",  # files: see test_shipped
    "meta.rule_card",
}


def lpg_inputs() -> TensorDict:
    size = (2, 5)
    entries = {
        "reward": draw("reward", *size),
        "done": flags("done", *size),
        "gamma": draw("gamma", *size),
        "action_prob": draw("p", *size, low=0.1),
        "prediction": draw("y", *size, 4),
        "next": tree.new({"prediction": draw("y'", *size, 4)}, size),
    }
    return tree.new(entries, size)
