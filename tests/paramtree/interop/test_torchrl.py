"""The loss modules against TorchRL's own, and the request that they answer."""

import warnings

import pytest
import torch
import torchopt
import torchrl.objectives as peers
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor
from tensordict.nn import TensorDictModule as Module
from torch import nn
from torch.distributions import Categorical
from torch.testing import assert_close
from torchrl.modules import (
    Actor,
    ProbabilisticActor,
    QValueActor,
    TanhNormal,
    ValueOperator,
)

import paramtree.interop.torchrl as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchrl"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensordict"),
]
OBS, ACTIONS, DIMS = 3, 4, 2
POLICY = ["PPOLoss", "ClipPPOLoss", "KLPENPPOLoss", "A2CLoss", "ReinforceLoss"]


@pytest.fixture(autouse=True)
def double():
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(kept)


def discrete_actor():
    net = nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
    return ProbabilisticActor(
        Module(net, ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )


def gaussian_actor(**options):
    net = nn.Sequential(nn.Linear(OBS, 2 * DIMS), NormalParamExtractor())
    return ProbabilisticActor(
        Module(net, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
        **options,
    )


def critic():
    return ValueOperator(nn.Linear(OBS, 1), in_keys=["observation"])


class Q(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(OBS + DIMS, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1))


def q_critic():
    return ValueOperator(Q(), in_keys=["observation", "action"])


def trajectory(actor=None, size=(4, 6)):
    done = torch.rand(*size, 1) < 0.3
    after = {
        "observation": torch.randn(*size, OBS),
        "reward": torch.randn(*size, 1),
        "done": done,
        "terminated": done & (torch.rand(*size, 1) < 0.5),
    }
    td = TensorDict({"observation": torch.randn(*size, OBS)}, size)
    td["next"] = TensorDict(after, size)
    if actor is not None:
        with torch.no_grad():
            td = actor(td)
            td["action_log_prob"] = td["action_log_prob"] + 0.3 * torch.randn(size)
    else:
        td["action"] = torch.rand(*size, DIMS) * 2 - 1
    return td


def quiet(make, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **options)


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
        actor=meta.tabular_model(world, 5, "logits"),
        prediction=meta.tabular_model(world, 4, "prediction"),
    )
    rule = meta.lpg_rule(meta.lpg_network(4, 8, n_embedding=4))
    params, buffers = fmodel.init(keys["agent"])
    meta_params, meta_buffers = rule.init(keys["meta"])
    meta_params = tree.replace(meta_params, {"pi_hat.weight": rng.normal(keys["meta"], (1, 8))})
    level = world.sample(keys["level"])
    noise = world.env.noise(level, keys["env"], (3,))
    state = world.env.reset(level, noise)
    _, _, batch = envs.rollout(
        world.env, fmodel, params, buffers, level, state, keys["play"], 6
    )
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


# --------------------------------------------------------------------------------- beside TorchRL's


def losses_agree(theirs, mine, td, but=()):
    """The same losses, and the same gradients in the networks' own parameters."""
    torch.manual_seed(3)
    a = theirs(td.clone())
    torch.manual_seed(3)
    b = mine(td.clone())
    for name in (name for name in a.keys() if name.startswith("loss") and name not in but):
        assert_close(b[name], a[name].reshape(()), rtol=1e-7, atol=1e-9)
        theirs_params = [p for p in theirs.parameters() if p.requires_grad]
        mine_params = [p for p in mine.parameters() if p.requires_grad]
        norms = []
        for out, params in ((a, theirs_params), (b, mine_params)):
            options = {"allow_unused": True, "retain_graph": True}
            found = torch.autograd.grad(out[name].sum(), params, **options)
            norms.append(sum(float(g.square().sum()) for g in found if g is not None))
        assert_close(norms[1], norms[0], rtol=1e-6, atol=1e-12)
    return a, b


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "inside"])
@pytest.mark.parametrize("kind", POLICY)
def test_policy_losses_are_torchrls(kind, finished):
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    make = getattr(peers, kind), getattr(ours, kind)
    theirs, mine = (quiet(cls, actor, value) for cls in make)
    if finished:
        td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    a, b = losses_agree(theirs, mine, td)
    for name in ("entropy", "kl_approx", "clip_fraction"):
        if name in a.keys():
            assert_close(b[name], a[name].mean())


@pytest.mark.parametrize(
    "options",
    [
        {"loss_critic_type": "l2"},
        {"loss_critic_type": "l1", "critic_coeff": 0.3},
        {"clip_value": 0.1},
        {"entropy_coeff": 0.2},
        {"entropy_bonus": False},
        {"reduction": "sum"},
        {"separate_losses": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["ClipPPOLoss", "A2CLoss"])
def test_options_are_torchrls(kind, options):
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["state_value"] = torch.randn(4, 6, 1)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    theirs, mine = (quiet(getattr(m, kind), actor, value, **options) for m in (peers, ours))
    a, b = losses_agree(theirs, mine, td)
    assert ("loss_entropy" in b.keys()) == options.get("entropy_bonus", True)


def test_clip_epsilon_with_two_sides():
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    options = {"clip_epsilon": (0.1, 0.3)}
    losses_agree(*(quiet(m.ClipPPOLoss, actor, value, **options) for m in (peers, ours)), td)


def test_the_kl_coefficient_adapts():
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    theirs, mine = (quiet(m.KLPENPPOLoss, actor, value, dtarg=1e-9) for m in (peers, ours))
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    for _ in range(3):
        theirs(td)
        mine(td)
        assert_close(mine.beta, theirs.beta)
    assert mine.beta == 8
    mine.reset()
    assert mine.beta == 1


@pytest.mark.parametrize("kind", ["PPOLoss", "ClipPPOLoss", "A2CLoss"])
def test_a_tanh_normal_actor(kind):
    actor, value = gaussian_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    options = {"entropy_bonus": False}
    theirs, mine = (quiet(getattr(m, kind), actor, value, **options) for m in (peers, ours))
    losses_agree(theirs, mine, td)


def test_a_tanh_normal_actors_divergence_is_that_of_its_normals():
    actor = gaussian_actor()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.zeros(4, 6, 1), torch.zeros(4, 6, 1)
    module = ours.KLPENPPOLoss(actor, critic(), beta=0.7)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    new = actor.get_dist_params(td.clone())
    old, new = (torch.distributions.Normal(x["loc"], x["scale"]) for x in (td, new))
    divergence = torch.distributions.kl_divergence(old, new).sum(-1).mean()
    out = module(td)
    assert_close(out["kl"], divergence)
    assert_close(out["loss_objective"], 0.7 * divergence)
    assert out["entropy"].isfinite()


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("space", ["categorical", "one-hot"])
def test_dqn_is_torchrls(double, space):
    net = QValueActor(
        nn.Linear(OBS, ACTIONS), in_keys=["observation"], action_space=space
    )
    td = trajectory()
    with torch.no_grad():
        td["action"] = net(td.clone())["action"]
    options = {"action_space": space, "double_dqn": double, "delay_value": True}
    theirs, mine = (quiet(m.DQNLoss, net, **options) for m in (peers, ours))
    for target in (theirs.target_value_network_params, mine.target_value_network_params):
        for i, x in enumerate(target.flatten_keys().values()):
            x.data.copy_(torch.linspace(-1, 1, x.numel()).reshape(x.shape) * (i + 1))
    a, b = losses_agree(theirs, mine, td)
    theirs(td)
    squared = td["td_error"].squeeze(-1)
    assert b["td_error"].shape == td.batch_size
    assert_close(b["td_error"].square(), squared)
    assert "td_error" not in trajectory().keys()


def test_ddpg_is_torchrls():
    actor, q = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"]), q_critic()
    theirs, mine = (quiet(m.DDPGLoss, actor, q) for m in (peers, ours))
    losses_agree(theirs, mine, trajectory())


def same_members(theirs, mine):
    """Gives our ensemble TorchRL's parameters, its targets too."""
    for prefix in ("", "target_"):
        source = getattr(theirs, f"{prefix}qvalue_network_params")
        target = getattr(mine, f"{prefix}qvalue_network_params")
        for i in range(source.batch_size[0]):
            for key, x in source[i].items(True, True):
                target[(str(i), *((key,) if isinstance(key, str) else key))].data.copy_(x.data)


def test_td3_is_torchrls():
    actor, q = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"]), q_critic()
    options = {"bounds": (-1.0, 1.0)}
    theirs, mine = (quiet(m.TD3Loss, actor, q, **options) for m in (peers, ours))
    same_members(theirs, mine)
    losses_agree(theirs, mine, trajectory())


@pytest.fixture
def held_noise(monkeypatch):
    """What is drawn is the same for both, whatever the order of their draws."""
    def draw(self, size=()):
        return (self.loc + 0.3 * self.scale).tanh()

    def both(dist):
        return dist.rsample(), dist.log_prob(dist.rsample())

    monkeypatch.setattr(TanhNormal, "rsample", draw)
    monkeypatch.setattr("torchrl.objectives.sac.compute_rsample_log_prob", both)


@pytest.mark.usefixtures("held_noise")
def test_sac_is_torchrls():
    actor, q = gaussian_actor(), q_critic()
    options = {"target_entropy": -2.0, "alpha_init": 0.3}
    theirs, mine = (quiet(m.SACLoss, actor, q, **options) for m in (peers, ours))
    same_members(theirs, mine)
    a, b = losses_agree(theirs, mine, trajectory())
    assert_close(b["alpha"], a["alpha"])
    assert_close(b["entropy"], a["entropy"])


@pytest.mark.usefixtures("held_noise")
@pytest.mark.parametrize("size", [1, 2])
def test_sac_with_a_value_network_is_torchrls(size):
    """Of several critics TorchRL gives each a share of the batch, we each the whole of it."""
    actor, q, value = gaussian_actor(), q_critic(), critic()
    options = {"target_entropy": -2.0, "alpha_init": 0.3, "num_qvalue_nets": size}
    theirs, mine = (quiet(m.SACLoss, actor, q, value, **options) for m in (peers, ours))
    same_members(theirs, mine)
    losses_agree(theirs, mine, trajectory(), but=("loss_qvalue",) if size > 1 else ())


# --------------------------------------------------------------------------------- hyper-parameters


def made(kind):
    """A module, and a td for it."""
    if kind in POLICY:
        actor = discrete_actor()
        td = trajectory(actor)
        options = {"clip_value": 0.1} if kind != "ReinforceLoss" else {}
        td["state_value"] = torch.randn(4, 6, 1)
        return getattr(ours, kind)(actor, critic(), **options).eval(), td
    if kind == "DQNLoss":
        options = {"action_space": "categorical"}
        net = QValueActor(nn.Linear(OBS, ACTIONS), in_keys=["observation"], **options)
        td = trajectory()
        td["action"] = torch.randint(0, ACTIONS, (4, 6))
        return ours.DQNLoss(net, **options), td
    if kind == "SACLoss":
        return ours.SACLoss(gaussian_actor(), q_critic(), target_entropy=-2.0), trajectory()
    actor = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"])
    options = {"bounds": (-1.0, 1.0)} if kind == "TD3Loss" else {}
    return getattr(ours, kind)(actor, q_critic(), **options), trajectory()


KINDS = [
    "PPOLoss", "ClipPPOLoss", "KLPENPPOLoss", "A2CLoss", "ReinforceLoss", "DQNLoss", "DDPGLoss",
    "TD3Loss", "SACLoss",
]  # fmt: skip
UNREAL = {"dtarg", "increment", "decrement"}  # of the next call's coefficient


@pytest.mark.parametrize("kind", KINDS)
def test_every_hyper_parameter_may_be_a_tensor_of_an_outer_graph(kind):
    module, td = made(kind)
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


def test_without_tensordicts():
    module, td = made("DDPGLoss")
    expected = module(td)
    module.select_out_keys("loss_actor", "loss_value")
    after = {f"next_{k}": td["next", k] for k in ("observation", "reward", "done", "terminated")}
    actor, value = module(observation=td["observation"], action=td["action"], **after)
    assert_close((actor, value), (expected["loss_actor"], expected["loss_value"]))


def test_bad_use():
    actor = discrete_actor()
    with pytest.raises(TypeError, match="PPOLoss: actor_network is None"):
        ours.PPOLoss()
    with pytest.raises(ValueError, match="PPOLoss: loss_critic_type is 'l3', expected one of 'l1'"):
        ours.PPOLoss(actor, critic(), loss_critic_type="l3")
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
