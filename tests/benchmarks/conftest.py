"""The peers' scripts run in the environment with JAX, and are no place for examples."""

collect_ignore = ["optax_adam.py", "rlax_losses.py"]
