"""The measurements at tiny sizes: what contestants share, what a probe finds, what is on file."""

import itertools
import json
from dataclasses import replace
from functools import partial

import curricula
import intervals
import lives
import lpg_all
import mgrl_control
import mgrl_known
import prediction_probe
import pytest
import standings
import ta_lpg
import torch
import trainings
import transfer
import tune_all
from prediction_probe import Critics, features, looks, scored

from paramtree import rng, tree
from paramtree.cli.options import PRESETS
from paramtree.cli.training import first_params
from paramtree.meta import a2c_habitat, a2c_rule, reward_curve

D = torch.float64
CONFIGS = [lives.PUBLISHED, {"rate": 80.0, "entropy": 0.1, "gamma": 0.7, "lmbda": 0.8}]


@pytest.fixture(scope="module")
def setting():
    return lives.make_setting("small", "test", 3, updates=4, length=5, workers=2)


@pytest.fixture(scope="module")
def rule():
    """One whose head isn't zero, as it is before the first step."""
    params = first_params(PRESETS["demo"])
    weight = params["pi_hat"]["weight"]
    head = rng.normal(rng.key(3), tuple(weight.shape), dtype=weight.dtype)
    changed = tree.replace(params, {("pi_hat", "weight"): head})
    return lives.Rule("rule", PRESETS["demo"], changed)


def test_all_contestants_meet_the_numbers_of_a_reward_curve(setting, rule):
    make = lives.a2c_maker(setting)
    both = lives.live(setting, make, hyper=lives.as_hyper(CONFIGS), crossed=True)
    for i, config in enumerate(CONFIGS):
        one = lives.live(setting, make, hyper=lives.as_hyper([config] * 3))
        a2c = a2c_rule(config["gamma"], config["lmbda"], entropy_coeff=config["entropy"])
        habitat = a2c_habitat(setting.world, workers=2, actor_rate=config["rate"])
        options = {"updates": 4, "length": 5}
        wanted = reward_curve(habitat, a2c, tree.new({}), setting.levels, setting.key, **options)
        assert wanted.any()
        assert torch.equal(one.reward, wanted)
        assert torch.equal(both.reward[:, i], wanted)
        rows = lives.live(setting, make, hyper=lives.as_hyper([config]), rows=slice(1, 2))
        assert torch.equal(rows.reward, wanted[1:2])
    learned = lives.live(setting, partial(rule.make, setting), params=rule.params)
    habitat, update = rule.make(setting)
    wanted = reward_curve(habitat, update, rule.params, setting.levels, setting.key, **options)
    assert torch.equal(learned.reward, wanted)


def test_a_record_says_what_became_of_each_level(setting):
    found = lives.a2c(setting, CONFIGS[:1])
    life = lives.live(setting, lives.a2c_maker(setting), hyper=lives.as_hyper(CONFIGS[:1] * 3))
    assert found["final"] == pytest.approx(life.reward[:, -1].tolist(), rel=1e-5)
    assert found["lifetime"] == pytest.approx(life.reward.mean(1).tolist(), rel=1e-5)
    random = lives.random_agents(setting)
    assert random["final"] != found["final"] and random["return"] != found["return"]
    best = lives.optimum(setting)
    assert len(best) == len(random["return"]) == 3


def test_other_purposes_are_other_levels():
    one, two = (lives.make_setting("small", name, 3).levels["reward"] for name in ("a", "b"))
    assert not torch.isin(one, two).any()


def test_a_rule_without_predictions_does_not_see_them(setting, rule):
    _, update = rule.make(setting)
    td = tree.new(
        {
            "logits": torch.zeros(2, 5, 5),
            "action": torch.zeros(2, 5, dtype=torch.int64),
            "prediction": rng.normal(rng.key(1), (2, 5, 8)),
            "next": tree.new(
                {
                    "reward": torch.ones(2, 5),
                    "done": torch.zeros(2, 5, dtype=torch.bool),
                    "prediction": rng.normal(rng.key(2), (2, 5, 8)),
                },
                (2, 5),
            ),
        },
        (2, 5),
    )
    other = tree.replace(td, {"prediction": -td["prediction"]})
    for sees, own in ((True, rule), (False, lives.without_predictions(rule))):
        outs = [update.apply(own.params, update.init(rng.key(0))[1], x)[0] for x in (td, other)]
        assert torch.equal(outs[0]["pi_hat"], outs[1]["pi_hat"]) != sees
    told = lives.without_predictions(rule, 0.3)
    out, _ = update.apply(told.params, update.init(rng.key(0))[1], td)
    assert torch.equal(out["prediction_embedding"], torch.full((2, 5), 0.3))
    assert lives.mean_embedding(setting, told) == pytest.approx(0.3)
    slower = replace(rule.options, agents=replace(rule.options.agents, actor_rate=1.0))
    marks = {r.mark for r in (rule, lives.without_predictions(rule), rule._replace(options=slower))}
    assert len(marks) == 3


def test_predictions_in_the_shadow_of_the_same_rule_are_its_own(setting, rule):
    for look in looks(setting, rule, rule).values():
        assert torch.equal(look.y, look.shadow)
        assert look.y.std() > 0 and look.value.shape == (3, 10, 3)


def test_a_table_of_values_learns_the_value_of_what_it_sees():
    """Of states that give reward 1 and end the episode, with whatever discount: 1."""
    setting = lives.make_setting("small", "test", 2, workers=2)
    critics, index = Critics(setting), torch.arange(6).reshape(2, 3).expand(2, 2, 3)
    seen = tree.new({"index": index, "time": 0 * index}, (2, 2, 3))
    ends = torch.ones(2, 2, 3, dtype=torch.bool)
    following = {"observation": seen, "reward": torch.ones(2, 2, 3), "done": ends}
    following = tree.new({**following, "terminated": ~ends}, (2, 2, 3))  # out of time
    td = tree.new({"observation": seen, "next": following}, (2, 2, 3))
    for _ in range(20):
        critics.learn(td)
    assert torch.allclose(critics.params["weight"][:, :, :6, 0], torch.ones(2, 3, 6), atol=1e-3)


def test_a_probe_finds_what_is_a_product_of_entries():
    y = rng.normal(rng.key(1), (4, 200, 3), dtype=D).softmax(-1)
    value = torch.stack([y[..., 0] * y[..., 1], y[..., 2].square() - y[..., 0]], -1)
    level = rng.normal(rng.key(2), (4, 1, 2), dtype=D)  # what all states of a level share
    noise = rng.normal(rng.key(3), (4, 200, 2), dtype=D)
    assert features(y).shape == (4, 200, 9)
    x = features(y)
    good = scored((x[:2], x[2:]), ((value + level)[:2], (value + level)[2:]))
    missed, spread = (torch.tensor(good[name], dtype=D) for name in ("missed", "spread"))
    assert missed.shape == (2, 2)
    assert (intervals.explained(missed[:, None], spread[:, None]) > 0.99).all()
    none = scored((x[:2], x[2:]), (noise[:2], noise[2:]))
    missed, spread = (torch.tensor(none[name], dtype=D) for name in ("missed", "spread"))
    assert (intervals.explained(missed[:, None], spread[:, None]) < 0.05).all()


def test_the_search_goes_on_from_its_files_and_finds_the_best(setting, tmp_path, monkeypatch):
    """Rewards are made up: one configuration is the best, beyond the grid's edge."""
    wanted, asked = {"rate": 320.0, "entropy": 0.03, "gamma": 0.9, "lmbda": 0.95}, []

    def made_up(setting, configs, what):
        asked.extend(configs)
        far = [
            sum(abs(ladder.index(config[name]) - ladder.index(wanted[name]))
                for name, ladder in tune_all.LADDERS.items())
            for config in configs
        ]  # fmt: skip
        return -torch.tensor(far, dtype=D).expand(setting.levels.batch_size[0], -1)

    monkeypatch.setattr(tune_all, "a2c_scores", made_up)
    for _ in range(2):
        found = tune_all.tune(tune_all.Search(setting, tmp_path), (2, 3, 3), (4, 2), tune_all.GRID)
        assert found["best"]["config"] == wanted
    grid = list(itertools.product(*tune_all.GRID.values()))
    assert len(asked) < 2 * len(grid)  # the second time all was known
    monkeypatch.undo()
    best, few = lives.tuned(_written(tmp_path / "a2c.json", found))
    assert best == wanted == few[0] and len(few) == 32
    assert len({json.dumps(config) for config in few}) == 32


def _written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_a_summary_follows_from_the_file(tmp_path, capsys):
    draw = rng.normal(rng.key(0), (3, 8), dtype=D)
    many = {name: lives.rounded(draw[0] + i) for i, name in enumerate(lives.MEASURES)}
    ours = {name: [lives.rounded(row + 0.5) for row in draw] for name in lives.MEASURES}
    ours["return"][1][2] = None  # an episode that never ended
    raw = {"setting": {}, "optimum": lives.rounded(draw[0] + 2)}
    raw["contestants"] = {"a2c tuned": many, "lpg": ours}
    path = tmp_path / "result.json"
    standings.report(raw, path, "title")
    standings.recompute(path, "title")
    assert "is the one that its raw numbers give" in capsys.readouterr().out
    kept = json.loads(path.read_text())
    row = kept["summary"]["contestants"]["lpg"]
    assert row["final"]["mean"]["value"] == pytest.approx(draw.mean().item() + 0.5, abs=1e-4)
    assert row["return"] is None and len(row["final by seed"]) == 3
    gap = kept["summary"]["against"]["a2c tuned"]["final"]["difference"]["value"]
    assert gap == pytest.approx(draw.mean().item() + 0.5 - draw[0].mean().item(), abs=1e-4)
    kept["contestants"]["lpg"]["final"][0][0] += 1.0
    path.write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="is not the one that its raw numbers give"):
        standings.recompute(path, "title")


def test_results_on_other_levels_are_pooled():
    draw = rng.normal(rng.key(0), (2, 3, 8), dtype=D).tolist()
    raws = [
        {
            "optimum": rows[0],
            "contestants": {
                "lpg": {name: rows[:2] for name in lives.MEASURES},
                "a2c tuned": {name: rows[2] for name in lives.MEASURES},
                f"only {i}": {name: rows[2] for name in lives.MEASURES},
            },
        }
        for i, rows in enumerate(draw)
    ]
    found = standings.pooled(raws)
    assert list(found["contestants"]) == ["lpg", "a2c tuned"]
    whole = torch.cat([torch.tensor(rows, dtype=D) for rows in draw], 1)
    for name in lives.MEASURES:
        assert found["contestants"]["lpg"][name] == whole[:2].tolist()
        assert found["contestants"]["a2c tuned"][name] == whole[2].tolist()
    gap = standings.summarized(found)["against"]["a2c tuned"]["final"]["difference"]["value"]
    assert gap == pytest.approx((whole[:2].mean() - whole[2].mean()).item())


def test_kinds_of_rules_are_compared_with_the_first():
    draw = rng.normal(rng.key(0), (2, 3, 8), dtype=D)
    found = {
        "all": {
            name: {"final": (draw[0] + i).tolist(), "lifetime": (draw[1] - i).tolist()}
            for i, name in enumerate(("plain", "other", "third"))
        }
    }
    summary = trainings.compared({"settings": found})["all"]
    assert list(summary["final"]) == [
        "plain",
        "other",
        "third",
        "other less plain",
        "third less plain",
    ]
    assert summary["final"]["plain"]["value"] == pytest.approx(draw[0].mean().item())
    for name, gap in (("other", 1.0), ("third", 2.0)):
        for measure, sign in (("final", 1.0), ("lifetime", -1.0)):
            row = summary[measure][f"{name} less plain"]
            assert [row[k] for k in ("value", "low", "high")] == pytest.approx([sign * gap] * 3)


@pytest.mark.parametrize("script", [curricula, lpg_all, prediction_probe, ta_lpg, transfer])
def test_without_a_file_there_is_nothing_to_compute_again(script, tmp_path, monkeypatch):
    path, threads = tmp_path / "none.json", str(torch.get_num_threads())
    words = ["script", "--recompute", "--out", str(path), "--threads", threads]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match=r"none.json: no results to compute figures of: .*No such"):
        script.main()


@pytest.mark.parametrize("script", [mgrl_control, mgrl_known])
def test_quick_numbers_are_not_among_the_results(script, tmp_path, monkeypatch):
    words = ["script", "--quick", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "told", lambda *args: "")
    if script is mgrl_known:
        monkeypatch.setattr(script, "parts", lambda quick: {"a": lambda show: {}})
    else:
        monkeypatch.setattr(script, "part", lambda *args: {})
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    script.main()
    (path,) = tmp_path.rglob("*.json")
    assert path.relative_to(tmp_path).parts == ("runs", "quick", f"{script.__name__}.json")


def test_what_was_made_under_the_same_mark_is_not_made_again(tmp_path):
    makes = iter(range(9))
    for mark, wanted in ((1, 0), (1, 0), ({"a": 2}, 1), (1, 0)):
        assert lives.kept("name", mark, lambda: next(makes), tmp_path) == wanted
