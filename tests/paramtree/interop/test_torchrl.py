"""The loss modules by themselves: the request that they answer, hyper-parameters, and use."""

import pytest
import torch
import torchopt
import torchrl.objectives as peers
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close
from torchrl.modules import Actor

import paramtree.interop.torchrl as ours
from tests.paramtree.interop.torchrl_agents import (
    DIMS,
    KINDS,
    MARKS,
    OBS,
    POLICY,
    critic,
    discrete_actor,
    made,
    q_critic,
    trajectory,
)

pytestmark = MARKS


# -------------------------------------------------------------------------------------- the request


def test_meta_gradient_rl_as_the_request_writes_it():
    tensordict = trajectory(discrete_actor())

    def run(value):
        torch.manual_seed(1)
        actor, critic_net = discrete_actor(), critic()
        ### Setup ###
        meta_param = nn.Parameter(torch.tensor(value))
        loss_module = ours.PPOLoss(
            actor,
            critic_net,
            gamma=None,  # whatever value
        )
        loss_module.register_buffer("gamma", meta_param)  # register gamma as buffer

        ### Optimizers ###
        inner_optim = torchopt.MetaAdam(loss_module, lr=0.1)
        outer_optim = torchopt.Adam([meta_param], lr=0.01)

        ### Inner update (update network parameters) ####
        inner_loss1 = loss_module(tensordict)
        inner_optim.step(inner_loss1["loss_objective"])  # inner update 1: param(0) -> param(1)

        inner_lossN = loss_module(tensordict)
        inner_optim.step(inner_lossN["loss_objective"])  # update N: param(N - 1) -> param(N)

        ### Outer update (update meta-parameters (gamma)) ###
        outer_loss = loss_module(tensordict)  # sampled by param(N)
        total = sum(x.detach() for k, x in outer_loss.items() if k.startswith("loss"))
        outer_optim.zero_grad()
        outer_loss.backward()
        slope = meta_param.grad.clone()
        outer_optim.step()
        assert meta_param != value
        return total, slope

    h = 1e-5
    _, slope = run(0.95)
    right = (run(0.95 + h)[0] - run(0.95 - h)[0]) / (2 * h)
    assert slope.abs() > 1e-3
    assert_close(slope, right, rtol=1e-5, atol=1e-7)


def test_the_module_as_a_function_of_its_buffers():
    """As the request's second listing has it: the discount as an argument, no module changed."""
    actor = discrete_actor()
    loss_module = ours.PPOLoss(actor, critic())
    td = trajectory(actor)
    loss_module.register_buffer("gamma", nn.Parameter(torch.tensor(0.95)))
    params = dict(loss_module.named_parameters())
    buffers = dict(loss_module.named_buffers())

    def fmodel(params, buffers, td):
        out = torch.func.functional_call(loss_module, {**params, **buffers}, (td,))
        return out["loss_objective"]

    def of_gamma(gamma):
        return fmodel(params, {**buffers, "gamma": gamma}, td)

    gamma = torch.tensor(0.9)
    h = 1e-6
    right = (of_gamma(gamma + h) - of_gamma(gamma - h)) / (2 * h)
    assert_close(torch.func.grad(of_gamma)(gamma), right, rtol=1e-6, atol=1e-8)
    assert loss_module.gamma == 0.95


def test_learned_policy_gradient_in_three_calls():
    """``batch = fmodel(params, buffers, batch)``, twice, and ``loss = loss_fn(batch)``."""
    import losses
    from paramtree import compose, envs, grad, meta, optim, rng, tree

    world = envs.level_distribution("small")
    names = ("agent", "meta", "level", "env", "play")
    keys = dict(zip(names, rng.split(rng.key(0), 5), strict=True))
    fmodel = compose(
        actor=meta.agent_model(world, 5, "logits"),
        prediction=meta.agent_model(world, 4, "prediction"),
    )
    rule = meta.lpg_rule(meta.lpg_network(4, 8, n_embedding=4))
    params, buffers = fmodel.init(keys["agent"])
    meta_params, meta_buffers = rule.init(keys["meta"])
    meta_params = tree.replace(meta_params, {"pi_hat.weight": rng.normal(keys["meta"], (1, 8))})
    level = world.sample(keys["level"])
    noise = world.env.noise(level, keys["env"], (3,))
    state = world.env.reset(level, noise)
    _, _, batch = envs.rollout(world.env, fmodel, params, buffers, level, state, keys["play"], 6)
    meta_fmodel, loss_fn = lambda *args: rule.apply(*args)[0], losses.lpg_agent_loss

    def inner(meta_params):
        def loss_of(params):
            out = fmodel(params, buffers, targets)
            return losses.total(loss_fn(out))

        seen = fmodel(params, buffers, with_outputs(batch))
        targets = meta_fmodel(meta_params, meta_buffers, seen)
        return optim.apply_updates(params, tree.map(lambda g: -g, grad(loss_of)(params)))

    def with_outputs(td):
        out = fmodel(params, buffers, td["next"])
        return td.copy().set(("next", "prediction"), out["prediction"])

    grads = grad(lambda m: tree.norm(inner(m)))(meta_params)
    assert tree.norm(grads) > 0


# --------------------------------------------------------------------------------- hyper-parameters


UNREAL = {"dtarg", "increment", "decrement"}  # of the next call's coefficient


@pytest.mark.parametrize("kind", KINDS)
def test_every_hyper_parameter_may_be_a_tensor_of_an_outer_graph(kind):
    module, td = made(kind, **({"clip_value": 0.1} if kind in POLICY[:4] else {}))
    names = [n for n in type(module).hyper_names if hasattr(module, n) and n not in UNREAL]
    assert "gamma" in names
    for name in names:
        before = float(getattr(module, name).detach())
        raw = torch.tensor(before if before else 0.1, requires_grad=True)

        def value(x, name=name, module=module, td=td):
            module.register_buffer(name, x * 1.0)  # a non-leaf tensor, at any call
            torch.manual_seed(5)
            out = module(td)
            return sum(v for k, v in out.items() if k.startswith("loss"))

        (slope,) = torch.autograd.grad(value(raw), raw)
        h = 1e-6
        with torch.no_grad():
            right = (value(raw + h) - value(raw - h)) / (2 * h)
        assert_close(slope, right, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
        setattr(module, name, before)
        setattr(module, name, nn.Parameter(torch.tensor(before)))
        assert name in dict(module.named_parameters())
        module.register_buffer(name, torch.tensor(before))
        assert name not in dict(module.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_into_the_batch(kind):
    module, td = made(kind)
    before = td.clone()
    module(td)
    assert set(td.keys(True)) == set(before.keys(True))
    assert (td == before).all()


@pytest.mark.parametrize("kind", KINDS)
def test_keys_can_be_set(kind):
    module, td = made(kind)
    torch.manual_seed(5)
    expected = module(td)
    other = td.clone()
    other["next"].rename_key_("reward", "gain")
    module.set_keys(reward="gain")
    torch.manual_seed(5)
    found = module(other)
    for name in (name for name in expected.keys() if name.startswith("loss")):
        assert_close(found[name], expected[name])
    with pytest.raises(ValueError, match="is not an accepted tensordict key"):
        module.set_keys(rewards="gain")


def test_a_discount_beside_a_finished_advantage_raises():
    module, td = made("PPOLoss")
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    module(td)
    module.register_buffer("gamma", nn.Parameter(torch.tensor(0.9)))
    with pytest.raises(ValueError, match="PPOLoss: gamma requires grad, but the td's 'advantage'"):
        module(td)


@pytest.mark.parametrize("kind", ["DQNLoss", "DDPGLoss", "TD3Loss", "SACLoss"])
def test_torchrls_updater_moves_the_targets(kind):
    module, td = made(kind)
    updater = peers.SoftUpdate(module, eps=0.9)
    name = "value_network" if kind in ("DQNLoss", "DDPGLoss") else "qvalue_network"
    before = getattr(module, f"target_{name}_params").clone()
    with torch.no_grad():
        for p in getattr(module, name).parameters():
            p.add_(1.0)
    updater.step()
    after = getattr(module, f"target_{name}_params")
    for key in before.keys(True, True):
        if before[key].is_floating_point() and before[key].numel():
            assert_close(after[key], before[key] + 0.1)


def test_a_mask_and_priority_weights():
    module, td = made("DQNLoss")
    expected = module.forward(td[:3])["loss"]
    padded = td.clone()
    padded["collector"] = TensorDict({"mask": torch.ones(4, 6, 1, dtype=torch.bool)}, (4, 6))
    padded["collector", "mask"][3] = False
    padded["next", "reward"][3] = torch.nan
    assert_close(module(padded)["loss"], expected)
    weight = torch.rand(4, 6)
    module.reduction = "none"
    plain = module(td)["loss"]
    module.reduction = "mean"
    weighted = module(td.clone().set("priority_weight", weight))["loss"]
    assert_close(weighted, (plain * weight).sum() / weight.sum())


def test_bad_use():
    actor = discrete_actor()
    with pytest.raises(TypeError, match="PPOLoss: actor_network is None"):
        ours.PPOLoss()
    with pytest.raises(ValueError, match="PPOLoss: loss_critic_type is 'l3', expected one of 'l1'"):
        ours.PPOLoss(actor, critic(), loss_critic_type="l3")
    for name in ("PPOLoss", "ClipPPOLoss", "KLPENPPOLoss"):
        cls = getattr(ours, name)
        with pytest.raises(TypeError, match=f"{name}: entropy_coef is not a keyword; it is ent"):
            cls(actor, critic(), entropy_coef=0.5)
        with pytest.raises(TypeError, match="critic_coef is not .* today; the hyper-.* are gamma"):
            cls(actor, critic(), critic_coef=0.5)
        assert cls(actor, critic(), lmbda=0.7).lmbda == 0.7
    with pytest.raises(TypeError, match="KLPENPPOLoss: clip_epsilon is not a keyword; the hyper-"):
        ours.KLPENPPOLoss(actor, critic(), clip_epsilon=0.1)
    with pytest.raises(ValueError, match="PPOLoss: advantage_norm is not supported"):
        ours.PPOLoss(actor, critic(), advantage_norm=nn.Identity())
    with pytest.raises(ValueError, match="PPOLoss: delay_actor is not supported"):
        ours.PPOLoss(actor, critic(), delay_actor=True)
    with pytest.raises(ValueError, match="PPOLoss: max_importance_ratio is not supported"):
        ours.PPOLoss(actor, critic(), max_importance_ratio=2.0)
    with pytest.raises(TypeError, match="PPOLoss: gamma is '0.9', expected a float or a tensor"):
        ours.PPOLoss(actor, critic(), gamma="0.9")
    with pytest.raises(ValueError, match="PPOLoss: the td has no 'advantage', and there is no"):
        ours.PPOLoss(actor)(trajectory(actor))
    with pytest.raises(ValueError, match="TD3Loss: bounds is None and action_spec is None"):
        ours.TD3Loss(Actor(nn.Linear(OBS, DIMS)), q_critic())
    with pytest.raises(ValueError, match="DQNLoss: value_type is .*, expected one of"):
        made("DQNLoss")[0].make_value_estimator(peers.ValueEstimators.GAE)
    with pytest.raises(TypeError, match=r"make_value_estimator\(.*GAE\): rho_thresh is not a"):
        made("PPOLoss")[0].make_value_estimator(peers.ValueEstimators.GAE, rho_thresh=1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["observation", "action", ("next", "observation")], ids=str)
def test_a_missing_entry_is_named(kind, key):
    module, td = made(kind)
    name = repr(key).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"the td has no {name}"):
        module(td.exclude(key))


def test_the_behavior_policys_log_probability_has_to_be_there():
    for kind in POLICY[:3]:
        module, td = made(kind)
        with pytest.raises(ValueError, match=f"{kind}: the td has no 'action_log_prob'"):
            module(td.exclude("action_log_prob"))
        expected = module(td)
        other = td.clone().rename_key_("action_log_prob", "sample_log_prob")
        assert_close(module(other)["loss_objective"], expected["loss_objective"])
        module.set_keys(sample_log_prob="mu")
        with pytest.raises(ValueError, match=f"{kind}: the td has no 'mu'"):
            module(td)
