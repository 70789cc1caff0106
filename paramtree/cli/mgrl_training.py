"""What the options of ``mgrl`` mean: the world, the agent, its rule, and what is learned of it."""

import ast
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import envs, losses, meta, nn, optim, rng, tree
from ..autodiff import detach
from ..meta.lives import first_returns
from ..model import Model, compose, td_model
from .mgrl_options import MgrlOptions
from .outcome import Refused
from .world import require_positive

_FOR_PPO = ("clip_epsilon",)


class World(NamedTuple):
    """An environment, and what an agent has to know of it."""

    env: envs.Env
    level: TensorDict
    features: tuple[int, ...]
    actions: int
    longest: int  # steps of an episode, but for a random walk


def make_world(name: str, words: tuple[str, ...]) -> World:
    """A world by its name.

    Args:
        name: one of those that the options know.
        words: what it is made with, as name=value.

    Returns:
        The world.

    Raises:
        Refused: a word isn't one of this world's.
        ValueError: a number is out of range.
        TypeError: a value is of another kind.
    """
    make, level, actions = {
        "cart_pole": (envs.cart_pole, envs.cart_pole_level, 2),
        "catch": (envs.catch, envs.catch_level, 3),
        "horizon": (envs.horizon, envs.horizon_level, 1),
        "choice": (envs.delayed_choice, envs.delayed_choice_level, 2),
        "random_walk": (envs.random_walk, envs.random_walk_level, 1),
    }[name]
    given = _arguments(words)
    names = [set(inspect.signature(fn).parameters) - {"dtype", "device"} for fn in (make, level)]
    for word in given:
        if word not in names[0] | names[1]:
            known = ", ".join(sorted(names[0] | names[1]))
            raise Refused(f"--env-args has {word!r}, but {name} is made with {known}")
    of_level = {word: value for word, value in given.items() if word in names[1]}
    if name == "choice" and "delay" in given:
        given.setdefault("longest", given["delay"])
    own = level(**of_level)
    env = make(**{word: value for word, value in given.items() if word in names[0]})
    state = env.reset(own, env.noise(own, rng.key(0), (1,)))
    features = tuple(state["observation"].shape[1:])
    longest = {"catch": features[0] - 1, "random_walk": 20 * features[0] ** 2}.get(name)
    if longest is None:
        longest = int(own["delay"]) + 1 if name == "choice" else int(own["max_steps"])
    return World(env, own, features, actions, longest)


def _arguments(words: tuple[str, ...]) -> dict[str, Any]:
    """``("max_steps=200", "gravity=1.6")`` as keywords."""
    found: dict[str, Any] = {}
    for word in words:
        name, equal, text = word.partition("=")
        if not equal or not name.isidentifier():
            raise Refused(f"--env-args has {word!r}, expected name=value, such as max_steps=200")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def make_agent(options: MgrlOptions, world: World) -> Model:
    """Policy and value of a run.

    Args:
        options: the run's options.
        world: its world.

    Returns:
        The agent, which reads ``observation``, and ``eta`` too if it is conditioned on it.
    """
    conditioned = options.outer.conditioned
    size = torch.Size(world.features).numel() + conditioned * len(options.outer.learn)

    def head(n_out: int, name: str) -> Model:
        net = nn.mlp(size, *options.hidden, n_out, activation=torch.tanh)
        flat = partial(torch.flatten, start_dim=-len(world.features))

        def apply(params: Any, buffers: Any, x: Any) -> Any:
            seen = torch.cat([flat(x[0]), x[1]], -1) if conditioned else flat(x)
            return net.apply(params, buffers, seen)

        inputs: Any = ["observation", "eta"] if conditioned else "observation"
        return td_model(Model(net.init, apply), inputs, name)

    return compose(actor=head(world.actions, "logits"), critic=head(1, "state_value"))


def make_hyper(options: MgrlOptions) -> meta.Hyper:
    """What a run learns of its hyper-parameters.

    Args:
        options: the run's options.

    Returns:
        What eta is.

    Raises:
        Refused: a name is to be learned that the algorithm has no use for, or none, or one twice.
        ValueError: a first value isn't inside of its range.
    """
    outer = options.outer
    if not outer.learn or len(set(outer.learn)) < len(outer.learn):
        names = " ".join(outer.learn) or "nothing"
        raise Refused(f"--learn is {names}, expected names that differ, at least one")
    idle = [name for name in outer.learn if name in _FOR_PPO and options.algorithm != "ppo"]
    if idle:
        raise Refused(f"--learn has {idle[0]}, which {options.algorithm} has no use for; ppo has")
    if outer.learn == _FOR_PPO:
        raise Refused("--learn is clip_epsilon, whose meta-gradient is 0; name another one beside")
    start = {name: getattr(options.inner, name) for name in outer.learn}
    if outer.per_update:
        return meta.hyper_schedule(start, options.updates)
    return meta.hyper_numbers(start)


def make_training(options: MgrlOptions, world: World) -> meta.Training:
    """The training of a run.

    Args:
        options: the run's options.
        world: its world.

    Returns:
        The training.

    Raises:
        Refused: what is to be learned can't be.
        ValueError: a number is out of range.
    """
    inner, outer = options.inner, options.outer
    sizes = {"--epochs": inner.epochs, "--minibatches": inner.minibatches}
    sizes |= {"--workers": options.workers, "--length": options.length}
    require_positive({**sizes, "--hidden": min(options.hidden, default=1)})
    if options.algorithm == "ppo" and options.workers % inner.minibatches:
        raise Refused(
            f"--minibatches is {inner.minibatches}, expected a divisor of --workers, which is "
            f"{options.workers}: each part of a trajectory is some workers, over all of --length"
        )
    weights = {"critic_coeff": outer.outer_critic_coeff, "entropy_coeff": outer.outer_entropy_coeff}
    reference = {"gamma": outer.reference_gamma, "lmbda": outer.reference_lmbda}
    judged = {f"reference_{name}": number for name, number in reference.items()}
    traced = {"decay": outer.decay, "exact": outer.exact, "window": outer.window}
    return meta.mgrl_training(
        make_agent(options, world),
        world.env,
        world.level,
        make_hyper(options),
        partial(_rule, options),
        partial(_optimizer, options),
        optim.adam(outer.meta_rate),
        updates=options.updates,
        length=options.length,
        workers=options.workers,
        method=outer.method,
        validation=outer.validation,
        outer=partial(losses.mgrl_outer_loss, **judged, **weights),
        conditioned=outer.conditioned,
        **traced,
    )


def _rule(options: MgrlOptions, hyper: TensorDict) -> meta.UpdateRule:
    inner = options.inner
    own = {name: getattr(inner, name) for name in ("entropy_coeff", "critic_coeff")}
    own |= {"gamma": inner.gamma, "lmbda": inner.lmbda, "normalize": inner.normalize_advantage}
    if options.algorithm == "ppo":
        own |= {"clip_epsilon": inner.clip_epsilon}
        own |= {"epochs": inner.epochs, "minibatches": inner.minibatches}
    learned = {name: value for name, value in tree.entries(hyper).items() if name != "lr"}
    rules: dict[str, Callable[..., meta.UpdateRule]] = {
        "a2c": meta.a2c_rule,
        "ppo": meta.ppo_rule,
        "vtrace": meta.vtrace_rule,
    }
    return rules[options.algorithm](**{**own, **learned})


def _optimizer(options: MgrlOptions, hyper: TensorDict) -> optim.Transform:
    inner = options.inner
    lr: Any = hyper["lr"] if "lr" in hyper.keys() else inner.lr
    made = {"adam": optim.adam, "rmsprop": optim.rmsprop, "sgd": optim.sgd}[inner.optimizer](lr)
    if inner.max_grad_norm is None:
        return optim.chain(step=made)
    return optim.chain(clip=optim.clip_by_global_norm(inner.max_grad_norm), step=made)


def returns(
    options: MgrlOptions, world: World, state: TensorDict, key: Tensor, episodes: int
) -> Tensor:
    """Returns of the first episodes of some workers, in which nothing is learned.

    Args:
        options: the run's options.
        world: its world.
        state: state of the training.
        key: ``[2]``.
        episodes: how many.

    Returns:
        ``[episodes]``; an episode that takes too long is cut off.
    """
    agent, own = make_agent(options, world), tree.entries(state["agents"])
    seen = torch.stack([x.reshape(-1)[-1] for x in tree.leaves(state["eta"])])

    def apply(params: Any, buffers: Any, td: TensorDict) -> Any:
        given = {**tree.entries(td), "eta": seen.expand(*td.batch_size, len(seen))}
        out, buffers = agent.apply(params, buffers, tree.rebuild(td, given))
        return tree.rebuild(td, {n: x for n, x in tree.entries(out).items() if n != "eta"}), buffers

    first, playing = rng.split(key)
    place = world.env.reset(own["level"], world.env.noise(own["level"], first, (episodes,)))
    model = Model(agent.init, apply)
    fixed = detach(own["params"]), own["buffers"], own["level"], place, playing, world.longest
    *_, td = envs.rollout(world.env, model, *fixed, deterministic=options.evaluation.deterministic)
    return first_returns(td)
