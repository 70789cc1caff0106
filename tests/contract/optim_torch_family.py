"""Rows of torch.optim's optimizers beside SGD and Adam; one number feeds all hyper-parameters."""

from paramtree import optim
from tests.contract.case import transform_case

ROWS = [
    transform_case("scale_by_rms", lambda h: optim.scale_by_rms(h, eps=h, initial_scale=h)),
    transform_case("scale_by_stddev", lambda h: optim.scale_by_stddev(h, eps=h, eps_in_root=True)),
    transform_case("scale_by_rss", lambda h: optim.scale_by_rss(h, eps=h, lr_decay=h)),
    transform_case("scale_by_adadelta", lambda h: optim.scale_by_adadelta(h, eps=h)),
    transform_case("scale_by_adamax", lambda h: optim.scale_by_adamax(h, b2=h, eps=h)),
    transform_case("scale_by_radam", lambda h: optim.scale_by_radam(h, b2=1 - h / 100, eps=h)),
    transform_case(
        "scale_by_nadam", lambda h: optim.scale_by_nadam(h, b2=h, eps=h, momentum_decay=h)
    ),
    transform_case(
        "scale_by_rprop", lambda h: optim.scale_by_rprop(h, eta_minus=h, eta_plus=1 + h)
    ),
    transform_case(
        "rmsprop",
        lambda h: optim.rmsprop(
            h, decay=h, eps=h, momentum=h, nesterov=True, weight_decay=h, maximize=True
        ),
    ),
    transform_case(
        "adagrad",
        lambda h: optim.adagrad(h, lr_decay=h, initial_accumulator=h, eps=h, weight_decay=h),
    ),
    transform_case("adadelta", lambda h: optim.adadelta(h, rho=h, eps=h, weight_decay=h)),
    transform_case("adamax", lambda h: optim.adamax(h, eps=h, weight_decay=h)),
    transform_case(
        "radam",
        lambda h: optim.radam(h, b2=1 - h / 100, weight_decay=h, decoupled_weight_decay=True),
    ),
    transform_case(
        "nadam", lambda h: optim.nadam(h, eps=h, weight_decay=h, decoupled_weight_decay=True)
    ),
    transform_case("rprop", lambda h: optim.rprop(h, step_max=h * 1.1, maximize=True)),
    transform_case("asgd", lambda h: optim.asgd(h, lambd=h, alpha=h, t0=h, weight_decay=h)),
]
