# pyright: reportArgumentType=false
"""Classes of others as ``dist_class``: their forms of an action, and their errors in our words."""

import pytest
import torch
import torch.distributions as td_
import torch.nn.functional as F
import torchrl.modules.distributions as peers
from tensordict import TensorDict
from torch.distributions import Categorical
from torch.func import grad, vmap
from torch.testing import assert_close

import losses
from losses import total

SIZE = (2, 5)
D = torch.float64
GAMMA, TEMPERATURE = {"gamma": 0.9}, {"temperature": 0.7}
LOSSES = [
    (losses.policy_gradient_loss, {}),
    (losses.dice_loss, GAMMA),
    (losses.awr_loss, TEMPERATURE),
    (losses.vmpo_loss, TEMPERATURE),
    (losses.ppo_clip_loss, {}),
    (losses.bc_loss, {}),
]
every_loss = pytest.mark.parametrize(
    ("loss", "hyper"), LOSSES, ids=lambda x: getattr(x, "__name__", "")
)


def draw(seed, *shape):
    return torch.randn(*SIZE, *shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def steps(**entries):
    values = ("advantage", "value_target", "state_value", "action_log_prob")
    given = {name: draw(i) for i, name in enumerate(values)}
    follows = {"reward": draw(5), "done": draw(6) > 1, "terminated": draw(6) > 2}
    return TensorDict({**given, "next": TensorDict(follows, SIZE), **entries}, SIZE)


LOGITS, INDEX = draw(10, 3), draw(11, 3).argmax(-1)
ALL = torch.ones(*SIZE, 3).bool()
CHOICES = {
    "Categorical": lambda logits: Categorical(logits=logits),
    "OneHotCategorical": lambda logits: td_.OneHotCategorical(logits=logits),
    "straight through": lambda logits: td_.OneHotCategoricalStraightThrough(logits=logits),
    "TorchRL's one-hot": lambda logits: peers.OneHotCategorical(logits=logits),
    "TorchRL's masked": lambda logits: peers.MaskedCategorical(logits=logits, mask=ALL),
    "TorchRL's masked one-hot": lambda logits: peers.MaskedOneHotCategorical(
        logits=logits, mask=ALL
    ),
}
FORMS = {
    "index": INDEX,
    "int32": INDEX.int(),
    "column": INDEX.unsqueeze(-1),
    "one-hot": F.one_hot(INDEX, 3),
    "float": F.one_hot(INDEX, 3).double(),
    "bool": F.one_hot(INDEX, 3).bool(),
}


@every_loss
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CHOICES)
def test_an_action_may_be_an_index_or_one_hot(kind, form, loss, hyper):
    def value(logits, action, dist_class):
        return total(loss(steps(logits=logits, action=action), dist_class, **hyper))

    both = torch.func.grad_and_value(value)
    found = both(LOGITS, FORMS[form], CHOICES[kind])
    assert_close(found, both(LOGITS, INDEX, Categorical), rtol=1e-6, atol=1e-6)


def test_an_index_for_a_one_hot_distribution_maps_and_compiles():
    def f(td):
        dist_class = lambda logits: td_.OneHotCategorical(logits=logits, validate_args=False)  # noqa: E731
        return total(losses.policy_gradient_loss(td, dist_class))

    td = steps(logits=LOGITS, action=INDEX)
    assert_close(vmap(f)(td), torch.stack([f(td[i]) for i in range(2)]))
    torch.compiler.reset()
    assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(td), f(td))


def test_yes_and_no_of_any_dtype():
    yes = draw(12, 3) > 0
    bernoulli = lambda logits: td_.Bernoulli(logits=logits)  # noqa: E731
    grouped = lambda logits: td_.Independent(td_.Bernoulli(logits=logits), 1)  # noqa: E731

    def f(logits, action, dist_class):
        return total(losses.policy_gradient_loss(steps(logits=logits, action=action), dist_class))

    wanted = grad(f)(LOGITS, yes.double(), bernoulli)
    for action in (yes, yes.long()):
        for dist_class in (bernoulli, grouped):
            assert_close(grad(f)(LOGITS, action, dist_class), wanted)


NORMAL = {"loc": draw(20, 3), "scale": draw(21, 3).exp(), "action": draw(22, 3)}
POLICY = {"logits": LOGITS, "action": INDEX}
CHECKED = lambda loc, scale: td_.Normal(loc, scale, validate_args=True)  # noqa: E731


@every_loss
@pytest.mark.parametrize(
    ("entries", "dist_class", "error", "text"),
    [
        ({**NORMAL, "action": draw(22, 2)}, td_.Normal, ValueError, "a Normal.* of shape .2, 5, 2"),
        (
            {**NORMAL, "scale": draw(21, 2).exp()},
            td_.Normal,
            ValueError,
            "Normal does not take loc",
        ),
        ({**NORMAL, "scale": -NORMAL["scale"]}, CHECKED, ValueError, "does not take loc, scale"),
        ({**NORMAL, "action": draw(22, 3) * torch.nan}, CHECKED, ValueError, "has no log_prob of"),
        (POLICY, lambda logits: logits.nothing, ValueError, "no attribute 'nothing'"),
        (POLICY, lambda logits: logits, ValueError, "a Tensor, which dist_class gives, has no"),
        (POLICY, lambda logits: None, ValueError, "None, which dist_class gives, has no log_prob"),
        ({**POLICY, "action": INDEX + 3}, CHOICES["OneHotCategorical"], ValueError, "0 to 2"),
        ({**POLICY, "action": INDEX + 3}, CHOICES["TorchRL's one-hot"], ValueError, "0 to 2"),
        ({**POLICY, "action": draw(0)}, CHOICES["OneHotCategorical"], TypeError, "expected integ"),
    ],
)
def test_errors_of_others_in_our_words(loss, hyper, entries, dist_class, error, text):
    with pytest.raises(error, match=f"^{loss.__name__}: .*{text}") as caught:
        loss(steps(**entries), dist_class, **hyper)
    assert "\n" not in str(caught.value)


class Answers:
    """A distribution whose answers are what it is given."""

    def __init__(self, actor_output):
        self.answer = actor_output

    def log_prob(self, action):
        return self.answer

    entropy = lambda self: self.answer  # noqa: E731


def test_answers_by_heads_add_up():
    steer, gear = -draw(30, 2).square(), -draw(31).square()
    answer = TensorDict({"steer": steer, "gear": gear}, SIZE)
    td = steps(actor_output=TensorDict({"actor_output": answer}, SIZE), action=INDEX)
    for loss, hyper in LOSSES:
        found = loss(td, Answers, **hyper)
        plain = td.copy().set(("actor_output", "actor_output"), steer.sum(-1) + gear)
        assert_close(found.to_dict(), loss(plain, Answers, **hyper).to_dict())
    for answer, text in ((INDEX, "has dtype int64"), ("none", "is a str")):
        with pytest.raises(TypeError, match=f"^bc_loss: the distribution's log_prob {text}"):
            losses.bc_loss(td, lambda actor_output, answer=answer: Answers(answer))
