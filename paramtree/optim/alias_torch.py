"""The rest of torch.optim by its names: chains with torch's numbers and defaults.

Adam with Nesterov's momentum and decoupled decay (NAdamW) is ``adamw(nesterov=True)`` without
torch's schedule of the momentum and ``nadam(decoupled_weight_decay=True)`` with it; AdamaxW is
``adamax(decoupled_weight_decay=True)``.
"""

from .adam_variants import scale_by_adamax, scale_by_nadam, scale_by_radam
from .alias import descent
from .arguments import Hyper, Schedule, given, require_flag, require_hyper
from .base import Transform
from .combine import chain
from .rms import scale_by_adadelta, scale_by_rms, scale_by_rss, scale_by_stddev
from .step_size import averaged_descent, scale_by_rprop
from .transform import add_decayed_weights, scale, trace


def rmsprop(
    lr: Hyper | Schedule = 1e-2,
    decay: Hyper | Schedule = 0.99,
    eps: Hyper | Schedule = 1e-8,
    centered: bool = False,
    momentum: Hyper | Schedule = 0.0,
    nesterov: bool = False,
    eps_in_root: bool = False,
    weight_decay: Hyper | Schedule = 0.0,
    maximize: bool = False,
) -> Transform:
    """RMSprop: ``p - lr t``, with ``t`` the direction of ``scale_by_rms`` or its ``trace``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        decay: as in ``scale_by_rms``; torch's ``alpha``.
        eps: as in ``scale_by_rms``.
        centered: ``scale_by_stddev``.
        momentum: float or 0-d tensor, not negative, or schedule.
        nesterov: look ahead by one step; with momentum only.
        eps_in_root: as in ``scale_by_rms``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), rms=scale_by_rms(...), momentum=trace(...),
        lr=scale_by_learning_rate(lr))``, without those whose numbers are 0; with ``centered``
        ``stddev=scale_by_stddev(...)`` stands for ``rms``.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or ``nesterov`` comes without
            momentum.
        TypeError: an argument is of another kind.

    Reference: Tieleman & Hinton (2012), lecture 6.5; Graves (2013), equations 38 to 41.
    """
    fn = "rmsprop"
    require_flag(fn, "centered", centered)
    require_flag(fn, "nesterov", nesterov)
    require_hyper(fn, "momentum", momentum, low=0)
    options = {"decay": decay, "eps": eps, "eps_in_root": eps_in_root}
    parts = {"stddev": scale_by_stddev(**options)} if centered else {"rms": scale_by_rms(**options)}
    if given(momentum):
        parts["momentum"] = trace(momentum, nesterov=nesterov)
    elif nesterov:
        raise ValueError("rmsprop: momentum is 0, expected more with nesterov=True")
    return descent(fn, parts, lr, weight_decay, maximize=maximize)


def adagrad(
    lr: Hyper | Schedule = 1e-2,
    lr_decay: Hyper | Schedule = 0.0,
    initial_accumulator: Hyper = 0.0,
    eps: Hyper | Schedule = 1e-10,
    weight_decay: Hyper | Schedule = 0.0,
    maximize: bool = False,
) -> Transform:
    """Adagrad: ``p - lr u``, with ``u`` from ``scale_by_rss``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        lr_decay: as in ``scale_by_rss``.
        initial_accumulator: as in ``scale_by_rss``; torch's ``initial_accumulator_value``.
        eps: as in ``scale_by_rss``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), rss=scale_by_rss(...),
        lr=scale_by_learning_rate(lr))``, the first only where there is decay.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Duchi, Hazan & Singer (2011), figure 1, the diagonal case.
    """
    parts = {"rss": scale_by_rss(initial_accumulator, eps, lr_decay)}
    return descent("adagrad", parts, lr, weight_decay, maximize=maximize)


def adadelta(
    lr: Hyper | Schedule = 1.0,
    rho: Hyper | Schedule = 0.9,
    eps: Hyper | Schedule = 1e-6,
    weight_decay: Hyper | Schedule = 0.0,
    maximize: bool = False,
) -> Transform:
    """Adadelta: ``p - lr u``, with ``u`` from ``scale_by_adadelta``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        rho: as in ``scale_by_adadelta``.
        eps: as in ``scale_by_adadelta``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), adadelta=scale_by_adadelta(...),
        lr=scale_by_learning_rate(lr))``, the first only where there is decay.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Zeiler (2012), algorithm 1.
    """
    parts = {"adadelta": scale_by_adadelta(rho, eps)}
    return descent("adadelta", parts, lr, weight_decay, maximize=maximize)


def adamax(
    lr: Hyper | Schedule = 2e-3,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    weight_decay: Hyper | Schedule = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Transform:
    """Adamax: ``p - lr u``, with ``u`` from ``scale_by_adamax``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_adamax``.
        b2: as in ``scale_by_adamax``.
        eps: as in ``scale_by_adamax``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        decoupled_weight_decay: whether the decay goes past the moments, as in ``adamw``.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), adamax=scale_by_adamax(...),
        lr=scale_by_learning_rate(lr))``, the first only where there is decay, and the second where
        it's decoupled.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), algorithm 2.
    """
    require_flag("adamax", "decoupled_weight_decay", decoupled_weight_decay)
    parts, decoupled = {"adamax": scale_by_adamax(b1, b2, eps)}, decoupled_weight_decay
    return descent("adamax", parts, lr, weight_decay, decoupled=decoupled, maximize=maximize)


def radam(
    lr: Hyper | Schedule = 1e-3,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    threshold: Hyper | Schedule = 5.0,
    weight_decay: Hyper | Schedule = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Transform:
    """RAdam: ``p - lr u``, with ``u`` from ``scale_by_radam``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_radam``.
        b2: as in ``scale_by_radam``.
        eps: as in ``scale_by_radam``.
        threshold: as in ``scale_by_radam``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        decoupled_weight_decay: whether the decay goes past the moments, as in ``adamw``.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), radam=scale_by_radam(...),
        lr=scale_by_learning_rate(lr))``, the first only where there is decay, and the second where
        it's decoupled.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Liu et al. (2020), algorithm 2.
    """
    require_flag("radam", "decoupled_weight_decay", decoupled_weight_decay)
    parts, decoupled = {"radam": scale_by_radam(b1, b2, eps, threshold)}, decoupled_weight_decay
    return descent("radam", parts, lr, weight_decay, decoupled=decoupled, maximize=maximize)


def nadam(
    lr: Hyper | Schedule = 2e-3,
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    momentum_decay: Hyper | Schedule = 4e-3,
    weight_decay: Hyper | Schedule = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Transform:
    """NAdam: ``p - lr u``, with ``u`` from ``scale_by_nadam``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        b1: as in ``scale_by_nadam``.
        b2: as in ``scale_by_nadam``.
        eps: as in ``scale_by_nadam``.
        momentum_decay: as in ``scale_by_nadam``.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        decoupled_weight_decay: whether the decay goes past the moments, as in ``adamw``.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), nadam=scale_by_nadam(...),
        lr=scale_by_learning_rate(lr))``, the first only where there is decay, and the second where
        it's decoupled.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Dozat (2016), algorithm 8, with 0.96^(t / 250) in the momentum.
    """
    require_flag("nadam", "decoupled_weight_decay", decoupled_weight_decay)
    parts, decoupled = (
        {"nadam": scale_by_nadam(b1, b2, eps, momentum_decay)},
        decoupled_weight_decay,
    )
    return descent("nadam", parts, lr, weight_decay, decoupled=decoupled, maximize=maximize)


def rprop(
    lr: Hyper | Schedule = 1e-2,
    eta_minus: Hyper | Schedule = 0.5,
    eta_plus: Hyper | Schedule = 1.2,
    step_min: Hyper | Schedule = 1e-6,
    step_max: Hyper | Schedule = 50.0,
    maximize: bool = False,
) -> Transform:
    """Rprop, for gradients of the whole data: ``p - u``, with ``u`` from ``scale_by_rprop``.

    Args:
        lr: as in ``scale_by_rprop``: the first step size, and no rate.
        eta_minus: as in ``scale_by_rprop``.
        eta_plus: as in ``scale_by_rprop``.
        step_min: as in ``scale_by_rprop``.
        step_max: as in ``scale_by_rprop``.
        maximize: ascend.

    Returns:
        ``chain(rprop=scale_by_rprop(...), descent=scale(-1.0))``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Riedmiller & Braun (1993), section 2, without weight backtracking, as torch has it.
    """
    require_flag("rprop", "maximize", maximize)
    steps = scale_by_rprop(lr, eta_minus, eta_plus, step_min, step_max)
    ascent = {"ascent": scale(-1.0)} if maximize else {}
    return chain(**ascent, rprop=steps, descent=scale(-1.0))


def asgd(
    lr: Hyper | Schedule = 1e-2,
    lambd: Hyper | Schedule = 1e-4,
    alpha: Hyper | Schedule = 0.75,
    t0: Hyper | Schedule = 1e6,
    weight_decay: Hyper | Schedule = 0.0,
    maximize: bool = False,
) -> Transform:
    """Averaged stochastic gradient descent: a falling rate, and the mean of the params.

        eta = lr / (1 + lambd lr (t - 1))^alpha,   p_t = (1 - lambd eta) p_(t-1) - eta g
        average = average + (p_t - average) / max(1, t - 1 - t0)

    ``state["asgd", "average"]`` is that of the params as they are after the updates are added. It
    is the params themselves until step ``t0 + 2``; torch's default of ``t0`` is a million.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        lambd: decay, float or 0-d tensor, not negative, or schedule.
        alpha: power with which the rate falls, float or 0-d tensor, not negative, or schedule.
        t0: steps before the average begins, float or 0-d tensor, not negative, or schedule.
        weight_decay: float or 0-d tensor, not negative, or schedule, times the params added to the
            gradient.
        maximize: ascend.

    Returns:
        ``chain(decay=add_decayed_weights(...), asgd=...)``, the first only where there is decay.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Polyak & Juditsky (1992); Bottou (2012), section 5, for the rate.
    """
    require_hyper("asgd", "weight_decay", weight_decay, low=0)
    require_flag("asgd", "maximize", maximize)
    ascent = {"ascent": scale(-1.0)} if maximize else {}
    decay = {"decay": add_decayed_weights(weight_decay)} if given(weight_decay) else {}
    return chain(**ascent, **decay, asgd=averaged_descent(lr, lambd, alpha, t0))
