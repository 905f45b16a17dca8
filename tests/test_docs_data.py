"""The examples of docs/data.md run as printed."""

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from base.base_data_loader import BaseDataLoader
from base.data import Batches
from tests.conftest import load_script
from tests.helpers import ROOT, blocks, needs_extra, registering_page, same
from utils.registry import DATA_LOADERS

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "data.md"
CONFIGS = [json.loads(block) for block in blocks(PAGE, "json")]
HOUSES = list(enumerate(itertools.product(range(1, 21), range(1, 16))))  # rooms and area of each
TABLE = next(config["args"] for config in CONFIGS if config["type"] == "TableLoader")
_registered = registering_page(PAGE)


@pytest.fixture(autouse=True)
def _tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the TableLoader. A price is 3 for each room and 1 for each square metre, in its units."""
    monkeypatch.chdir(tmp_path)
    for key in ("train_file", "test_file"):
        file = Path(TABLE[key])
        file.parent.mkdir(exist_ok=True)
        rows = [f"{number},{rooms},{area},{300000 * rooms + 100000 * area}" for number, (rooms, area) in HOUSES]
        file.write_text("\n".join(["id,rooms,area,price", *rows, ""]))


def loaded(batches: Batches) -> list[Any]:
    made = [micro_batch.data for micro_batch in itertools.islice(batches.one_pass(), 7)]
    batches.close()
    return made


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["type"])
def test_an_example_gives_batches(config: dict[str, Any]) -> None:
    def make(workers: int) -> BaseDataLoader:
        torch.manual_seed(0)  # the page's masks are noise
        loader: BaseDataLoader = DATA_LOADERS[config["type"]](**{**config["args"], "num_workers": workers})
        return loader

    first = loaded(make(0).training(seed=0))
    assert len(first) >= 6
    assert same(first, loaded(make(1).training(seed=0)))
    validation = make(0).validation()
    assert bool(validation) == (
        config["type"] == "NumberStream" or bool({"folds", "validation_split"} & {*config["args"]})
    )
    if validation:
        assert loaded(validation)


def test_the_text_examples_facts() -> None:
    loader = DATA_LOADERS["TextLoader"](batch_size=8)
    assert loader.facts() == {"vocabulary_size": 20}
    widths = [batch[0].shape[1] - int((batch[0] > 0).sum(1).min()) - 1 for batch in loaded(loader.training(seed=0))]
    assert sum(widths) / len(widths) < 8, "little is padded"


def test_an_example_prepares_new_inputs_like_its_test_data() -> None:
    patients = DATA_LOADERS["PatientLoader"](batch_size=120)
    raw, _ = patients.measurements(seed=1)
    [(inputs, _)] = loaded(patients.test())
    assert torch.equal(patients.prepare_input(raw, patients.input_facts()), inputs)

    table = DATA_LOADERS["TableLoader"](**{**TABLE, "eval_batch_size": 300})
    [(inputs, _)] = loaded(table.test())
    with Path(TABLE["test_file"]).open(newline="") as file:
        rows = [table.prepare_input(row, table.input_facts()) for row in csv.DictReader(file)]
    assert torch.equal(torch.stack(rows), inputs)


TRAINED = [config for config in CONFIGS if config["type"] not in ("Masks", "TextLoader", "TableLoader")]


@pytest.mark.parametrize("config", TRAINED, ids=lambda config: config["type"])
def test_an_example_trains(config: dict[str, Any], fit: Callable[..., train.Result]) -> None:
    metric = {"type": "Accuracy", "args": {"task": "multiclass", "num_classes": 3}}
    assert fit("trainer.steps_per_epoch=3", data_loader=config, metrics=[metric]).steps == 6


@needs_extra("predict")
def test_the_table_example_trains_and_predicts_without_its_data(
    fit: Callable[..., train.Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {key: str(tmp_path / TABLE[key]) for key in ("train_file", "test_file")}
    result = fit(
        "trainer.epochs=30",
        data_loader={"type": "TableLoader", "args": {**TABLE, **files}},
        model={"type": "LinearRegression", "args": {"in_features": 2}},
        loss="mse_loss",
        metrics=["mean_absolute_error"],
        optimizer={"type": "Adam", "args": {"lr": 0.5}},
    )
    for file in files.values():
        Path(file).unlink()
    Path("new.csv").write_text("area,rooms\n7,10\n")
    capsys.readouterr()
    load_script("predict").main(["-r", str(result.run_dir), "new.csv"])
    assert float(capsys.readouterr().out.splitlines()[1].split(",")[-1]) == pytest.approx(37, rel=0.02)
