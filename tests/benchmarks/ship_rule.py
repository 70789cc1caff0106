"""Make the two files of a learned rule that comes with the library, of a finished run.

The parameters are the running average of the newest checkpoint, the results those of the run's
evaluation, or of a later one by ``paramtree eval-lpg``. ``paramtree.meta.load_rule(NAME)`` reads
both files.

    python tests/benchmarks/ship_rule.py runs/demo lpg-small
    python tests/benchmarks/ship_rule.py runs/demo lpg-small --folder elsewhere
    python tests/benchmarks/ship_rule.py runs/all-2 lpg-all --evaluation runs/all-2/evaluated
"""

import argparse
import hashlib
import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import paramtree
from paramtree.checkpoint import save
from paramtree.cli import folder as files
from paramtree.cli.eval_lpg import saved_rule
from paramtree.cli.options import PRESETS, LpgOptions, flat, to_config

LARGEST = 2**20  # bytes of both files
FOLDER = Path(paramtree.__file__).parent / "meta" / "weights"


def ship(run: Path, name: str, folder: Path, evaluation: Path | None = None) -> Path:
    """Write the files; gives the card's path."""
    options, params = saved_rule(run, "cpu")
    evaluation = run if evaluation is None else evaluation
    summary = evaluation / files.SUMMARY
    if not summary.exists():
        raise SystemExit(
            f"{str(evaluation)!r} has no {files.SUMMARY}: let the run come to its end first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save(path, params)
    card = {
        "name": name,
        **made_with(options),
        "options": to_config(options),
        "command": command(options),
        "steps": files.last_step(run),
        "results": json.loads(summary.read_text()),
        "versions": {lib: version(lib) for lib in ("paramtree", "torch", "tensordict")},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    out = path.with_suffix(".json")
    out.write_text(json.dumps(card, indent=2) + "\n")
    size = path.stat().st_size + out.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{name} has {size} bytes, expected at most {LARGEST}")
    return out


def made_with(options: LpgOptions) -> dict[str, Any]:
    """Arguments of ``lpg_network``, ``lpg_rule`` and ``lpg_population``."""
    network, agents = options.network, options.agents
    activation = None if network.activation == "none" else network.activation
    return {
        "network": {
            "n_prediction": network.prediction_size,
            "n_hidden": network.hidden,
            "cell": network.cell,
            "n_embedding": network.embedding,
            "gamma_input": network.gamma_input,
            "lifetime_input": network.lifetime_input,
            "activation": activation,
        },
        "rule": {
            "gamma": options.objective.gamma,
            "prediction_coeff": agents.prediction_coeff,
            "full_stop": network.full_stop,
        },
        "agents": {
            "n_prediction": network.prediction_size,
            "workers": agents.workers,
            "actor_rate": agents.actor_rate,
            "prediction_rate": agents.prediction_rate,
            "max_norm": agents.clip,
        },
    }


def command(options: LpgOptions) -> str:
    """Words that start a run of these options, all but those that are as by default."""
    words, usual = ["paramtree", "lpg", "--preset", options.preset], flat(PRESETS[options.preset])
    for flag, value in flat(options).items():
        if value == usual[flag] or flag in ("--preset", "--threads", "--device", "--out"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag, *map(str, values)]
    return shlex.join(words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--evaluation", type=Path, help="folder that paramtree eval-lpg wrote")
    arguments = parser.parse_args()
    print(ship(arguments.run, arguments.name, arguments.folder, arguments.evaluation))


if __name__ == "__main__":
    main()
