"""Runs side by side: python test.py --compare RUN [RUN ...]."""

import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from extras.compare.curves import MOST_PANELS, curves
from extras.spreadsheets import csv_table
from tests.conftest import load_script
from tests.helpers import ROOT
from utils import cli
from utils.errors import CheckpointError, UserError
from utils.text import width

test = load_script("test")
Make = Callable[..., Path]

pytestmark = pytest.mark.slow
NOTES = ("diverged: ", "failed: ", "written", "damaged", "not a run", "test values left out")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run folder as training leaves it, without training. losses: val_loss of each epoch."""

    def run(
        name: str,
        losses: list[float | None],
        monitor: str | None = "min val_loss",
        *,
        about: dict[str, Any] | None = None,
        tested: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        folder = tmp_path / "saved" / "small" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.pth").touch()
        base: dict[str, Any] = {
            "name": "small",
            "data_loader": {"type": "Photos", "args": {"batch_size": 8}},
            "loss": {"type": "cross_entropy", "args": {}},
            "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
            "trainer": {"epochs": 3, "early_stop": None, "monitor": monitor, "save_dir": name},
        }
        (folder / "config.json").write_text(json.dumps({**base, **config}))
        environment = {"time": "2026-01-02T03:04:05+00:00", "git_commit": "abcdef0123456789", "outcome": "finished"}
        (folder / "environment.json").write_text(json.dumps({**environment, **(about or {})}))
        if tested is not None:
            (folder / "test").mkdir()
            (folder / "test" / "metrics.json").write_text(json.dumps({"checkpoint": "best.pth", **tested}))
        records = [
            {"epoch": epoch, "step": 3 * epoch, "loss": 2, "val_loss": loss, "val_accuracy": epoch / 10, "seconds": 30}
            for epoch, loss in enumerate(losses, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return run


def compared(capsys: pytest.CaptureFixture[str], *paths: Path) -> list[str]:
    """What is printed: every line is short enough for any terminal."""
    assert cli.run(test.main, ["--compare", *map(str, paths)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in printed if not line.startswith(NOTES)) <= 80
    return [line.rstrip() for line in printed]


def written(folder: Path) -> list[dict[str, str]]:
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sgd(lr: float) -> dict[str, Any]:
    return {"type": "SGD", "args": {"lr": lr}}


def test_runs_are_ranked_by_what_they_monitor(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        make("20260101-000001", [0.9, 0.5, 0.7], optimizer=sgd(0.1)),
        make("20260101-000002", [0.8, 0.4, None], optimizer=sgd(0.2)),
        make("20260101-000003", [0.6, 0.6, 0.6], optimizer=sgd(0.3)),
    ]
    printed = compared(capsys, *runs)
    assert printed[:5] == [
        "Photos, cross_entropy: 3 runs, by min val_loss, commit abcdef0",
        "  run                best    last  epochs   lr  time  val_accuracy",
        "  20260101-000002  0.4000       -     3/3  0.2  1:30        0.2000",
        "  20260101-000001  0.5000  0.7000     3/3  0.1  1:30        0.2000",
        "  20260101-000003  0.6000  0.6000     3/3  0.3  1:30        0.1000",
    ]
    table = written(runs[0].parent)
    assert [row["run"] for row in table] == [f"small/20260101-00000{place}" for place in (2, 1, 3)]
    assert [row["best_epoch"] for row in table] == ["2", "2", "1"]
    assert [row["optimizer.args.lr"] for row in table] == ["0.2", "0.1", "0.3"]
    assert table[1]["last"] == "0.7"
    assert table[1]["when"] == "2026-01-02T03:04:05+00:00"
    assert "trainer.save_dir" not in table[0]


def test_the_largest_is_best_where_that_is_monitored(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    short = make("20260101-000001", [0.1, 0.1], monitor="max val_accuracy")
    make("20260101-000002", [0.5, 0.5, 0.5], monitor="max val_accuracy")
    printed = compared(capsys, short.parent)
    assert "by max val_accuracy" in printed[0]
    assert [line.split()[0] for line in printed[2:4]] == ["20260101-000002", "20260101-000001"]


def test_a_run_of_which_a_file_cannot_be_read_is_damaged(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = make("20260101-000001", [0.3, 0.2, 0.1])
    make("20260101-000002", [])
    cut = make("20260101-000003", [0.6, 0.6, 0.6]) / "metrics.jsonl"
    cut.write_text(cut.read_text()[:-20])
    garbage = make("20260101-000004", [0.7, 0.7, 0.7]) / "metrics.jsonl"
    garbage.write_bytes(b"\xff\xfe" + garbage.read_bytes())
    lines = make("20260101-000005", [0.8, 0.8, 0.8]) / "metrics.jsonl"
    lines.write_text(lines.read_text() + '[1]\n{"epoch": "one"}\n')
    (make("20260101-000006", [0.9]) / "config.json").write_text("{")
    (tmp_path / "saved" / "small" / "foreign").mkdir()
    (tmp_path / "saved" / "small" / "notes.txt").touch()
    printed = compared(capsys, *sorted(done.parent.iterdir()))
    states = {row["run"][-1]: row["state"] for row in written(done.parent)}
    assert states == dict(zip("123456", ["finished"] * 3 + ["damaged"] * 3, strict=True))
    assert any(line.startswith("unknown task: 1 run") for line in printed)
    notes = [line for line in printed if line.startswith(("damaged", "not a run"))]
    said = [
        "cannot be read from line 1",
        "cannot be read from line 4",
        "config.json cannot be read",
        "foreign",
        "notes",
    ]
    for note, part in zip(notes, said, strict=True):
        assert part in note


def test_numbers_are_short_and_losses_have_names(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that a search has drawn have sixteen digits."""
    paths = [make(f"trial-{number:03}", [0.5], optimizer=sgd(0.057798344556122 / number)) for number in range(1, 10)]
    several = {"kind": {"type": "cross_entropy"}, "size": {"type": "mse_loss"}}
    printed = compared(capsys, *paths, make("gan", [1.0], loss=None), make("both", [1.0], loss=several))
    assert "0.0578 " in next(line + " " for line in printed if "trial-001" in line)
    assert {row["optimizer.args.lr"] for row in written(paths[0].parent)} >= {"0.057798344556122"}
    assert any(line.startswith("Photos, no loss: 1 run") for line in printed)
    assert any(line.startswith("Photos, cross_entropy + mse_loss: 1 run") for line in printed)


def test_another_task_has_a_table_of_its_own(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    one = make("20260101-000001", [0.3, 0.2, 0.1])
    make("20260101-000002", [0.4, 0.4, 0.4])
    make("20260101-000003", [0.0, 0.0, 0.0], loss={"type": "mse_loss", "args": {}})
    printed = compared(capsys, one.parent)
    titles = [line for line in printed if "by min" in line]
    assert titles == [
        "Photos, cross_entropy: 2 runs, by min val_loss, commit abcdef0",
        "Photos, mse_loss: 1 run, by min val_loss, commit abcdef0",
    ]
    assert [row["loss"] for row in written(one.parent)] == ["cross_entropy", "cross_entropy", "mse_loss"]


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        (
            {"loss": {"type": "cross_entropy", "args": {"label_smoothing": 0.1}}},
            {"loss": {"type": "cross_entropy", "args": {"label_smoothing": 0.3}}},
            "loss.args.label_smoothing 0.1",
        ),
        (
            {"loss": {"kind": {"type": "cross_entropy", "weight": 0.5, "args": {}}}},
            {"loss": {"kind": {"type": "cross_entropy", "weight": 0.01, "args": {}}}},
            "loss.kind.weight 0.01",
        ),
        (
            {"validation": {"type": "Photos", "args": {"seed": 8}}},
            {"validation": {"type": "Photos", "args": {"seed": 9}}},
            "validation.args.seed 8",
        ),
    ],
)
def test_another_loss_or_validation_of_the_same_kind_is_another_task(
    make: Make, capsys: pytest.CaptureFixture[str], one: Any, other: Any, shown: str
) -> None:
    run = make("20260101-000001", [0.3, 0.2], **one)
    make("20260101-000002", [0.4, 0.4], **one)
    make("20260101-000003", [0.0, 0.0], **other)
    printed = compared(capsys, run.parent)
    assert sorted(line.split(": ")[1][:6] for line in printed if "by min" in line) == ["1 run,", "2 runs"]
    assert shown in " ".join(" ".join(printed).split()).replace('"', "").replace(" = ", " ").replace("=", " ")


def photos(**arguments: Any) -> dict[str, Any]:
    return {"type": "Photos", "args": {"batch_size": 8, **arguments}}


def test_other_data_of_the_same_kind_are_another_task(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    one = make("20260101-000001", [0.3, 0.2, 0.1], data_loader=photos(data_dir="cats", validation_split=0.1))
    for place, data in enumerate(
        [
            photos(data_dir=str(ROOT / "cats"), validation_split=0.1, batch_size=16, flip=True),
            photos(data_dir="dogs", validation_split=0.1),
            photos(data_dir="cats", validation_split=0.2),
        ],
        start=2,
    ):
        make(f"20260101-00000{place}", [0.0, 0.0, 0.0], data_loader=data)
    printed = compared(capsys, one.parent)
    titles = [(line.partition(",")[2], which) for line, which in pairwise(printed) if "by min" in line]
    assert titles == [
        (" cross_entropy: 2 runs, by min val_loss, commit abcdef0", "  data_dir=cats, validation_split=0.1"),
        (" cross_entropy: 1 run, by min val_loss, commit abcdef0", "  data_dir=dogs, validation_split=0.1"),
        (" cross_entropy: 1 run, by min val_loss, commit abcdef0", "  data_dir=cats, validation_split=0.2"),
    ]
    assert [row["data"] for row in written(one.parent)] == [
        *["Photos (data_dir=cats, validation_split=0.1)"] * 2,
        "Photos (data_dir=dogs, validation_split=0.1)",
        "Photos (data_dir=cats, validation_split=0.2)",
    ]


def test_runs_that_monitor_nothing_are_ranked_by_their_loss(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert "by min val_loss" in compared(capsys, make("20260101-000001", [0.3], monitor=None))[0]
    strange = make("20260101-000002", [0.3], trainer={"monitor": ["x"], "epochs": "many", "early_stop": "no"})
    assert "by min val_loss" in compared(capsys, strange)[0]
    bare = make("20260101-000003", [], monitor=None)
    (bare / "metrics.jsonl").write_text('{"epoch": 1, "loss": 3}\n{"loss": 2}\n')
    assert "by min loss" in compared(capsys, bare)[0]


def test_what_finds_no_place_is_in_the_csv(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"quite_a_long_key_{place}" for place in range(9)]
    for run in (1, 2):
        optimizer = {"type": "SGD", "args": dict.fromkeys(keys, f"value {run}")}
        folder = make(f"20260101-00000{run}", [0.1 * run], optimizer=optimizer)
    printed = compared(capsys, folder.parent)
    further = " ".join(line.strip() for line in printed[4:] if line.startswith("  "))
    assert further.startswith("also in comparison.csv: ")
    assert keys[-1] in further
    assert written(folder.parent)[0][f"optimizer.args.{keys[-1]}"] == "value 1"


def test_a_folder_above_them_names_its_runs_and_each_counts_once(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = make("20260101-000001", [0.1])
    make("renamed", [0.2])
    make(".20260101-000003-77.tmp", [0.3])
    printed = compared(capsys, tmp_path / "saved", run, run.parent)
    assert printed[0].startswith("Photos, cross_entropy: 2 runs")


def test_our_own_files_of_the_last_time_are_passed_over(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("20260101-000001", [0.1])
    before = sorted(path.name for path in run.iterdir())
    first = compared(capsys, *run.parent.iterdir())
    assert compared(capsys, *run.parent.iterdir()) == first
    assert sorted(path.name for path in run.iterdir()) == before


def test_another_folder_for_the_files(make: Make, tmp_path: Path) -> None:
    run = make("20260101-000001", [0.1])
    test.main(["--compare", str(run), "--out", str(tmp_path / "new" / "folder")])
    assert len(written(tmp_path / "new" / "folder")) == 1
    assert not (run.parent / "comparison.csv").exists()


def test_a_formula_in_a_config_is_none_in_a_spreadsheet(make: Make) -> None:
    for place in (1, 2):
        run = make(f"20260101-00000{place}", [0.1], optimizer={"type": f"=cmd({place})", "args": {}})
    test.main(["--compare", str(run.parent)])
    assert [row["optimizer.type"] for row in written(run.parent)] == ["'=cmd(1)", "'=cmd(2)"]


@pytest.mark.parametrize("text", ["-3.2e-06", "-inf", "+1", "-.5", "nan"])
def test_a_number_is_one_in_a_spreadsheet(text: str) -> None:
    assert csv_table([[text]]) == f"{text}\n"
    assert csv_table([[f"{text}+cmd"]]) == (f"{text}+cmd\n" if text == "nan" else f"'{text}+cmd\n")


def test_wide_letters_fit_in_the_terminal(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Each takes two columns."""
    note = "더 넓은 신경망과 낮은 학습률로 다시 학습"
    for lr in (0.1, 0.2):
        run = make(f"run-{lr}", [0.5] * 3, about={"note": note}, optimizer=sgd(lr))
    printed = compared(capsys, run.parent)
    assert max(width(line) for line in printed if not line.startswith(NOTES)) <= 80
    assert note in printed[2]


def test_runs_on_several_drives_need_a_folder(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Windows, whose drives have no folder in common."""

    def fail(*_: object) -> str:
        raise ValueError("Paths don't have the same drive")

    run = make("20260101-000001", [0.5] * 3)
    monkeypatch.setattr("os.path.commonpath", fail)
    with pytest.raises(UserError, match="on different drives; choose a folder for the comparison with --out"):
        test.main(["--compare", str(run)])
    test.main(["--compare", str(run), "--out", str(tmp_path)])
    assert len(written(tmp_path)) == 1


def test_a_mistake_is_one_message_and_status_2(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make("20260101-000001", [0.1])
    (tmp_path / "empty").mkdir()
    for arguments, says in [
        (["--compare", "nowhere"], "nowhere: no such run folder"),
        (["--compare", "empty"], "no run to compare: no config.json in empty"),
        (["--compare", str(run), "trainer.epochs=3"], "--compare takes run folders, not trainer.epochs=3"),
    ]:
        assert cli.run(test.main, arguments) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", f"error: {says}\n")
    for arguments in (["--compare", "a", "-r", "b"], ["-r", "a", "--compare", "b"], ["--compare"]):
        with pytest.raises(UserError, match="usage: "):
            test.main(arguments)
    with pytest.raises(CheckpointError):
        test.main(["--compare", str(run), "saved/smal"])
    assert not (run.parent / "comparison.csv").exists()


def test_a_run_says_how_it_ended(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    inf = "diverged: the loss is inf at step 3 (epoch 1, samples 4, 5)."
    run = make("20260101-000001", [], about={"outcome": inf})
    make("20260101-000002", [0.2], about={"outcome": "stopped"})
    make("20260101-000003", [0.3], about={"outcome": "finished"})
    make("20260101-000004", [0.4], about={"outcome": f"failed: \x1b[31m{'no ' * 30}"})
    make("20260101-000005", [0.5], about={"outcome": None})
    printed = compared(capsys, run.parent)
    states = {row["run"][-1]: row["state"] for row in written(run.parent)}
    assert states == {
        "1": "diverged: the loss is inf at step 3",
        "2": "stopped",
        "3": "finished",
        "4": f"failed: \\x1b[31m{'no ' * 30}".strip(),
        "5": "unfinished",
    }
    shown = {line.split()[0][-1]: line for line in printed if line.startswith("  2026")}
    assert "  diverged  " in shown["1"]
    assert "  failed  " in shown["4"]
    assert f"diverged: {run}: the loss is inf at step 3" in printed


def test_notes_test_values_and_those_of_the_best_epoch_are_columns(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"loss": 0.25, "accuracy": 0.75, "f1": None}
    run = make("20260101-000001", [0.3, 0.2, 0.4], about={"note": "=wider\x1b[2J <b>\nnets"}, tested=found)
    make("20260101-000002", [0.5, 0.6, 0.7])
    printed = compared(capsys, run.parent)
    assert "val_accuracy" in " ".join(printed)
    assert "test loss  note" in printed[1]
    assert "0.2500  =wider\\x1b[2J <b> nets" in printed[2]
    one, other = written(run.parent)
    assert (one["note"], other["note"]) == ("'=wider\\x1b[2J <b> nets", "")
    assert (one["test loss"], one["test accuracy"], other["test loss"]) == ("0.25", "0.75", "")
    assert "test f1" not in one
    assert (one["best"], one["val_accuracy"]) == ("0.2", "0.2")


def test_seeds_and_folds_of_one_experiment_have_a_mean_and_a_deviation(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    place = 0
    for lr, base in ((0.1, 0.4), (0.2, 0.6)):
        for fold in range(3):
            place += 1
            make(
                f"20260101-00000{place}", [1.0, base + fold / 10, 1.0], seed=place, optimizer=sgd(lr),
                data_loader=photos(folds=3, fold=fold), tested={"accuracy": base},
            )  # fmt: skip
    stopped = {"outcome": "stopped"}
    make("20260101-000007", [0.0], seed=7, optimizer=sgd(0.1), data_loader=photos(folds=3, fold=1), about=stopped)
    single = make("20260101-000008", [0.9] * 3, optimizer=sgd(0.3), data_loader=photos(folds=3, fold=0))
    printed = compared(capsys, single.parent)
    assert printed[0].startswith("Photos, cross_entropy: 8 runs"), "folds are compared with one another"
    start = printed.index("  mean ± standard deviation over seeds and folds")
    assert printed[start + 1].split()[:4] == ["experiment", "runs", "min", "val_loss"]
    assert printed[start + 2].split() == ["lr=0.1", "3", "0.5000", "±", "0.1", "0.4000", "±", "0", "0.2000", "±", "0"]
    assert printed[start + 3].split()[:5] == ["lr=0.2", "3", "0.7000", "±", "0.1"]
    with (single.parent / "comparison_means.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["experiment"], first["over"], first["runs"]) == ("lr=0.1", "seed, fold", "3")
    assert float(first["deviation of min val_loss"]) == pytest.approx(0.1)
    assert second["mean of test accuracy"] == "0.6"
    shutil.rmtree(single.parent / "20260101-000001")
    for gone in (2, 3, 5, 6):
        shutil.rmtree(single.parent / f"20260101-00000{gone}")
    assert not any("±" in line for line in compared(capsys, single.parent))
    assert not (single.parent / "comparison_means.csv").exists()


def test_what_follows_from_the_data_of_a_fold_does_not_separate_folds(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"from_data": ["loss.args.weight", "model.args.sizes.1"]}
    for fold in range(3):
        run = make(
            f"20260101-00000{fold}",
            [0.3 + fold / 10] * 3,
            data_loader=photos(folds=3, fold=fold),
            loss={"type": "cross_entropy", "args": {"weight": [1.0, fold]}},
            model={"type": "Net", "args": {"sizes": [7, fold]}},
            about=about,
        )
    assert any(line.split()[:5] == ["all", "3", "0.4000", "±", "0.1"] for line in compared(capsys, run.parent))


def test_a_run_with_a_value_from_the_data_is_not_one_without(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"type": "cross_entropy", "args": {"weight": [1.0, 2.0]}}
    run = make("20260101-000001", [0.3] * 3, seed=0, loss=weights, about={"from_data": ["loss.args.weight"]})
    make("20260101-000002", [0.9] * 3, seed=1)
    assert not any("±" in line for line in compared(capsys, run.parent))
    make("20260101-000003", [0.9] * 3, seed=1, loss={"type": "cross_entropy", "args": {"weight": [1.0, 50.0]}})
    printed = compared(capsys, run.parent)
    assert not any("±" in line for line in printed)
    assert any("weight" in line for line in printed)


@pytest.mark.parametrize(
    "override",
    [
        "data_loader.args.noise=8",
        "data_loader.args.crop=8",
        "data_loader.args.num_test_samples=9",
        "loss=MSELoss",
        "metrics=[]",
        "trainer.type=A",
    ],
)
def test_a_test_of_something_else_does_not_count(make: Make, capsys: pytest.CaptureFixture[str], override: str) -> None:
    """A value of other data, or of another loss or metric under the same name."""
    own = {"accuracy": 0.75, "overrides": ["data_loader.args.eval_batch_size=7", "runtime.device=cpu"]}
    run = make("20260101-000001", [0.5] * 3, tested=own)
    make("20260101-000002", [0.4] * 3, tested={"accuracy": 0.25, "overrides": [override]})
    make("20260101-000003", [0.4] * 3, tested={"accuracy": 0.125, "overrides": 7})
    printed = "\n".join(compared(capsys, run.parent))
    assert "0.7500" in printed
    assert "0.1250" in printed
    assert "0.2500" not in printed
    assert f"20260101-000002: tested with {override}; run test.py without it" in printed


@pytest.mark.parametrize(
    ("losses", "monitor", "note"),
    [
        ([0.5, 0.4, 0.3], "min val_loss", ""),
        ([0.5, 0.4, 0.3, 0.2], "min val_loss", "tested at step 9, but the best epoch ended at step 12"),
        ([0.5, 0.2, 0.3], "min val_loss", "tested at step 9, but the best epoch ended at step 6"),
        ([0.5, 0.2], None, ""),
        ([0.5, 0.2, 0.3, 0.4], None, "tested at step 9, but the last epoch ended at step 12"),
    ],
)
def test_a_test_of_another_checkpoint_than_the_best_is_left_out(
    make: Make, capsys: pytest.CaptureFixture[str], losses: list[float | None], monitor: str | None, note: str
) -> None:
    run = make("20260101-000001", losses, monitor, tested={"accuracy": 0.75, "step": 9})
    printed = "\n".join(compared(capsys, run))
    assert ("0.7500" in printed, "0.75" in (run.parent / "comparison.csv").read_text()) == (not note, not note)
    assert ("test values left out: " in printed) == bool(note)
    assert note in printed


def test_a_key_that_one_version_did_not_have_yet_is_no_difference(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"type": "LeNet", "args": {}}
    older = {"model": model, "metrics": [{"type": "accuracy"}], "runtime": {"device": "cpu"}}
    newer = {"model": {**model, "weights": None}, "metrics": [{"type": "accuracy", "training": True}]}
    loss = {"type": "cross_entropy", "args": {}, "weight": 1.0}
    runs = [
        make("one", [0.2], **older, seed=0),
        make("two", [0.3], **newer, loss=loss, runtime={"device": "cpu", "timeout": 600.0}, seed=1),
        make("three", [0.4], **newer, loss=loss, runtime={"device": "cpu", "timeout": 60.0}, seed=2),
    ]
    assert "3 runs" in compared(capsys, *runs)[0]
    found = written(runs[0].parent)
    assert [row["seed"] for row in found] == ["0", "1", "2"]
    assert [row["runtime.timeout"] for row in found] == ["600.0", "600.0", "60.0"]
    assert not {"metrics", "loss.weight", "model.weights"}.intersection(found[0])
    rows = [line.split()[:2] for line in compared(capsys, *runs) if line.startswith("  ")]
    assert ["timeout=600", "2"] in rows  # of both versions: the mean over two seeds


def test_the_same_seed_trained_twice_counts_once(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("20260101-000001", [0.5] * 3, seed=0)
    make("20260101-000002", [0.1] * 3, seed=0)
    assert not any("±" in line for line in compared(capsys, run.parent))
    make("20260101-000003", [0.3] * 3, seed=1)
    assert any(line.split()[:5] == ["all", "2", "0.2000", "±", "0.14"] for line in compared(capsys, run.parent))


def test_of_repeated_runs_the_last_to_start_counts_whatever_their_names(make: Make) -> None:
    make("zero", [0.5] * 3, seed=0, about={"time": "2026-01-01T09:00:00+09:00"})
    make("again", [0.1] * 3, seed=0, about={"time": "2026-01-01T01:00:00+00:00"})
    run = make("one", [0.3] * 3, seed=1)
    test.main(["--compare", str(run.parent)])
    with (run.parent / "comparison_means.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert sorted(row["members"].split()) == ["small/again", "small/one"]


def test_what_is_written_is_there_before_the_table_is_printed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("20260101-000001", [0.1])

    def say(text: str) -> None:
        assert len(list(run.parent.glob("comparison.csv"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("extras.compare.comparison.say", say)
    with pytest.raises(KeyboardInterrupt):
        test.main(["--compare", str(run)])
    assert (run.parent / "comparison.csv").read_text().count("\n") == 2


def test_the_other_values_are_those_of_the_best_epoch(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of best.pth, whichever end of them is better."""
    runs = [make(f"20260101-00000{place}", [0.3, 0.2, 0.4], seed=place) for place in (1, 2)]
    records = [
        {"epoch": epoch, "step": epoch, "loss": 1, "reward": 10 * epoch, "val_loss": loss, "val_lpips": 1 - loss}
        for epoch, loss in enumerate([0.3, 0.2, 0.4], start=1)
    ]
    for run in runs:
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    printed = compared(capsys, *runs)
    assert [(row["val_lpips"], row["train reward"]) for row in written(runs[0].parent)] == [("0.8", "20")] * 2
    assert "  mean ± standard deviation over seeds" in printed
    with (runs[0].parent / "comparison_means.csv").open(newline="") as file:
        (means,) = csv.DictReader(file)
    assert [means[f"mean of {name}"] for name in ("min val_loss", "val_lpips", "train reward")] == [
        "0.2",
        "0.8",
        "20.0",
    ]


def test_training_and_validation_of_every_metric_are_drawn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("20260101-000001", [0.3, 0.2], about={"note": "wider $x$"})
    make("20260101-000002", [0.4, None])
    steep = make("20260101-000003", [], monitor=None, loss=None)
    (steep / "metrics.jsonl").write_text(
        "".join(json.dumps({"epoch": epoch, "loss": 10.0**-epoch}) + "\n" for epoch in range(40))
    )
    figures = []

    def draw(groups: Any) -> Any:
        figures.append(curves(groups))
        return figures[-1]

    monkeypatch.setattr("extras.compare.comparison.curves", draw)
    test.main(["--compare", str(run.parent)])
    loss, accuracy, alone = figures[0].axes
    assert loss.get_title(loc="left") == "Photos, cross_entropy\nvalidation; training is dashed"
    assert [axes.get_ylabel() for axes in (loss, accuracy, alone)] == ["loss", "accuracy", "loss"]
    assert [axes.get_yscale() for axes in (loss, accuracy, alone)] == ["linear", "linear", "log"]
    lines = [(line.get_color(), line.get_linestyle(), str(np.asarray(line.get_ydata(), float))) for line in loss.lines]
    one, other = lines[0][0], lines[2][0]
    assert lines == [
        (one, "--", "[2. 2.]"), (one, "-", "[0.3 0.2]"), (other, "--", "[2. 2.]"), (other, "-", "[0.4 nan]"),
    ]  # fmt: skip
    legend = loss.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["20260101-000001  wider $x$", "20260101-000002"]


def test_many_metrics_have_as_many_panels_as_can_be_drawn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extras.compare.comparison.png", lambda figure: str(len(figure.axes)).encode())
    run = make("20260101-000001", [])
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, **{f"metric{number}": 1.0 for number in range(90)}}))
    test.main(["--compare", str(run)])
    assert (run.parent / "comparison.png").read_text() == str(MOST_PANELS)


def test_every_run_of_a_chart_looks_different(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def png(figure: Figure) -> bytes:
        lines = figure.axes[0].lines
        assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 28
        return b""

    monkeypatch.setattr("extras.compare.comparison.png", png)
    for place in range(10, 30):
        run = make(f"20260101-0000{place}", [0.1 * place])
    test.main(["--compare", str(run.parent)])
    assert (run.parent / "comparison.png").read_bytes() == b""
