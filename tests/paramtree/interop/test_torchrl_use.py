"""The loss modules as they are used: entries of the td, no tensordicts, copies, a collector."""

import copy
import io
import pickle

import pytest
import torch
import torchrl.objectives as peers
from tensordict.nn import TensorDictModule as Module
from tensordict.nn import TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torch.testing import assert_close
from torchrl.modules import Actor, ProbabilisticActor, ValueOperator

import paramtree.interop.torchrl as ours
from tests.paramtree.interop.torchrl_agents import (
    ACTIONS,
    DIMS,
    KINDS,
    MARKS,
    OBS,
    POLICY,
    critic,
    discrete_actor,
    made,
    q_critic,
    quiet,
    total,
    trajectory,
)

pytestmark = MARKS
SIZE = (4, 6)
WITHOUT = {"dtarg", "increment", "decrement", "log_alpha"}


def seeded(module, td):
    torch.manual_seed(5)
    return module(td)


def arguments(module, td):
    """The td's entries as keywords."""
    keys = [key for key in module.in_keys if td.get(key, None) is not None]
    return {"_".join(key) if isinstance(key, tuple) else key: td[key] for key in keys}


# ------------------------------------------------------------------------------ without tensordicts


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_tensordicts(kind, reduction):
    module, td = made(kind, reduction=reduction)
    expected = seeded(module, td)
    torch.manual_seed(5)
    found = module(**arguments(module, td))
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(module.out_keys)
    for name, value in zip(module.out_keys, found, strict=True):
        assert value.isfinite().all()
        assert_close(value, expected[name], msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("options", [{}, {"entropy_bonus": False}, {"clip_value": 0.1}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_torchrls(kind, options):
    """What TorchRL reads and returns, in its order."""
    if kind not in POLICY[:4] and options:
        return
    theirs, mine = (made(kind, m, **options)[0] for m in (peers, ours))
    assert mine.out_keys == theirs.out_keys
    assert set(theirs.in_keys) - {("next", "action")} <= set(mine.in_keys)


@pytest.mark.parametrize("kind", ["ClipPPOLoss", "TD3Loss", "A2CLoss"])
def test_some_of_the_results(kind):
    module, td = made(kind)
    expected, all_keys = seeded(module, td), module.out_keys
    name = all_keys[1]
    module.select_out_keys(name)
    torch.manual_seed(5)
    found = module(**arguments(module, td))
    assert_close(found, expected[name])
    assert list(seeded(module, td).keys()) == [name]
    module.reset_out_keys()
    assert module.out_keys == all_keys


def test_the_metrics_of_td3_and_ddpg_are_torchrls():
    for kind, names in {
        "TD3Loss": ("state_action_value_actor", "next_state_value", "pred_value", "target_value"),
        "DDPGLoss": ("pred_value", "target_value", "pred_value_max", "target_value_max"),
    }.items():
        torch.manual_seed(0)
        theirs, td = made(kind, peers, **({"num_qvalue_nets": 1} if kind == "TD3Loss" else {}))
        torch.manual_seed(0)
        mine, _ = made(kind, **({"num_qvalue_nets": 1} if kind == "TD3Loss" else {}))
        if kind == "TD3Loss":
            for prefix in ("", "target_"):
                source = getattr(theirs, f"{prefix}qvalue_network_params")[0]
                target = getattr(mine, f"{prefix}qvalue_network_params")["0"]
                target.data.update_(source.data)
        a, b = seeded(theirs, td.clone()), seeded(mine, td.clone())
        for name in names:
            assert_close(b[name], a[name].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_reduction_the_result_is_per_step(kind):
    module, td = made(kind, reduction="none")
    out = seeded(module, td)
    assert out.batch_size == SIZE
    assert not {"next", "observation", "action"} & set(out.keys())
    module.reduction = "mean"
    mean = seeded(module, td)
    for name in out.keys():
        if name != "td_error":
            assert_close(out[name].mean(), mean[name])


# ------------------------------------------------------------------------------------ entries of td


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_of_the_td_wins_over_the_modules_own(kind):
    options = {"TD3Loss": {"policy_noise": 0.7}, "SACLoss": {"alpha_init": 0.3}}
    options |= dict.fromkeys(POLICY[:4], {"clip_value": 0.1})
    module, td = made(kind, **options.get(kind, {}))
    if kind == "KLPENPPOLoss":
        td["logits"] = td["logits"] + torch.randn(4, 6, ACTIONS)
    names = [n for n in type(module).hyper_names if hasattr(module, n) and n not in WITHOUT]
    for name in [*names, *(["alpha", "log_alpha"] if kind == "SACLoss" else [])]:
        own = float(getattr(module, name).detach())
        raw = torch.tensor(0.9 * own if own else -0.1, requires_grad=True)
        ramp = torch.linspace(0.9, 1.1, 24).reshape(SIZE)

        def value(x, name=name, ramp=ramp):
            return total(seeded(module, td.clone().set(name, (x * ramp).unsqueeze(-1))))

        (slope,) = torch.autograd.grad(value(raw), raw)
        h = 1e-6
        with torch.no_grad():
            right = (value(raw + h) - value(raw - h)) / (2 * h)
        assert right != 0, name
        assert_close(slope, right, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
        same = torch.full(SIZE, own)
        if name != "log_alpha":
            expected = seeded(module, td)
            assert_close(total(seeded(module, td.clone().set(name, same))), total(expected))


def test_an_entry_wins_over_two_sides():
    td = trajectory(actor := discrete_actor())
    value = critic()
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    one = ours.ClipPPOLoss(actor, value, clip_epsilon=0.05)
    two = ours.ClipPPOLoss(actor, value, clip_epsilon=(0.1, 0.3))
    narrow, low, high = (torch.full(SIZE, x) for x in (0.05, 0.1, 0.3))
    for name in ("clip_epsilon", "eps"):
        assert_close(total(two(td.clone().set(name, narrow))), total(one(td)))
    sides = td.clone().set("clip_epsilon_low", low).set("eps_high", high)
    assert_close(total(one(sides)), total(two(td)))


def test_an_entry_that_a_finished_advantage_does_not_know_raises():
    module, td = made("A2CLoss")
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    gamma = torch.tensor(0.9, requires_grad=True)
    module(td.clone().set("gamma", gamma.detach().expand(SIZE)))
    with pytest.raises(ValueError, match="A2CLoss: gamma requires grad, but the td's 'advantage'"):
        module(td.clone().set("gamma", gamma.expand(SIZE)))
    module.register_buffer("gamma", gamma)
    module(td.clone().set("gamma", gamma.detach().expand(SIZE)))  # the entry is what counts


# -------------------------------------------------------------------------------- keys and networks


def test_ddpg_finds_the_actors_action():
    actor = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"], out_keys=["force"])
    q = ValueOperator(
        q_critic().module, in_keys=["observation", "force"], out_keys=["state_action_value"]
    )
    td = trajectory().rename_key_("action", "force")
    theirs, mine = (quiet(m.DDPGLoss, actor, q) for m in (peers, ours))
    a, b = theirs(td.clone()), mine(td.clone())
    for name in ("loss_actor", "loss_value"):
        assert_close(b[name], a[name])
    assert "force" in mine.in_keys
    assert "action" not in mine.in_keys


def test_a_critic_that_reads_what_the_actor_wrote():
    """A head of the value alone: as in TorchRL, it reads the hidden numbers of today."""
    common = Module(nn.Linear(OBS, 5), ["observation"], ["hidden"])
    head = Module(nn.Linear(5, ACTIONS), ["hidden"], ["logits"])
    actor = ProbabilisticActor(
        TensorDictSequential(common, head),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    value = ValueOperator(nn.Linear(5, 1), in_keys=["hidden"])
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.1)
    theirs, mine = (quiet(m.ClipPPOLoss, actor, value) for m in (peers, ours))
    a, b = theirs(td.clone()), mine(td.clone())
    assert_close(b["loss_critic"], a["loss_critic"])
    (mine_slope,) = torch.autograd.grad(b["loss_critic"], common.module.weight)
    theirs_params = [p for p in theirs.parameters() if p.shape == common.module.weight.shape]
    assert_close(mine_slope, torch.autograd.grad(a["loss_critic"], theirs_params)[0])


def test_sac_draws_from_the_actor_of_today_though_it_keeps_another():
    torch.manual_seed(0)
    theirs, td = made("SACLoss", peers, delay_actor=True, num_qvalue_nets=1)
    torch.manual_seed(0)
    mine, _ = made("SACLoss", delay_actor=True, num_qvalue_nets=1)
    for prefix in ("", "target_"):
        source = getattr(theirs, f"{prefix}qvalue_network_params")[0]
        getattr(mine, f"{prefix}qvalue_network_params")["0"].data.update_(source.data)
    with torch.no_grad():
        for module in (theirs, mine):
            for p in module.actor_network_params.values(True, True):
                if p.is_floating_point():
                    p.add_(0.3)
    a, b = seeded(theirs, td.clone()), seeded(mine, td.clone())
    for name in ("loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy"):
        assert_close(b[name], a[name].reshape(()))


def test_without_an_entropy_the_result_can_still_be_differentiated():
    module, td = made("PPOLoss", entropy_bonus=False)
    module(td).backward()
    assert next(module.parameters()).grad is not None


# ------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_copied_saved_and_cast(kind):
    module, td = made(kind)
    expected = total(seeded(module, td)).detach()
    other = copy.deepcopy(module)
    assert_close(total(seeded(other, td)), expected)
    other.gamma = 0.5
    assert module.gamma == 0.99
    file = io.BytesIO(pickle.dumps(module))
    assert_close(total(seeded(pickle.load(file), td)), expected)

    again, _ = made(kind)
    again.gamma = 0.5
    again.load_state_dict(module.state_dict())
    assert_close(total(seeded(again, td)), expected)
    assert again.gamma == 0.99

    small = copy.deepcopy(module).to(torch.float32)
    single = td.apply(lambda x: x.float() if x.is_floating_point() else x)
    out = seeded(small, single)
    assert all(x.dtype == torch.float32 for x in out.values())
    assert all(p.dtype == torch.float32 for p in [*small.parameters(), small.gamma])
    assert small.to(torch.float64).gamma.dtype == torch.float64
    assert copy.deepcopy(module).half().gamma.dtype == torch.float16


def test_a_hyper_parameter_with_a_graph_is_copied_as_torch_copies():
    module, _ = made("PPOLoss")
    leaf = torch.tensor(0.9, requires_grad=True)
    module.register_buffer("gamma", leaf)
    assert copy.deepcopy(module).gamma.requires_grad
    module.register_buffer("gamma", leaf * 1.0)
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(module)
