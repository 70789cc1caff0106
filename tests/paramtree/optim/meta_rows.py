"""Optimizers and transforms with their real hyper-parameters, a row each, for meta-gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from paramtree import optim, rng
from paramtree.optim import chain, scale_by_learning_rate


@dataclass(frozen=True)
class Meta:
    """One optimizer at one point.

    name: what is tested, a function of optim
    hyper: its real hyper-parameters and the point at which they are
    make: from them by keyword to the optimizer; the function itself where there is none
    extra: what ``update`` is given by keyword
    matrices: whether it takes nothing but matrices
    flat: hyper-parameters whose derivative is 0: they act through a sign, a bound that isn't
        reached, or a comparison alone
    zero: other numbers for a tree of zero gradients, those with which a root is at 0
    steps: how many are taken
    """

    name: str
    hyper: Mapping[str, float]
    make: Callable[..., Any] | None = None
    extra: tuple[str, ...] = ()
    matrices: bool = False
    flat: tuple[str, ...] = ()
    zero: Mapping[str, float] = field(default_factory=dict)
    steps: int = 5

    def build(self, hyper: Any, **given: Any) -> Any:
        make = self.make or getattr(optim, self.name)
        return make(**{name: hyper[name] for name in hyper.keys()} | given)


MOMENTS = {"lr": 0.05, "b1": 0.8, "b2": 0.9, "eps": 0.01}
ROOTED = {**MOMENTS, "eps_root": 0.01}
BARE = {"eps_root": 0.0}
LION = ("b1", "b2")  # inside a sign
DECAY = {"weight_decay": 0.1}


def of(fn: str, **fixed: Any) -> Callable[..., Any]:
    """The function with its flags and whole numbers."""
    return lambda **hyper: getattr(optim, fn)(**hyper, **fixed)


def piece(fn: str, **fixed: Any) -> Callable[..., Any]:
    """A transform and a rate behind it."""

    def make(lr: Any, **hyper: Any) -> Any:
        return chain(piece=getattr(optim, fn)(**hyper, **fixed), lr=scale_by_learning_rate(lr))

    return make


ALIASES = [
    Meta("sgd", {"lr": 0.3, "momentum": 0.9, "dampening": 0.3, **DECAY}),
    Meta("sgd", {"lr": 0.3, "momentum": 0.8}, of("sgd", nesterov=True, maximize=True)),
    Meta("sgd", {"lr": 0.3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}),
    Meta("adam", ROOTED, zero=BARE),
    Meta("adam", {"lr": 0.05, "b1": 0.9, "b2": 0.999, "eps": 0.02, **DECAY}),
    Meta("adam", ROOTED, of("adam", nesterov=True), zero=BARE),
    Meta("adam", MOMENTS, of("adam", amsgrad=True, maximize=True)),
    Meta("adamw", {**ROOTED, **DECAY}, zero=BARE),
    Meta("adamw", {**MOMENTS, **DECAY}, of("adamw", amsgrad=True)),
    Meta("rmsprop", {"lr": 0.05, "decay": 0.8, "eps": 0.01, "momentum": 0.5, **DECAY}),
    Meta(
        "rmsprop",
        {"lr": 0.05, "decay": 0.8, "eps": 0.01, "momentum": 0.5},
        of("rmsprop", centered=True, nesterov=True, eps_in_root=True),
        zero={"eps": 1e-8},
    ),
    Meta("rmsprop", {"lr": 0.05, "decay": 0.8, "eps": 0.01}, of("rmsprop", centered=True)),
    Meta(
        "adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator": 0.1, "eps": 0.01, **DECAY},
        zero={"initial_accumulator": 0.0, "eps": 1e-10},
    ),
    Meta("adadelta", {"lr": 1.0, "rho": 0.8, "eps": 0.01, **DECAY}, zero={"eps": 1e-6}),
    Meta("adamax", {**MOMENTS, **DECAY}),
    Meta("adamax", {**MOMENTS, **DECAY}, of("adamax", decoupled_weight_decay=True)),
    # rectified at some of its steps
    Meta(
        "radam",
        {**MOMENTS, "b2": 0.95, "threshold": 4.2, **DECAY},
        of("radam", decoupled_weight_decay=True),
        steps=7,
        flat=("threshold",),
    ),
    Meta("radam", {**MOMENTS, **DECAY}, flat=("b2", "eps")),  # not yet rectified
    Meta("nadam", {**MOMENTS, "momentum_decay": 0.1, **DECAY}),
    Meta(
        "nadam",
        {**MOMENTS, "momentum_decay": 0.1, **DECAY},
        of("nadam", decoupled_weight_decay=True),
    ),
    Meta("lion", {"lr": 0.02, "b1": 0.9, "b2": 0.8, **DECAY}, flat=LION),
    Meta(
        "rprop",
        {"lr": 0.02, "eta_minus": 0.5, "eta_plus": 1.2, "step_min": 0.01, "step_max": 0.027},
        flat=("eta_minus", "step_min"),
    ),
    Meta(
        "rprop",
        {"lr": 0.5, "eta_minus": 0.5, "eta_plus": 1.2, "step_min": 0.2, "step_max": 5.0},
        flat=("step_max",),
    ),
    Meta("asgd", {"lr": 0.1, "lambd": 0.1, "alpha": 0.7, "t0": 2.0, **DECAY}, flat=("t0",)),
    Meta(
        "adafactor",
        {"lr": 0.3, "beta2_decay": -0.7, "d": 1.01, **DECAY},
        of("adafactor", maximize=True),
    ),
    Meta(
        "adafactor",
        {"lr": 0.1, "beta2_decay": -0.7, "d": 1.02, "eps1": 0.1, "eps2": 1.5},
        lambda eps1, eps2, **hyper: optim.adafactor(eps=(eps1, eps2), **hyper),
        flat=("d",),
        zero={"eps1": 1e-10},
    ),
    Meta("adabelief", ROOTED, zero=BARE),
    Meta("yogi", MOMENTS),
    Meta("novograd", {**ROOTED, **DECAY}, zero=BARE),
    Meta("lamb", {**ROOTED, **DECAY}, zero=BARE),
    Meta("lars", {"lr": 0.5, "trust_coefficient": 0.5, "eps": 0.01, "momentum": 0.5, **DECAY}),
    Meta("fromage", {"lr": 0.1, "min_norm": 1e-6}, flat=("min_norm",)),
    Meta(
        "noisy_sgd",
        {"lr": 0.1, "eta": 0.1, "gamma": 0.5},
        lambda **hyper: optim.noisy_sgd(**hyper, key=rng.key(3)),
    ),
    Meta("optimistic_gradient_descent", {"lr": 0.1, "alpha": 0.7, "beta": 0.4}),
    Meta("optimistic_adam", {**ROOTED, "optimism": 0.03}, zero=BARE),
    Meta(
        "sam",
        {"lr": 0.1, "rho": 0.05},
        lambda lr, **hyper: optim.sam(optim.sgd(lr), **hyper),
        extra=("grad_fn",),
    ),
    Meta(
        "sam",
        {"lr": 0.1, "rho": 0.05},
        lambda lr, **hyper: optim.sam(optim.sgd(lr), **hyper, adaptive=True, alternating=True),
    ),
    Meta(
        "schedule_free",
        {"lr": 0.1, "b1": 0.8, "weight_lr_power": 1.5},
        lambda lr, **hyper: optim.schedule_free(optim.sgd(lr), lr, **hyper),
    ),
    Meta("schedule_free_sgd", {"lr": 0.3, "b1": 0.8, **DECAY}),
    Meta("schedule_free_adamw", {**MOMENTS, **DECAY}),
    Meta(
        "muon",
        {"lr": 0.05, "momentum": 0.7, "eps": 1e-2, **DECAY},
        of("muon", dtype=torch.float64),
        matrices=True,
        flat=("eps",),
    ),
    Meta("optimistic_adam_v2", {**ROOTED, "alpha": 0.8, "beta": 0.4}, zero=BARE),
    Meta("lbfgs", {"lr": 0.1}),
    Meta("lbfgs", {"lr": 0.3}, of("lbfgs", memory_size=2, scale_init_precond=False)),
]

B2 = {"b1": 0.8, "b2": 0.9, "eps": 0.01}

PIECES = [
    Meta("scale_by_adam", {"lr": 0.1, **B2, "eps_root": 0.01}, piece("scale_by_adam"), zero=BARE),
    Meta("scale_by_amsgrad", {"lr": 0.1, **B2}, piece("scale_by_amsgrad")),
    Meta("scale_by_adamax", {"lr": 0.1, **B2}, piece("scale_by_adamax")),
    Meta("scale_by_nadam", {"lr": 0.1, **B2, "momentum_decay": 0.1}, piece("scale_by_nadam")),
    Meta(
        "scale_by_radam",
        {"lr": 0.1, **B2, "b2": 0.95, "threshold": 4.2},
        piece("scale_by_radam"),
        steps=7,
        flat=("threshold",),
    ),
    Meta("scale_by_belief", {"lr": 0.1, **B2}, piece("scale_by_belief", nesterov=True)),
    Meta(
        "scale_by_yogi",
        {"lr": 0.1, **B2, "eps_root": 0.01, "initial_accumulator_value": 0.1},
        piece("scale_by_yogi"),
    ),
    Meta("scale_by_novograd", {"lr": 0.1, **B2, **DECAY}, piece("scale_by_novograd")),
    Meta("scale_by_adadelta", {"lr": 1.0, "rho": 0.8, "eps": 0.01}, piece("scale_by_adadelta")),
    Meta(
        "scale_by_rms",
        {"lr": 0.05, "decay": 0.8, "eps": 0.01, "initial_scale": 0.1},
        piece("scale_by_rms"),
        zero={"initial_scale": 0.0},
    ),
    Meta(
        "scale_by_stddev",
        {"lr": 0.05, "decay": 0.8, "eps": 0.01, "initial_scale": 0.3},
        piece("scale_by_stddev"),
        zero={"initial_scale": 0.0},
    ),
    Meta(
        "scale_by_rss",
        {"lr": 0.1, "initial_accumulator": 0.1, "eps": 0.01, "lr_decay": 0.1},
        piece("scale_by_rss"),
        zero={"initial_accumulator": 0.0},
    ),
    Meta(
        "scale_by_factored_rms",
        {"lr": 0.1, "decay_rate": 0.7, "epsilon": 0.01},
        piece("scale_by_factored_rms", min_dim_size_to_factor=2),
        zero={"epsilon": 1e-30},
    ),
    Meta(
        "scale_by_trust_ratio",
        {"lr": 0.1, "trust_coefficient": 0.7, "eps": 0.1, "min_norm": 0.01},
        piece("scale_by_trust_ratio"),
        flat=("min_norm",),
        zero={"eps": 0.0, "min_norm": 0.0},
    ),
    Meta("scale_by_lion", {"lr": 0.02, "b1": 0.9, "b2": 0.8}, piece("scale_by_lion"), flat=LION),
    Meta("scale_by_sign", {"lr": 0.02}, piece("scale_by_sign")),
    Meta(
        "scale_by_optimistic_gradient",
        {"lr": 0.1, "alpha": 0.7, "beta": 0.4},
        piece("scale_by_optimistic_gradient"),
    ),
    Meta(
        "scale_by_rprop",
        {"lr": 0.3, "eta_minus": 0.5, "eta_plus": 1.2, "step_min": 0.1, "step_max": 0.4},
        lambda **hyper: chain(rprop=optim.scale_by_rprop(**hyper), down=optim.scale(-1.0)),
        flat=("step_min",),
    ),
    Meta(
        "scale_by_muon",
        {"lr": 0.05, "momentum": 0.7, "eps": 1e-2},
        piece("scale_by_muon", dtype=torch.float64, nesterov=False),
        matrices=True,
        flat=("eps",),
    ),
    Meta("scale_by_lbfgs", {"lr": 0.1}, piece("scale_by_lbfgs")),
    Meta(
        "scale_by_backtracking_linesearch",
        {"lr": 20.0, "slope_rtol": 0.1, "decrease_factor": 0.6},
        lambda lr, **hyper: chain(
            sgd=optim.sgd(lr), search=optim.scale_by_backtracking_linesearch(**hyper)
        ),
        extra=("value", "value_fn"),
        flat=("slope_rtol",),
    ),
    Meta(
        "scale_by_zoom_linesearch",
        {"lr": 20.0, "slope_rtol": 0.1, "curv_rtol": 0.9},
        lambda lr, **hyper: chain(
            sgd=optim.sgd(lr), search=optim.scale_by_zoom_linesearch(**hyper)
        ),
        extra=("value", "value_fn"),
        flat=("slope_rtol", "curv_rtol"),
    ),
    Meta("trace", {"lr": 0.1, "momentum": 0.7, "dampening": 0.2}, piece("trace")),
    Meta("trace", {"lr": 0.1, "momentum": 0.7}, piece("trace", nesterov=True)),
    Meta("ema", {"lr": 0.1, "decay": 0.7}, piece("ema")),
    Meta("ema", {"lr": 0.1, "decay": 0.7}, piece("ema", debias=False)),
    Meta("centralize", {"lr": 0.3}, piece("centralize")),
    Meta("apply_every", {"lr": 0.3}, piece("apply_every", k=2)),
    Meta("add_decayed_weights", {"lr": 0.3, **DECAY}, piece("add_decayed_weights")),
    Meta(
        "add_noise",
        {"lr": 0.3, "eta": 0.1, "gamma": 0.5},
        lambda lr, **hyper: chain(noise=optim.add_noise(rng.key(5), **hyper), sgd=optim.sgd(lr)),
    ),
    Meta("clip", {"lr": 0.5, "max_delta": 0.1}, piece("clip")),
    Meta("clip_by_global_norm", {"lr": 0.5, "max_norm": 0.2}, piece("clip_by_global_norm")),
    Meta("clip_by_block_rms", {"lr": 0.5, "threshold": 0.1}, piece("clip_by_block_rms")),
    Meta("adaptive_grad_clip", {"lr": 0.5, "clipping": 0.1}, piece("adaptive_grad_clip")),
    Meta(
        "adaptive_grad_clip",
        {"lr": 0.5, "clipping": 0.1, "eps": 3.0},
        piece("adaptive_grad_clip"),
    ),
    Meta(
        "reduce_on_plateau",
        {"lr": 0.5, "factor": 0.7, "rtol": 0.9, "atol": 0.1, "min_scale": 0.4},
        piece("reduce_on_plateau", patience=0),
        extra=("value",),
        flat=("rtol", "atol"),
    ),
    Meta(
        "lookahead",
        {"lr": 0.1, "slow_step_size": 0.4},
        lambda lr, **hyper: optim.lookahead(optim.adam(lr), 2, **hyper),
    ),
    Meta("apply_if_finite", {"lr": 0.1}, lambda lr: optim.apply_if_finite(optim.adam(lr), 2)),
    Meta("multi_steps", {"lr": 0.1}, lambda lr: optim.multi_steps(optim.adam(lr, eps=0.1), 2)),
]

# Transforms without a row, and why.
WITHOUT = {
    **dict.fromkeys(
        ("scale", "scale_by_learning_rate", "scale_by_schedule", "chain"), "in every row"
    ),
    **dict.fromkeys(
        ("partition", "masked", "freeze", "selective_transform", "stateless", "monitor"),
        "what is inside has its row",
    ),
    **dict.fromkeys(("identity", "set_to_zero", "zero_nans"), "nothing to derive"),
}
