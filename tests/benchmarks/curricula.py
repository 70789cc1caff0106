"""Does it matter which levels a learned rule is trained on?

Levels are drawn anew (none), come again where the critic was most wrong (plr), or where an A2C
agent earns more (groove); a second kind of levels shows how rules carry over. The steps are the
same for all and the seconds aren't, since antagonists take time. ``trainings.py`` has the rest.

    python tests/benchmarks/curricula.py
    python tests/benchmarks/curricula.py --recompute
    python tests/benchmarks/curricula.py --quick
"""

from trainings import compare

KINDS = {name: f"--curriculum {name}" for name in ("none", "plr", "groove")}
SETTINGS = {world: {"world": world} for world in ("all", "small")}


def main() -> None:
    """Train and measure, or compute the figures again."""
    compare(__doc__, "curricula", KINDS, SETTINGS, "")


if __name__ == "__main__":
    main()
