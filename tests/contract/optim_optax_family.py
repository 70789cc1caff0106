"""Rows of optax's other optimizers; one number feeds all hyper-parameters that it may."""

from collections.abc import Callable
from typing import Any

import torch

from paramtree import optim, rng, tree
from tests.contract.case import Case, transform_case

SIGNS: dict[str, Any] = {"smooth": 1}  # a sign has no second derivative to compare


def matrices(
    name: str, make: Callable[[torch.Tensor], optim.Transform], covers: tuple[str, ...] = ()
) -> Case:
    """The same case on the tree's one matrix."""
    case = transform_case(name, make, covers=covers)
    args = case.args

    def cut() -> tuple[Any, ...]:
        params, grads, hyper = args()
        return tree.select(params, "policy.w"), tree.select(grads, "policy.w"), hyper

    case.args = cut
    return case


def noise(h: torch.Tensor) -> optim.Transform:
    more = optim.noisy_sgd(h, rng.key(3), eta=h, gamma=h)
    return optim.chain(noise=optim.add_noise(rng.key(4), h, h), sgd=more)


def muon(h: torch.Tensor) -> optim.Transform:
    series = (2 + h, -1.5, h)
    return optim.muon(h, h, h, ns_coefficients=series, eps=h / 9, ns_steps=2, dtype=None)


ROWS = [
    transform_case("clip", optim.clip),
    transform_case("clip_by_block_rms", optim.clip_by_block_rms),
    transform_case("adaptive_grad_clip", lambda h: optim.adaptive_grad_clip(h, eps=h)),
    transform_case(
        "centralize",
        lambda h: optim.chain(
            nans=optim.zero_nans(), mean=optim.centralize(), scale=optim.scale(h)
        ),
        covers=("optim.zero_nans",),
    ),
    transform_case(
        "scale_by_sign",
        lambda h: optim.chain(sign=optim.scale_by_sign(), scale=optim.scale(h)),
        **SIGNS,
    ),
    transform_case(
        "lion",
        lambda h: optim.lion(h, h, h / 2, weight_decay=h),
        covers=("optim.scale_by_lion",),
        **SIGNS,
    ),
    transform_case(
        "adabelief",
        lambda h: optim.adabelief(h, h, h, h, h, nesterov=True),
        covers=("optim.scale_by_belief",),
    ),
    transform_case(
        "yogi", lambda h: optim.yogi(h, h, h / 2, eps=h), covers=("optim.scale_by_yogi",)
    ),
    transform_case(
        "novograd",
        lambda h: optim.novograd(h, h, h / 2, h, h, h),
        covers=("optim.scale_by_novograd",),
    ),
    transform_case("lamb", lambda h: optim.lamb(h, eps=h, weight_decay=h)),
    transform_case(
        "lars",
        lambda h: optim.lars(h, h, h, h, h, nesterov=True),
        covers=("optim.scale_by_trust_ratio",),
    ),
    transform_case("fromage", lambda h: optim.fromage(h, h / 9)),
    matrices("add_noise", noise, covers=("optim.noisy_sgd",)),
    transform_case(
        "optimistic_gradient_descent",
        lambda h: optim.optimistic_gradient_descent(h, h, h / 2),
        covers=("optim.scale_by_optimistic_gradient",),
    ),
    transform_case("optimistic_adam", lambda h: optim.optimistic_adam(h, eps=h)),
    transform_case("optimistic_adam_v2", lambda h: optim.optimistic_adam_v2(h, beta=h, eps=h)),
    transform_case(
        "scale_by_factored_rms",
        lambda h: optim.scale_by_factored_rms(
            decay_rate=h, step_offset=-2, min_dim_size_to_factor=2, epsilon=h
        ),
    ),
    transform_case(
        "adafactor",
        lambda h: optim.adafactor(h, beta2_decay=-h, eps=(h / 99, h / 9), d=1 + h, weight_decay=h),
    ),
    matrices("muon", muon, covers=("optim.scale_by_muon",)),
]
