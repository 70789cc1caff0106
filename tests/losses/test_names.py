"""Where a public name may be imported from: its file, ``losses``, and the room it belongs to."""

import importlib

import pytest

import losses

ROOMS = {
    "returns": "vtrace retrace retrace_continuous off_policy_returns",
    "distributions": (
        "independent_normal tanh_normal masked_categorical categorical_kl "
        "categorical_cross_entropy importance_ratio"
    ),
    "value": "huber squared_error half_squared_error absolute_error expectile_error huber_error",
    "distributional": "quantile_huber quantile_q_loss add_quantile_q_target",
    "policy_gradient": "qpg_loss rm_loss rpg_loss add_action_advantage",
    "actor_critic": (
        "sac_actor_loss sac_critic_loss sac_value_loss sac_temperature_loss add_soft_target "
        "discrete_sac_actor_loss discrete_sac_critic_loss discrete_sac_temperature_loss "
        "redq_actor_loss redq_critic_loss tqc_actor_loss tqc_critic_loss crossq_critic_loss"
    ),
    "mpo": "mpo_weights vmpo_weights mpo_temperature_dual vmpo_temperature_dual lagrange_penalty",
    "offline": "cql_loss cql_penalty cql_alpha_prime_loss discrete_cql_loss discrete_cql_penalty",
    "scaling": (
        "popart_init popart_update popart_normalize popart_unnormalize popart_rescale "
        "ema_moments_init ema_moments_update ema_moments_normalize ema_moments_unnormalize "
        "return_scale"
    ),
    "meta": "disco_agent_loss disco_meta_loss disco_regularizer_loss",
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_the_functions_of_its_neighbors(room):
    module = importlib.import_module(f"losses.{room}")
    for name in ROOMS[room].split():
        assert getattr(module, name) is getattr(losses, name)
