"""The peers' scripts run in the environment with JAX, and are no place for examples."""

import sys
from pathlib import Path

collect_ignore = ["optax_adam.py", "rlax_losses.py"]
sys.path.insert(0, str(Path(__file__).parent))  # a benchmark imports another as a script does
