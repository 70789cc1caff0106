"""The peer's script runs in the environment with JAX, and is no place for examples."""

collect_ignore = ["rlax_losses.py"]
