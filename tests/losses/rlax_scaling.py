"""rlax's elementwise functions, pairs and statistics in our words."""

import torch
from tensordict import TensorDict

import losses
from losses import scaling
from tests.losses.rlax_rows import Row

# ---- elementwise, pairs


def pair(tx):
    return Row(lambda a: {"apply": tx.apply(a.x), "apply_inv": tx.inverse(a.y)})


def support(a):
    share = torch.arange(9, dtype=a.min_value.dtype) / 8
    return a.min_value + (a.max_value - a.min_value) * share


ATOMS = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)


def likelihood(a):
    """Of a binary outcome: cross-entropy of two classes."""
    return (-log_loss(a)).exp()


def log_loss(a):
    target, p = (torch.stack([x, 1 - x], -1) for x in (a.targets, a.predictions))
    return losses.categorical_cross_entropy(target, p.log())


def clip_gradient(a):
    y = losses.clip_gradient(a.x, a.gradient_min, a.gradient_max)
    return torch.linspace(-2.0, 2.0, 7, dtype=y.dtype) * y


# ---- statistics


def popart_state(a):
    """Ours holds the variance where rlax's holds the second moment."""
    variance = a.second_moment - a["shift"].square()
    return TensorDict({"shift": a["shift"], "scale": a["scale"], "variance": variance})


def popart_fields(state):
    moment = state["variance"] + state["shift"].square()
    return {"shift": state["shift"], "scale": state["scale"], "second_moment": moment}


def art(a, hyper=None):
    hyper = hyper or (a.step_size, a.scale_lb, a.scale_ub)
    return losses.popart_update(popart_state(a), a.targets, a.indices, *hyper)


def pop(a, new):
    weight, bias = losses.popart_rescale(a.w.mT, a.b, popart_state(a), new)
    return {"w": weight.mT, "b": bias}


def pop_to(a):
    entries = {"shift": a.new_shift, "scale": a.new_scale, "variance": a.second_moment}
    return pop(a, TensorDict(entries))


def popart(a):
    new = art(a, (0.1, 0.5, 3.0))
    return pop(a, new) | popart_fields(new)


def unnormalize_linear(a):
    """Head i of the outputs, normalized and not."""
    head, every = a.indices.unsqueeze(-1), losses.popart_unnormalize(popart_state(a), a.inputs)
    normalized, unnormalized = (x.gather(-1, head).squeeze(-1) for x in (a.inputs, every))
    return {"normalized": normalized, "unnormalized": unnormalized}


def ema(a):
    state, out = losses.ema_moments_init(dtype=a.x.dtype), {}
    for i, x in enumerate(a.x):
        state = losses.ema_moments_update(state, x, a.decay)
        out |= {f"mean_{i}": state["mean"], f"variance_{i}": state["variance"]}
    mean, variance, weight = state["mean"], state["variance"], state["weight"]
    out |= {"mu": weight * mean, "nu": weight * (variance + mean.square())}
    return out | {"decay_product": 1 - weight}


# ---- the table

EPSILON = "rlax adds 1e-5 to the distance of two atoms, so that its mean is off"
TWO_HOT = {"out/apply": (3e-5, EPSILON), "grad/x": (1e-3, EPSILON)}
ZERO = {"grad/x": (3.0, "rlax's slope at 0 is that of sign(x)^2, 0 there and 1 around")}

SCALING = {
    "l2_loss": Row(
        lambda a: losses.half_squared_error(a.predictions, a.get("targets", 0 * a.predictions))
    ),
    "log_loss": Row(log_loss),
    "likelihood": Row(likelihood),
    "expectile_loss": Row(lambda a: losses.expectile_error(a.predictions, a.targets, a.expectile)),
    "huber_loss": Row(lambda a: losses.huber(a.x, a.delta)),
    "clip_gradient": Row(clip_gradient),
    "identity": Row(lambda a: scaling.identity_pair.apply(a.x)),
    "sigmoid": Row(lambda a: torch.sigmoid(a.x)),
    "logit": Row(lambda a: torch.logit(a.x)),
    "signed_logp1": Row(lambda a: losses.symlog(a.x)),
    "signed_expm1": Row(lambda a: losses.symexp(a.x)),
    "signed_hyperbolic": Row(lambda a: losses.signed_hyperbolic(a.x, a.eps)),
    "signed_parabolic": Row(lambda a: losses.signed_parabolic(a.x, a.eps)),
    "signed_logp1/zero": Row(lambda a: losses.symlog(a.x), differs=ZERO),
    "signed_expm1/zero": Row(lambda a: losses.symexp(a.x), differs=ZERO),
    "signed_hyperbolic/zero": Row(lambda a: losses.signed_hyperbolic(a.x), differs=ZERO),
    "signed_parabolic/zero": Row(lambda a: losses.signed_parabolic(a.x), differs=ZERO),
    "transform_to_2hot": Row(
        lambda a: losses.two_hot(a.scalar, support(a)),
        differs={
            "out/": (2e-5, EPSILON),
            "grad/scalar": (1e-3, EPSILON),
            "grad/min_value": (1e-3, EPSILON),
            "grad/max_value": (1e-3, EPSILON),
        },
    ),
    "transform_from_2hot": Row(lambda a: losses.two_hot_mean(a.probs, support(a))),
    "IDENTITY_PAIR": pair(scaling.identity_pair),
    "SIGNED_LOGP1_PAIR": pair(scaling.signed_logp1_pair),
    "SIGNED_HYPERBOLIC_PAIR": pair(scaling.signed_hyperbolic_pair),
    "HYPERBOLIC_SIN_PAIR": pair(scaling.hyperbolic_sin_pair),
    "DISCOUNT_TRANSFORM_PAIR": pair(scaling.discount_pair),
    "compose_tx": pair(losses.compose_tx(scaling.hyperbolic_sin_pair, scaling.signed_logp1_pair)),
    "twohot_pair": Row(pair(losses.two_hot_pair(ATOMS)).call, differs=TWO_HOT),
    "muzero_pair": Row(pair(losses.muzero_pair(ATOMS)).call, differs=TWO_HOT),
    "unbiased_transform_pair": pair(
        losses.unbiased_transform_pair(ATOMS, scaling.signed_logp1_pair)
    ),
    "normalize": Row(lambda a: losses.popart_normalize(popart_state(a), a.unnormalized, a.indices)),
    "unnormalize": Row(
        lambda a: losses.popart_unnormalize(popart_state(a), a.normalized, a.indices)
    ),
    "unnormalize_linear": Row(unnormalize_linear),
    "art": Row(lambda a: popart_fields(art(a))),
    "pop": Row(pop_to),
    "popart": Row(popart),
    "create_ema": Row(ema),
}
