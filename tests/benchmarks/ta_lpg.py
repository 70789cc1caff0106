"""Does it help a rule to know how long a life it has? TA-LPG against LPG at short and long lives.

Both rules have the same network, but that one is told of the agent's age and lifetime, and both are
trained on lives whose lengths are drawn log-uniformly. Then both lead lives of fixed lengths.
``trainings.py`` has the rest.

    python tests/benchmarks/ta_lpg.py
    python tests/benchmarks/ta_lpg.py --recompute
    python tests/benchmarks/ta_lpg.py --quick
"""

from trainings import compare

KINDS = {"lpg": "--no-lifetime-input", "ta_lpg": "--lifetime-input"}
SETTINGS = {str(n): {"world": "all", "updates": n} for n in (50, 250, 1000)}


def main() -> None:
    """Train and measure, or compute the figures again."""
    compare(__doc__, "ta_lpg", KINDS, SETTINGS, "--lifetime 50 1000")


if __name__ == "__main__":
    main()
