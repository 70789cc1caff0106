"""Hyper-parameters of each step of a trajectory, which win over the number a rule is made with."""

import pytest
import torch

from paramtree import meta, optim, rng, tree
from tests.paramtree.meta.mgrl_problems import AGENT, first, training
from tests.paramtree.meta.ways import assert_same

OPTIONS = {"epochs": 2, "minibatches": 2}
ENTRIES = [
    *[(meta.a2c_rule, name, 0.3) for name in ("gamma", "lmbda", "entropy_coeff", "critic_coeff")],
    *[(meta.vtrace_rule, name, 0.3) for name in ("gamma", "lmbda", "entropy_coeff")],
    *[(meta.vtrace_rule, name, 0.6) for name in ("rho_clip", "c_clip", "pg_rho_clip")],
    *[(meta.ppo_rule, name, 0.3) for name in ("gamma", "lmbda", "entropy_coeff", "critic_coeff")],
    *[(meta.ppo_rule, "clip_epsilon", 0.05), (meta.ppo_rule, "value_clip", 0.001)],
    *[(meta.dpo_rule, name, 0.1) for name in ("gamma", "alpha", "beta", "value_clip")],
]


@pytest.mark.parametrize("end", [(), (1,)], ids=["", "column"])
@pytest.mark.parametrize(("make", "name", "number"), ENTRIES)
def test_an_entry_of_the_trajectory_is_the_hyper_parameter(make, name, number, end):
    agents = first(training("ppo"))["agents"]
    td = agents["trajectory"]
    chance = rng.uniform(rng.key(5), td.batch_size, -1.2, -0.3, dtype=torch.float64)
    td = tree.replace(td, {"action_log_prob": chance})
    entry = torch.full((*td.batch_size, *end), number, dtype=torch.float64)
    written = tree.rebuild(td, {**tree.entries(td), name: entry})
    sizes = OPTIONS if make in (meta.ppo_rule, meta.dpo_rule) else {}

    def updated(td, **hyper):
        rule = make(**sizes, **hyper)
        optimizer, key = optim.sgd(0.3), rng.key(3)
        none = tree.new({})
        state, _ = meta.update_agent(rule, AGENT, optimizer, none, agents, td, key=key)
        return state["params"]

    ours, wanted, other = updated(written), updated(td, **{name: number}), updated(td)
    assert_same(ours, wanted, rtol=1e-10, atol=1e-12)
    assert not tree.allclose(ours, other, rtol=1e-6, atol=1e-9)
