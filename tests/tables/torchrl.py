"""Questions put to TorchRL and to paramtree: the derivative with respect to a hyper-parameter.

Each is a scalar function of one float64 number, on the same tensors for both. TorchRL gets the
number as a tensor that requires grad, in the place where its documentation lets a tensor stand.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule as Module
from torch import Tensor
from torchrl import objectives as peers
from torchrl.modules import ProbabilisticActor, QValueActor, ValueOperator
from torchrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator
from torchrl.objectives.value import functional as theirs

import losses
from tests.contract.case import D, draw, ends

T = 6
GAMMA, LMBDA = 0.9, 0.8


class Question(NamedTuple):
    """A scalar function of a hyper-parameter, TorchRL's and ours."""

    name: str
    of: str
    at: float
    theirs: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]


REWARD, VALUE, NEXT = (draw(f"table {name}", T) for name in ("reward", "value", "next"))
DONE, TERMINATED = ends(T).values()
WEIGHT = torch.linspace(1.0, 2.0, T, dtype=D)
LOG_RATIO = draw("table log ratio", T)


def column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


COLUMNS = {
    "next_state_value": column(NEXT),
    "reward": column(REWARD),
    "done": column(DONE),
    "terminated": column(TERMINATED),
}
VALUES = {"state_value": column(VALUE), **COLUMNS}


def weighted(x: Any) -> Tensor:
    x = x[0] if isinstance(x, tuple) else x
    return (x.reshape(T) * WEIGHT).sum()


def advantage(gamma: Any, lmbda: Any) -> Tensor:
    return weighted(losses.gae(REWARD, VALUE, NEXT, DONE, TERMINATED, gamma, lmbda))


def returns(gamma: Any, lmbda: Any) -> Tensor:
    return weighted(losses.lambda_returns(REWARD, NEXT, DONE, TERMINATED, gamma, lmbda))


def expanded(x: Tensor) -> Tensor:
    return x.expand(T, 1)


def batch() -> TensorDict:
    """A trajectory whose observations are the values of its states."""
    after = {"observation": NEXT, "reward": REWARD, "done": DONE, "terminated": TERMINATED}
    following = TensorDict({name: column(x) for name, x in after.items()}, [T])
    return TensorDict({"observation": column(VALUE), "next": following}, [T])


def estimated(make: Callable[..., Any], **hyper: Any) -> Tensor:
    critic = ValueOperator(torch.nn.Identity(), in_keys=["observation"])
    hyper["differentiable"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weighted(make(value_network=critic, **hyper)(batch())["advantage"])


def of_gamma(name: str, make: Callable[..., Any], ours: Callable[[Tensor], Tensor]) -> Question:
    """A module asked for the derivative with respect to the discount that it is made with."""

    def ask(x: Tensor) -> Tensor:
        return estimated(make, gamma=x)

    return Question(name, "gamma", GAMMA, ask, ours)


def of_lmbda(name: str, make: Callable[..., Any], ours: Callable[[Tensor], Tensor]) -> Question:
    """The same for the decay of its trace."""

    def ask(x: Tensor) -> Tensor:
        return estimated(make, gamma=GAMMA, lmbda=x)

    return Question(name, "lmbda", LMBDA, ask, ours)


def pair(name: str, ours: Callable[..., Tensor], **inputs: Tensor) -> Iterator[Question]:
    """A function of gamma and lmbda asked for both."""
    fn = getattr(theirs, name)
    yield Question(
        name, "gamma", GAMMA, lambda x: weighted(fn(x, LMBDA, **inputs)), lambda x: ours(x, LMBDA)
    )
    yield Question(
        name, "lmbda", LMBDA, lambda x: weighted(fn(GAMMA, x, **inputs)), lambda x: ours(GAMMA, x)
    )


def single(name: str, lmbda: float, **inputs: Tensor) -> Question:
    """A function of gamma alone."""

    def ask(x: Tensor) -> Tensor:
        return weighted(getattr(theirs, name)(x, **inputs))

    return Question(name, "gamma", GAMMA, ask, lambda x: returns(x, lmbda))


FUNCTIONS = [
    *pair("generalized_advantage_estimate", advantage, **VALUES),
    *pair("vec_generalized_advantage_estimate", advantage, **VALUES),
    Question(
        "vec_generalized_advantage_estimate",
        "gamma, expanded to [T, 1]",
        GAMMA,
        lambda x: weighted(theirs.vec_generalized_advantage_estimate(expanded(x), LMBDA, **VALUES)),
        lambda x: advantage(x, LMBDA),
    ),
    *pair("td_lambda_return_estimate", returns, **COLUMNS),
    *pair("vec_td_lambda_return_estimate", returns, **COLUMNS),
    single("td1_return_estimate", 1.0, **COLUMNS),
    single("vec_td1_return_estimate", 1.0, **COLUMNS),
    Question(
        "td0_return_estimate",
        "gamma",
        GAMMA,
        lambda x: weighted(
            theirs.td0_return_estimate(
                x,
                next_state_value=column(NEXT),
                reward=column(REWARD),
                terminated=column(TERMINATED),
            )
        ),
        lambda x: returns(x, 0.0),
    ),
    Question(
        "reward2go",
        "gamma",
        GAMMA,
        lambda x: weighted(theirs.reward2go(column(REWARD), column(DONE), x)),
        lambda x: weighted(losses.discounted_returns(REWARD, DONE, DONE, x)),
    ),
]

MODULES = [
    of_gamma("GAE", partial(GAE, lmbda=LMBDA), lambda x: advantage(x, LMBDA)),
    of_lmbda("GAE", GAE, lambda x: advantage(GAMMA, x)),
    of_gamma(
        "GAE(vectorized=True)",
        partial(GAE, lmbda=LMBDA, vectorized=True),
        lambda x: advantage(x, LMBDA),
    ),
    of_lmbda("GAE(vectorized=True)", partial(GAE, vectorized=True), lambda x: advantage(GAMMA, x)),
    of_gamma("TD0Estimator", TD0Estimator, lambda x: returns(x, 0.0)),
    of_gamma("TD1Estimator", TD1Estimator, lambda x: returns(x, 1.0)),
    of_gamma(
        "TDLambdaEstimator", partial(TDLambdaEstimator, lmbda=LMBDA), lambda x: returns(x, LMBDA)
    ),
    of_lmbda("TDLambdaEstimator", TDLambdaEstimator, lambda x: returns(GAMMA, x)),
]

# --------------------------------------------------------------------- losses, of given outputs

LOGITS, ACTION = draw("table logits", T, 3), torch.arange(T) % 3
ACTION_LOG_PROB = LOGITS.log_softmax(-1).gather(-1, column(ACTION)).squeeze(-1) + LOG_RATIO
OLD_LOGITS = draw("table old logits", T, 3)
ADVANTAGE, TARGET = draw("table advantage", T), draw("table target", T)
Q_VALUE, NEXT_Q = draw("table q", T, 3), draw("table next q", T, 3)


def passed(name: str) -> Module:
    """A network that gives what stands in the td."""
    return Module(torch.nn.Identity(), [f"given {name}"], [name])


def given(**finished: Tensor) -> TensorDict:
    """A td from which such networks read, for TorchRL."""
    after = TensorDict(
        {
            "given state_value": column(NEXT),
            "given action_value": NEXT_Q,
            "reward": column(REWARD),
            "done": column(DONE),
            "terminated": column(TERMINATED),
        },
        [T],
    )
    entries = {
        "given logits": LOGITS,
        "given state_value": column(VALUE),
        "given action_value": Q_VALUE,
        "action": ACTION,
        "action_log_prob": ACTION_LOG_PROB,
        "next": after,
    }
    return TensorDict({**entries, **{name: column(x) for name, x in finished.items()}}, [T])


def outputs(**finished: Tensor) -> TensorDict:
    """The same outputs, under the keys that our losses read."""
    after = {
        "state_value": NEXT,
        "action_value": NEXT_Q,
        "reward": REWARD,
        "done": DONE,
        "terminated": TERMINATED,
    }
    entries = {
        "logits": LOGITS,
        "state_value": VALUE,
        "action_value": Q_VALUE,
        "action": ACTION,
        "action_log_prob": ACTION_LOG_PROB,
        "next": TensorDict(after, [T]),
    }
    return TensorDict({**entries, **finished}, [T])


FINISHED = {"advantage": ADVANTAGE, "value_target": TARGET}
SQUARED = {"loss_critic_type": "l2"}


def policy_module(kind: str, **options: Any) -> Any:
    actor = ProbabilisticActor(
        passed("logits"),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    return getattr(peers, kind)(actor, passed("state_value"), **SQUARED, **options)


def summed(out: Any) -> Tensor:
    return torch.stack([x.sum() for name, x in out.items() if name.startswith("loss")]).sum()


def quiet(ask: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ask(x)

    return run


def option(kind: str, name: str, at: float, ours: Callable[..., Any], ours_name: str) -> Question:
    """A loss on finished targets asked for one of the numbers that it is made with."""
    fixed = {"critic_coeff": 1.0, "entropy_coeff": 0.01}

    def ask(x: Tensor) -> Tensor:
        options = {**fixed, name: x}
        return summed(policy_module(kind, **options)(given(**FINISHED)))

    def mine(x: Tensor) -> Tensor:
        return losses.total(ours(outputs(**FINISHED), **{**fixed, ours_name: x}))

    return Question(kind, name, at, quiet(ask), mine)


def discount(kind: str, name: str, ours: Callable[..., Any]) -> Question:
    """A loss that makes its targets asked for the discount or the decay."""
    at = {"gamma": GAMMA, "lmbda": LMBDA}
    fixed = {"critic_coeff": 1.0, "entropy_coeff": 0.01}

    def ask(x: Tensor) -> Tensor:
        module = policy_module(kind, **fixed)
        module.make_value_estimator(peers.ValueEstimators.GAE, **{**at, name: x})
        return summed(module(given()))

    def mine(x: Tensor) -> Tensor:
        return losses.total(ours(outputs(), **fixed, **{**at, name: x}))

    return Question(kind, name, at[name], quiet(ask), mine)


def dqn(x: Tensor) -> Tensor:
    network = QValueActor(
        torch.nn.Identity(), in_keys=["given action_value"], action_space="categorical"
    )
    module = peers.DQNLoss(network, action_space="categorical", delay_value=False)
    module.make_value_estimator(peers.ValueEstimators.TD0, gamma=x)
    return summed(module(given()))


def kl_penalty(x: Tensor) -> Tensor:
    """Its coefficient changes between forward and backward: the target is 0, so it doubles."""
    module = policy_module("KLPENPPOLoss", critic_coeff=1.0, entropy_coeff=0.01, dtarg=0.0)
    td = given(**FINISHED)
    td["logits"], td["given logits"] = OLD_LOGITS, x * LOGITS
    return summed(module(td))


def our_kl_penalty(x: Tensor) -> Tensor:
    td = outputs(**FINISHED)
    td["logits"], td["behavior"] = x * LOGITS, TensorDict({"logits": OLD_LOGITS}, [T])
    fixed = {"critic_coeff": 1.0, "entropy_coeff": 0.01, "kl_coeff": 1.0}
    return losses.total(losses.ppo_kl_penalty_loss(td, **fixed))


LOSSES = [
    option("ClipPPOLoss", "clip_epsilon", 0.2, losses.ppo_clip_loss, "eps"),
    option("PPOLoss", "entropy_coeff", 0.1, losses.ppo_loss, "entropy_coeff"),
    option("PPOLoss", "critic_coeff", 0.7, losses.ppo_loss, "critic_coeff"),
    Question("KLPENPPOLoss", "a factor of the logits", 0.8, quiet(kl_penalty), our_kl_penalty),
    discount("PPOLoss", "gamma", losses.ppo_loss),
    discount("PPOLoss", "lmbda", losses.ppo_loss),
    discount("A2CLoss", "gamma", losses.a2c_loss),
    discount("A2CLoss", "lmbda", losses.a2c_loss),
    Question(
        "DQNLoss",
        "gamma",
        GAMMA,
        quiet(dqn),
        lambda x: losses.total(losses.q_learning_loss(outputs(), gamma=x)),
    ),
]
QUESTIONS = [*FUNCTIONS, *MODULES, *LOSSES]
