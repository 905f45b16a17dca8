"""What is tried next, and what is pruned: a function of the seed and the results so far."""

import sys
from pathlib import Path

import pytest

from extras.sweep.search import Search, importances, need_optuna, study_of, write_journal
from extras.sweep.sweep_folder import Outcome, Trial
from tests.extras.sweep.made_up import followed, spec
from utils.errors import UserError

pytest.importorskip("optuna")

SPACES = ("optimizer.args.lr=log:1e-4..1", "model.args.hidden_features=log:2..64", "seed=0..4", "a=0.1,0.2")


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("tpe", "hyperband"), ("random", None)])
def test_a_search_that_is_interrupted_anywhere_is_the_same(tmp_path: Path, sampler: str, pruner: str | None) -> None:
    searched = spec(*SPACES, trials=20, sampler=sampler, pruner=pruner)
    whole = followed(searched, tmp_path, 20, [])
    trials: list[Trial] = []
    for count in (1, 7, 12, 13, 20):  # each with a study of its own, as after a kill
        trials = followed(searched, tmp_path, count, trials)
    assert [(one.values, one.outcome) for one in trials] == [(one.values, one.outcome) for one in whole]
    states = {trial.outcome.state for trial in whole if trial.outcome}
    assert states == ({"complete", "pruned"} if pruner else {"complete"})


def test_the_seed_decides(tmp_path: Path) -> None:
    one, other = (followed(spec(*SPACES, trials=3, seed=seed), tmp_path, 3, []) for seed in (0, 1))
    assert [trial.values for trial in one] != [trial.values for trial in other]


def test_tpe_finds_better_values_than_chance(tmp_path: Path) -> None:
    found = {}
    for sampler in ("tpe", "random"):
        trials = followed(spec("a=lin:0..10", "b=lin:0..10", trials=40, sampler=sampler), tmp_path, 40, [])
        found[sampler] = min(trial.outcome.value or 0.0 for trial in trials if trial.outcome)
    assert found["tpe"] < found["random"]


def test_values_are_in_their_spaces(tmp_path: Path) -> None:
    for trial in followed(spec(*SPACES, trials=15), tmp_path, 15, []):
        assert 1e-4 <= float(trial.values["optimizer.args.lr"]) <= 1
        assert 2 <= int(trial.values["model.args.hidden_features"]) <= 64
        assert int(trial.values["seed"]) in range(5)
        assert trial.values["a"] in ("0.1", "0.2")


def test_the_journal_is_a_study(tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    searched, path = spec(*SPACES, trials=20, pruner="median"), tmp_path / "journal.log"
    trials = followed(searched, tmp_path, 20, [])
    write_journal(path, study_of(searched, trials[:12]))
    write_journal(path, study_of(searched, trials))

    study = optuna.load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(path))))
    assert [trial.user_attrs["run"] for trial in study.trials] == [trial.name for trial in trials]
    assert [trial.state.name.lower() for trial in study.trials] == [one.outcome.state for one in trials if one.outcome]
    best = min(one.outcome.value or 0 for one in trials if one.outcome and one.outcome.state == "complete")
    assert study.best_value == best


@pytest.mark.parametrize("values", [[1.0] * 12, [0.5] + [1.0] * 11])
def test_trials_with_the_same_value_show_no_importances(tmp_path: Path, values: list[float]) -> None:
    searched = spec("a=lin:0..1", "b=lin:0..1", trials=12)
    trials = followed(searched, tmp_path, 12, [])
    for trial, value in zip(trials, values, strict=True):
        trial.outcome = Outcome("complete", value, 1, 9, 0.0)
    assert importances(study_of(searched, trials)) == {}  # and warns of nothing, which would be an error


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--sampler tpe needs Optuna, which is not installed: pip install optuna"):
        need_optuna("--sampler tpe")
    assert Search(spec("seed=0..4")).choose(0, []) == {"seed": "0"}
