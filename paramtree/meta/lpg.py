"""Learned Policy Gradient: one recurrent network, shared by all tasks, writes every agent's update.

The network reads a trajectory backward in time,

    x_t = [r_t, d_t, gamma, pi(a_t|s_t), e(y(s_t)), e(y(s_{t+1}))]  ->  pi_hat_t, y_hat_t

where y is the agent's *prediction*, a categorical vector that means what the network makes of it,
and e a small embedding shared by both. The agent descends ``-log pi(a_t|s_t) pi_hat_t + alpha
KL(y(s_t) || y_hat_t)``. The network itself descends, through K such updates, the policy gradient of
the agents that come out.

A temporally-aware network is also told at which of the n updates of a life it stands: of the
fraction that is over, k / n, and of the logarithm of n. So it can explore early and settle down
late, and pace itself by how long a life it will be.

Source: Oh et al. (2020), "Discovering reinforcement learning algorithms"; GROOVE: Jackson et al.
(2023), "Discovering general reinforcement learning algorithms with adversarial environment design";
Jackson et al. (2024), "Discovering temporally-aware reinforcement learning algorithms".
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from .. import losses, nn, rng, tree
from ..autodiff import detach
from ..model import Model
from .update_rule import UpdateRule

_WRITTEN = ("pi_hat", "y_hat", "prediction_embedding")
_LOG_SCALE = 0.1  # of the logarithm of a lifetime: below 1 for lives of up to 22,026 updates


def lpg_network(
    n_prediction: int = 30,
    n_hidden: int = 256,
    *,
    cell: Literal["lstm", "gru"] = "lstm",
    n_embedding: int = 16,
    gamma_input: bool = True,
    lifetime_input: bool = False,
    activation: Any = None,
    initialization: Literal["torch", "flax"] = "torch",
    y_hat_scale: float | Tensor = 1.0,
) -> Model:
    """The recurrent network of Learned Policy Gradient, as a model.

    The paper's: ``lpg_network()``. GROOVE's: ``lpg_network(8, cell="gru", gamma_input=False,
    activation=torch.relu)``. Temporally aware: ``lifetime_input=True``.

    Args:
        n_prediction: m, the size of the agent's prediction.
        n_hidden: width of the recurrent layer.
        cell: ``"lstm"`` or ``"gru"``, run backward in time, its state zeroed where an episode is
            done.
        n_embedding: width of the embedding of predictions, shared by y(s_t) and y(s_{t+1}).
        gamma_input: whether the discount is among the inputs.
        lifetime_input: whether two inputs more tell the network of the agent's life: ``k / n`` and
            ``0.1 log n`` with k the updates done and n those of the life. GROOVE's code gives k and
            n as they are; the paper, as here, the fraction and the logarithm.
        activation: function between the recurrent layer and the heads, or None.
        initialization: the library whose initial weights these are. ``"torch"`` draws all from
            uniform distributions; ``"flax"`` as GROOVE has them: LeCun's normal, orthogonal
            matrices between hidden states, no biases. With a few inputs and many hidden units that
            makes the network several times as sensitive to its inputs, and it learns sooner.
        y_hat_scale: factor on the initial weights of the head of ``y_hat``. At 1 all targets are
            nearly uniform, and predictions tell nothing that the network could learn to use.

    Returns:
        Model over a TensorDict ``[*B, T]`` that reads ``reward``, ``done`` (bool), ``gamma`` (with
        ``gamma_input``), ``action_prob``, ``prediction`` ``[*B, T, m]`` and ``("next",
        "prediction")``, both as logits, and writes ``pi_hat`` ``[*B, T]``, ``y_hat`` ``[*B, T,
        m]``, which adds up to 1, and ``prediction_embedding`` ``[*B, T]``, e of the first
        prediction. Params: ``embedding``, ``lstm`` or ``gru``, ``pi_hat``, ``y_hat``.
        Buffers: none, but with ``lifetime_input`` ``age`` and ``lifetime``, 0-d floats that count
        updates. ``init`` gives 0 and 1, ``birth`` writes the agent's lifetime, and every call makes
        the age one more. A call beyond the end of a life sees a fraction of 1.

        The head of ``pi_hat`` begins at zero, so that an untrained rule leaves policies as they
        are.

    Raises:
        ValueError: the cell or the initialization is another, or a size is below 1; when applied, a
            key or a buffer is missing, or a shape is wrong.
        TypeError: when applied, ``done`` isn't bool.

    Source: Oh et al. (2020), section 4.1 and appendix; GROOVE: Jackson et al. (2023), appendix;
    Jackson et al. (2024), section 4.1, for the lifetime.
    """
    cells = {"lstm": nn.lstm, "gru": nn.gru}
    if cell not in cells:
        raise ValueError(f"lpg_network: cell is {cell!r}, expected one of {', '.join(cells)}")
    n_input = 5 + gamma_input + 2 * lifetime_input
    if initialization not in ("torch", "flax"):
        raise ValueError(
            f"lpg_network: initialization is {initialization!r}, expected one of torch, flax"
        )
    flax = initialization == "flax"
    dense: Any = {"weight_init": nn.variance_scaling(), "bias_init": nn.zeros} if flax else {}
    recurrent = {**dense, "recurrent_init": _orthogonal_by_gate} if flax else {}
    parts = {
        "embedding": nn.mlp(n_prediction, n_embedding, 1, **dense),
        cell: cells[cell](n_input, n_hidden, reverse=True, **recurrent),
        "pi_hat": nn.linear(n_hidden, 1, weight_init=nn.zeros, bias_init=nn.zeros),
        "y_hat": nn.linear(n_hidden, n_prediction, **dense),
    }

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        params = {name: part.init(rng.fold_in(key, name))[0] for name, part in parts.items()}
        params["y_hat"] = tree.scale(params["y_hat"], y_hat_scale)
        life = {"age": 0.0, "lifetime": 1.0} if lifetime_input else {}
        buffers = {name: torch.tensor(value, device=key.device) for name, value in life.items()}
        return tree.new(params), tree.new(buffers)

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDictBase
    ) -> tuple[TensorDict, TensorDict]:
        tree.require_tree("lpg_network", "params", params)
        tree.require_tree("lpg_network", "td", td)
        lacking = [name for name in parts if name not in params.keys()]
        if lacking:
            raise ValueError(f"lpg_network: params lack {', '.join(lacking)}, as init makes them")
        if not td.batch_size:
            raise ValueError("lpg_network: the td has batch size [], expected [*B, T]")
        size, time = td.batch_size, td.names.index("time") if "time" in td.names else -1
        done = _per_step(td, "done")
        both = torch.stack([_prediction(td, n_prediction), _prediction(td, n_prediction, "next")])
        both = _softmax(both)  # [2, *B, T, m]
        embedded = parts["embedding"](params["embedding"], tree.new({}), both)
        now, following = embedded[..., 0]  # [*B, T]
        columns = [_per_step(td, "reward"), done.to(both.dtype)]
        if gamma_input:
            columns.append(_per_step(td, "gamma").expand(size))
        columns += [_per_step(td, "action_prob"), now, following.masked_fill(done, 0.0)]
        if lifetime_input:
            told, buffers = _one_update_older(buffers)
            columns += [value.expand(size) for value in told]
        steps = [column.to(both.dtype).movedim(time, 0) for column in columns]
        inputs = torch.stack(steps, -1), done.movedim(time, 0)  # [T, *B, n_input], [T, *B]
        hidden = parts[cell](params[cell], tree.new({}), inputs)[0]  # [T, *B, n_hidden]
        if activation is not None:
            hidden = activation(hidden)
        # one product for both heads: the hidden states are read once
        heads = ("pi_hat", "y_hat")
        weight, bias = (
            torch.cat([params[head, name] for head in heads]) for name in ("weight", "bias")
        )
        out = F.linear(hidden, weight, bias).movedim(0, time % len(size))  # [*B, T, 1 + m]
        written = {
            "pi_hat": out[..., 0],
            "y_hat": _softmax(out[..., 1:]),
            "prediction_embedding": now,
        }
        return tree.rebuild(td, {**tree.entries(tree.lock(td)), **written}), buffers

    return Model(init, apply)


def _orthogonal_by_gate(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One orthogonal matrix for each gate of a recurrent layer."""
    keys = rng.split(key, shape[0] // shape[1])
    square = shape[1], shape[1]
    return torch.cat([nn.orthogonal()(key, square, dtype) for key in keys])


def _softmax(x: Tensor) -> Tensor:
    return losses.distributions.log_softmax(x).exp()  # for a small m, faster than torch's


def _one_update_older(buffers: TensorDict) -> tuple[list[Tensor], TensorDict]:
    """What the network is told of a life, and the buffers after one more update."""
    life = tree.values(buffers, ("age", "lifetime"))
    if life is None or any(not isinstance(x, Tensor) or x.ndim for x in life):
        raise ValueError(
            "lpg_network: buffers lack age and lifetime, 0-d each, as init makes them with "
            "lifetime_input"
        )
    age, lifetime = life
    told = [(age / lifetime).clamp(max=1.0), _LOG_SCALE * lifetime.log()]
    return told, tree.replace(buffers, {"age": age + 1})


def _per_step(td: TensorDictBase, name: str) -> Tensor:
    """Entry with one number a step, of the batch's shape; a trailing axis of one is dropped."""
    value = _entry("lpg_network", td, name)
    if value.shape == (*td.batch_size, 1):
        value = value[..., 0]
    if value.shape != td.batch_size:
        raise ValueError(
            f"lpg_network: {name} has shape {tuple(value.shape)}, "
            f"expected {list(td.batch_size)} (the batch)"
        )
    if name == "done" and value.dtype != torch.bool:
        raise TypeError(f"lpg_network: done is {value.dtype}, expected bool")
    return value


def _prediction(td: TensorDictBase, n_prediction: int, *prefix: str) -> Tensor:
    value = _entry("lpg_network", td, *prefix, "prediction")
    wanted = (*td.batch_size, n_prediction)
    if value.shape != wanted:
        text = tree.show_path((*prefix, "prediction"))
        raise ValueError(
            f"lpg_network: {text} has shape {tuple(value.shape)}, "
            f"expected {wanted} (the batch, and m={n_prediction})"
        )
    return value


def _entry(fn: str, td: TensorDictBase, *path: str) -> Any:
    value: Any = td
    for name in path:
        if not isinstance(value, TensorDictBase) or name not in value.keys():
            known = ", ".join(tree.show_path(p) for p in tree.paths(td)) or "none"
            raise ValueError(f"{fn}: the td has no {tree.show_path(path)}; its keys are {known}")
        value = value.get(name)
    return value


def lpg_rule(
    network: Model,
    *,
    gamma: float | Tensor = 0.99,
    dist_class: Any = Categorical,
    prediction_coeff: float | Tensor = 0.5,
    full_stop: bool = True,
) -> UpdateRule:
    """Learned Policy Gradient as an update rule.

    Args:
        network: model as ``lpg_network`` makes it; one of another make may leave out
            ``prediction_embedding``, which the agents' updates don't need.
        gamma: discount that the network is told of, float or tensor, 0-d or of the trajectory's
            batch size; an entry ``gamma`` of the trajectory wins over it.
        dist_class: distribution of the actions, made of the actor's outputs.
        prediction_coeff: alpha, weight of the predictions' divergence from their targets.
        full_stop: whether pi(a_t|s_t), y(s_t) and y(s_{t+1}) enter the network cut off from the
            agent's parameters, for the outer gradient too, as GROOVE has them; without it the
            meta-gradient has those paths as well.

    Returns:
        The rule, for agents that give the policy's parameters and ``prediction``; params are the
        network's.

    Raises:
        ValueError: when applied, the trajectory lacks a key, or ``gamma`` has another shape.

    Source: Oh et al. (2020), equation 3; Jackson et al. (2023) for the full stop.
    """

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        policy = losses.distribution(td, dist_class)
        entry = partial(_entry, "lpg_rule", td)
        log_prob = policy.log_prob(entry("action"))
        if log_prob.ndim > td.batch_dims:  # of the components of an action: they add up
            log_prob = log_prob.flatten(td.batch_dims).sum(-1)
        inputs = {
            "action_prob": log_prob.exp(),
            "prediction": entry("prediction"),
            "next": tree.new({"prediction": entry("next", "prediction")}, td.batch_size),
        }
        inputs = tree.new(inputs, td.batch_size)
        if full_stop:
            inputs = detach(inputs)
        told = torch.as_tensor(
            gamma, dtype=inputs["action_prob"].dtype, device=inputs["action_prob"].device
        )
        if told.ndim and told.shape != td.batch_size:
            raise ValueError(
                f"lpg_rule: gamma has shape {tuple(told.shape)}, "
                f"expected () or {list(td.batch_size)} (the batch)"
            )
        data = {
            "reward": entry("next", "reward"),
            "done": entry("next", "done"),
            "gamma": td["gamma"] if "gamma" in td.keys() else told.expand(td.batch_size),
        }
        read = tree.rebuild(td, {**data, **tree.entries(inputs)})
        out, buffers = network.apply(params, buffers, read)
        written = {name: out[name] for name in _WRITTEN if name in out.keys()}
        return tree.rebuild(td, {**tree.entries(tree.lock(td)), **written}), buffers

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        return losses.lpg_agent_loss(
            td, dist_class, **{"prediction_coeff": prediction_coeff, **hyper}
        )

    return UpdateRule(network.init, apply, loss)
