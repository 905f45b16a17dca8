"""predict.py on arrays and tables, and for models that are not classifiers of pictures."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import BinaryAccuracy

import predict
import train
from base.base_data_loader import BaseDataLoader, row_of_numbers
from base.base_model import BaseModel
from base.data.sources import TensorSource
from base.training.saved_data import SavedData
from extras.predict import writing
from extras.predict.outputs import Field, Interpreter, Sample, Task
from extras.predict.writing import write
from tests.helpers import ROOT, Fit, blocks, temporarily
from trainer.trainer import Trainer
from utils import cli
from utils.errors import DataError
from utils.registry import DATA_LOADERS, MODELS, TRAINERS

LINEAR = {"num_samples": 24, "num_test_samples": 8, "input_shape": [3], "batch_size": 8}


def loader(**arguments: Any) -> dict[str, Any]:
    return {"type": "RandomTensorLoader", "args": {**LINEAR, **arguments}}


def net(outputs: int) -> dict[str, Any]:
    return {"type": "TwoLayerNet", "args": {"in_features": 3, "hidden_features": 5, "out_features": outputs}}


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs predict.py in a folder of its own: its status, what it prints, and what it says."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def command(run: Path, *words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.run(predict.main, ["-r", str(run), *map(str, words)])
        return status, *capfd.readouterr()

    return command


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def regression(fit: Fit) -> Path:
    return fit(data_loader=loader(target_shape=[1]), model=net(1), loss="mse_loss", metrics=[]).run_dir


def values(text: str) -> list[float]:
    return [float(row["value"]) for row in table(text)]


def test_tables_and_arrays_give_the_same_values(regression: Path, ask: Ask) -> None:
    numbers = np.random.default_rng(0).normal(size=(4, 3)).round(3)
    np.save("a.npy", numbers)
    np.save("b.npy", numbers.astype(np.float32))
    np.savez("c.npz", numbers)
    np.save("big_endian.npy", numbers.astype(">f8"))
    lines = [",".join(map(str, row)) for row in numbers.tolist()]
    Path("bare.csv").write_text("\n".join(lines) + "\n")
    Path("named.csv").write_text("a,b,c\n" + "\n".join(lines))
    Path("excel.csv").write_text(
        "\ufeffx;c;b;a\r\n" + "\r\n".join(f"{'é'};{c};{b};{a}" for a, b, c in numbers.tolist())
    )
    expected = values(ask(regression, "a.npy")[1])
    assert len(set(expected)) == 4
    for name in ("b.npy", "c.npz", "big_endian.npy", "bare.csv", "named.csv"):
        status, output, _ = ask(regression, name)
        assert (status, values(output)) == (0, expected)
    status, output, _ = ask(regression, "excel.csv", "--columns", "a,b,c")
    assert (status, values(output)) == (0, expected)
    assert [row["row"] for row in table(output)] == list("0123")


@pytest.mark.parametrize(
    ("name", "first", "rows", "said"),
    [
        ("t.csv", "0,1,2", 1, "t.csv: the first row numbers the columns, and is taken for the header\n"),
        ("t.csv", "2019,2020,2021", 2, "t.csv: no header: 3 columns, and the first row is an input\n"),
        ("t.csv", "inf,1e3,1", 2, "t.csv: no header: 3 columns, and the first row is an input\n"),
        ("t.csv", "a,b,c", 1, ""),
        ("t.tsv", "length, cm\twidth, cm\theight, about, cm", 1, ""),
    ],
)
def test_the_first_row_of_a_table_is_its_header_unless_it_has_numbers(
    regression: Path, ask: Ask, name: str, first: str, rows: int, said: str
) -> None:
    Path(name).write_text(f"{first}\n" + ("\t" if name == "t.tsv" else ",").join("123") + "\n")
    status, output, errors = ask(regression, name)
    assert status == 0
    assert len(table(output)) == rows
    assert errors.startswith(said)
    assert errors.count("header") == bool(said)


def test_inputs_that_the_models_dtype_cannot_hold_are_refused(regression: Path, ask: Ask) -> None:
    """Floats are rounded, as nearly all are; nothing else changes its value."""
    np.save("rounded.npy", np.array([[0.1, 1e-60, np.nan]]))
    np.save("exact.npy", np.array([[1, 2, 2**24]]))
    for name in ("rounded.npy", "exact.npy"):
        assert ask(regression, name)[0] == 0
    np.save("inexact.npy", np.array([[1, 2, 2**24 + 1]]))
    np.save("large.npy", np.array([[1.0, 2, 1e300]]))
    for name, value in (("inexact.npy", "int64 value 16777217"), ("large.npy", "float64 value 1e+300")):
        status, output, errors = ask(regression, name)
        assert (status, output) == (2, "")
        problem = f"{name}, row 0: the input has the {value}, which is out of range."
        assert f"{problem}\nIn training, the inputs were float32" in errors


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_values_are_written_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    values = (torch.tensor([1 / 7, 2 / 7, 1e-30, -5], dtype=torch.float64) * 3**8).to(dtype)
    found = Interpreter(Task()).fields(values, 4)
    sources = [(name, None) for name in "abcd"]
    for suffix in (".csv", ".json", ".npz"):
        write(tmp_path / f"p{suffix}", sources, found, as_json=False)
    text = (tmp_path / "p.csv").read_text()
    assert dtype not in (torch.float64, torch.float32) or "6.561e-27\n" in text, "in the fewest digits"
    exact = torch.tensor([float(row["value"]) for row in table(text)], dtype=torch.float64).to(dtype)
    assert exact.equal(values)
    in_json = [row["value"] for row in json.loads((tmp_path / "p.json").read_text())]
    assert torch.tensor(in_json, dtype=torch.float64 if dtype.is_floating_point else None).to(dtype).equal(values)
    with np.load(tmp_path / "p.npz") as arrays:
        kept = torch.from_numpy(arrays["value"])
        assert kept.dtype == (torch.float32 if dtype.itemsize == 2 else dtype)
        assert kept.to(dtype).equal(values)


class UserItemPairs(BaseDataLoader):
    """Indices of a user and an item."""

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(torch.arange(16).view(8, 2), torch.linspace(0, 1, 8))

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


class Factors(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Embedding(16, 2)

    def forward(self, pairs: Tensor) -> Tensor:
        scores: Tensor = self.factors(pairs).prod(1).sum(1)  # (B, 2) -> (B, 2, 2) -> (B,)
        return scores


def test_a_table_of_integers_is_read_for_a_model_that_takes_them(fit: Fit, ask: Ask) -> None:
    with temporarily(DATA_LOADERS, UserItemPairs), temporarily(MODELS, Factors):
        data = {"type": "UserItemPairs", "args": {"batch_size": 4}}
        run = fit(
            data_loader=data, model="Factors", loss="mse_loss", metrics=[], trainer={"monitor": "min loss"}
        ).run_dir
        np.save("a.npy", np.array([[0, 15], [3, 4]]))
        Path("a.csv").write_text("user,item\n0,15\n3,4.0\n")
        from_array, from_table = (ask(run, name) for name in ("a.npy", "a.csv"))
        assert from_array[0] == from_table[0] == 0
        assert values(from_table[1]) == values(from_array[1])
        for cell in ("0.5", "16777217", "inf"):  # float32 cannot hold the second
            Path("a.csv").write_text(f"user,item\n0,{cell}\n")
            status, _, errors = ask(run, "a.csv")
            assert status == 2
            assert "the input is float32 of shape (2,).\nIn training, the inputs were int64" in errors


class Users(UserItemPairs):
    """Inputs of shape ()."""

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(torch.arange(8), torch.linspace(0, 1, 8)[:, None])


class UserFactors(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Embedding(8, 1)

    def forward(self, users: Tensor) -> Tensor:
        return self.factors(users)  # type: ignore[no-any-return]  # (B,) -> (B, 1)


def test_a_table_of_one_column_is_read_for_a_model_that_takes_one_number(fit: Fit, ask: Ask) -> None:
    with temporarily(DATA_LOADERS, Users), temporarily(MODELS, UserFactors):
        data = {"type": "Users", "args": {"batch_size": 4}}
        trainer = {"monitor": "min loss"}
        run = fit(data_loader=data, model="UserFactors", loss="mse_loss", metrics=[], trainer=trainer).run_dir
        np.save("a.npy", np.array([3, 5]))
        np.save("column.npy", np.array([[3], [5]]))
        Path("a.csv").write_text("user\n3\n5\n")
        expected = values(ask(run, "a.npy")[1])
        assert len(set(expected)) == 2
        assert values(ask(run, "a.csv")[1]) == values(ask(run, "column.npy")[1]) == expected
        Path("a.csv").write_text("user,item\n3,5\n")
        assert "In training, the inputs were int64 of shape (B,).\n" in ask(run, "a.csv")[2]


def test_a_row_that_is_wrong_is_named_and_skipped(regression: Path, ask: Ask) -> None:
    Path("t.csv").write_text("a,b,c\n1,2,3\n1,,3\n1,2\n1,2,many\n3,2,3.4028235e+38\n1e39,2,3\n1_5,2,3\nnan,2,3\n")
    status, output, errors = ask(regression, "t.csv")
    assert status == 1
    assert [row["row"] for row in table(output)] == ["0", "4"]
    assert "skipped t.csv, row 5: column a: '1e39' is out of range\n" in errors
    assert "skipped t.csv, row 1: column b: '' is not a number\n" in errors
    assert "skipped t.csv, row 2: 2 cells, but there are 3 columns\n" in errors
    assert "skipped t.csv, row 3: column c: 'many' is not a number\n" in errors
    assert "skipped t.csv, row 6: column a: '1_5' is not a number\n" in errors
    assert "skipped t.csv, row 7: column a: 'nan' is not a number\n" in errors
    assert errors.endswith("error: 6 inputs could not be read, as listed above; the others were predicted\n")
    Path("named.csv").write_text("name,a,b,c\nx,1,2,3\ny,4,5,6\n")
    advice = "--columns chooses the columns of a table that are inputs"
    assert ask(regression, "named.csv")[2].endswith(f"error: none of 2 inputs could be read; see above; {advice}\n")


def test_predictions_that_are_not_finite_are_counted(regression: Path, ask: Ask) -> None:
    np.save("a.npy", np.array([[1.0, 2, 3], [np.nan, 2, 3], [1, 2, np.inf]], np.float32))
    status, output, errors = ask(regression, "a.npy")
    assert status == 0
    assert len(table(output)) == 3
    assert "warning: 2 predictions with values that are not finite\n" in errors
    np.save("a.npy", np.zeros((2, 3), np.float32))
    assert "not finite" not in ask(regression, "a.npy")[2]


@pytest.mark.parametrize(
    "name", ["empty.csv", "latin.csv", "empty.npy", "text.npy", "cut.npy", "cut.npz", "objects.npz", "number.npy"]
)
def test_a_file_that_cannot_be_read_is_named_and_skipped(regression: Path, ask: Ask, name: str) -> None:
    np.save("good.npy", np.zeros((2, 3)))
    np.save("empty.npy", np.zeros((0, 3)))
    np.save("number.npy", np.float32(3))
    np.savez("cut.npz", np.zeros((200, 3)))
    np.savez("objects.npz", np.array([[None]]))
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:-9])
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:900])
    for other in ("empty.csv", "text.npy"):
        Path(other).write_text("" if other == "empty.csv" else "text")
    Path("latin.csv").write_bytes(b"a,b,c\n1,2,\xe9\n")
    status, output, errors = ask(regression, name, "good.npy")
    assert status == 1
    assert [row["file"] for row in table(output)] == ["good.npy", "good.npy"]
    assert errors.startswith(f"skipped {name}: ")
    assert errors.count("\n") == 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "the input has shape ().\nIn training, the inputs were float32 of shape (B, 3)."),
        (np.zeros((2, 1, 3)), "the input has shape (1, 3)"),
        (np.zeros((2, 4)), "the model cannot take this input ((2, 4) float32)"),
        (np.zeros((2, 3), np.uint8), "the input is uint8 of shape (3,); scale the bytes as in training."),
        (np.zeros((2, 3), bool), "the input is bool of shape (3,)."),
        (np.zeros((2, 3), complex), "the input is complex128 of shape (3,)."),
    ],
)
def test_an_array_of_another_kind_is_told_what_the_model_takes(
    regression: Path, ask: Ask, array: Any, message: str
) -> None:
    np.save("x.npy", array)
    status, output, errors = ask(regression, "x.npy")
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("In training, the inputs were float32 of shape (B, 3).") == 1
    assert "Traceback" not in errors


def test_a_picture_for_a_model_of_numbers_is_told(regression: Path, ask: Ask) -> None:
    Path("x.jpg").touch()
    status, _, errors = ask(regression, "x.jpg")
    assert status == 2
    assert "error: x.jpg: RandomTensorLoader does not define how to read files" in errors
    np.save("x.npy", np.zeros((2, 3)))
    assert ask(regression, "x.npy", "--show", "x.png")[0] == 2
    assert ask(regression, "x.npy", "--columns", "d")[0] == 2  # of tables alone
    Path("t.csv").write_text("a,b,c\n1,2,3\n")
    assert "t.csv has no column 'd'; it has a, b, c" in ask(regression, "t.csv", "--columns", "a,b,d")[2]
    Path("t.csv").write_text("a,b,c,target\n1,2,3,4\n")
    assert "--columns chooses the columns of a table that are inputs." in ask(regression, "t.csv")[2]
    assert ask(regression, "t.csv", "--columns", "a,b,c")[0] == 0
    assert ask(regression, "t.csv", "--columns", "a,b,b")[2] == "error: --columns a,b,b names a column twice\n"


class Scaled(BaseDataLoader):
    """A table whose columns are scaled by their means, which only the training data tell."""

    path: Path

    def __init__(self, **batches: Any) -> None:
        super().__init__(**batches)
        self.rows: Tensor | None = None

    def read(self) -> Tensor:
        return torch.from_numpy(np.loadtxt(self.path, dtype=np.float32, delimiter=",", skiprows=1))

    def training_data(self, *, augment: bool) -> TensorSource:
        self.rows = rows = self.read()
        return TensorSource(rows[:, :3] / rows[:, :3].mean(0), rows[:, 3:])

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)

    def input_facts(self) -> dict[str, Any]:
        rows = self.read()[:, :3]
        return {"mean": rows.mean(0), "columns": ["a", "b", "c"]}

    def prepare_input(self, raw: Path | Tensor | Mapping[str, str], facts: Mapping[str, Any]) -> Any:
        row = row_of_numbers(raw, facts["columns"]) if isinstance(raw, Mapping) else raw
        return row / facts["mean"] if isinstance(row, Tensor) else super().prepare_input(raw, facts)


def test_what_is_known_of_the_training_data_is_kept_in_the_run(fit: Fit, ask: Ask, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(1, 9, (16, 4)).astype(np.float32)
    Scaled.path = tmp_path / "train.csv"
    np.savetxt(Scaled.path, rows, delimiter=",", header="a,b,c,y", comments="")
    with temporarily(DATA_LOADERS, Scaled):
        run = fit(
            data_loader={"type": "Scaled", "args": {"batch_size": 8}},
            model=net(1),
            loss="mse_loss",
            metrics=[],
            trainer={"monitor": "min loss"},
        ).run_dir
        resumed = train.main(["-r", str(run), "trainer.epochs=3"])
        assert resumed.epochs == 3
        Scaled.path.rename(tmp_path / "gone.csv")
        Path("new.csv").write_text("c,id,a,b\n" + "".join(f"{c},x,{a},{b}\n" for a, b, c, _ in rows.tolist()))
        np.save("new.npy", rows[:, :3])
        from_table, from_array = (ask(run, f"new.{kind}") for kind in ("csv", "npy"))
        assert from_table[0] == from_array[0] == 0
        assert values(from_table[1]) == pytest.approx(values(from_array[1]), rel=1e-6)
        state = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
        model = MODELS["TwoLayerNet"](in_features=3, hidden_features=5, out_features=1)
        model.load_state_dict(state["model"])
        inputs = torch.from_numpy(rows[:, :3])
        assert values(from_array[1]) == pytest.approx(model(inputs / inputs.mean(0))[:, 0].tolist(), rel=1e-5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scaled, "prepare_input", lambda *_, **__: None)
            assert "skipped new.npy, row 0: prepare_input returned None\n" in ask(run, "new.npy")[2]
        Path("bad.csv").write_text("a,b\n1,2\n")
        assert ask(run, "bad.csv")[2] == "error: bad.csv: the table has no column 'c'; the model takes a, b, c\n"


class Series(Scaled):
    """Each file is one input, although it is a table."""

    input_suffixes = (".csv",)

    def prepare_input(self, raw: Path | Tensor | Mapping[str, str], facts: Mapping[str, Any]) -> Any:
        if isinstance(raw, Path):
            return torch.from_numpy(np.loadtxt(raw, dtype=np.float32, delimiter=",", skiprows=1)).mean(0)
        return super().prepare_input(raw, facts)


def test_a_table_may_be_one_input(fit: Fit, ask: Ask, tmp_path: Path) -> None:
    Scaled.path = tmp_path / "train.csv"
    np.savetxt(Scaled.path, np.ones((16, 4)), delimiter=",", header="a,b,c,y", comments="")
    with temporarily(DATA_LOADERS, Series):
        loader = {"type": "Series", "args": {"batch_size": 8}}
        run = fit("trainer.monitor=null", data_loader=loader, model=net(1), loss="mse_loss", metrics=[]).run_dir
        Path("one.csv").write_text("a,b,c\n1,2,3\n3,4,5\n")
        status, written, _ = ask(run, "one.csv")
    assert status == 0
    assert len(written.splitlines()) == 2, "a heading and a prediction"
    assert "row" not in written.splitlines()[0]


def test_facts_of_before_a_resume_stay(fit: Fit) -> None:
    run = fit("trainer.epochs=1").run_dir
    before = torch.load(run / "checkpoints" / "last.pth", weights_only=True)["data"]["first_batch"]
    assert before["inputs"] == {"shape": [6], "dtype": "float32"}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("base.training.saved_data._sample", lambda value: {"shape": [99], "dtype": "int8"})
        train.main(["-r", str(run), "trainer.epochs=2"])
    assert torch.load(run / "checkpoints" / "last.pth", weights_only=True)["data"]["first_batch"] == before
    assert "first_batch" in vars(SavedData)


class TwoHeads(BaseModel):
    """A class and a number of each input, and a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.linear(x)
        return {"kind": out[:, :3], "size": out[:, 3]}


class HeadsTrainer(Trainer):
    """The loss of one head; for predictions without the classes' head, in upper case."""

    supervised = False

    def train_step(self, batch: Any) -> Any:
        result = self.eval_step(batch)
        self.backward(result.loss)
        return result

    def eval_step(self, batch: Any) -> Any:
        inputs, targets = batch
        with self.autocast():
            outputs = self.model(inputs)
            loss = nn.functional.cross_entropy(outputs["kind"], targets)
        return self.result(loss, outputs, {"kind": targets})

    def result(self, loss: Tensor, outputs: Any, targets: Any) -> Any:
        from base.metric import StepResult

        return StepResult(loss, outputs, targets)


class OwnTrainer(HeadsTrainer):
    """Says itself what is predicted."""

    def predict_step(self, inputs: Any) -> Any:
        return {"doubled": 2 * self.model(inputs)["size"]}


def test_own_trainers_say_what_is_predicted(fit: Fit, ask: Ask) -> None:
    np.save("x.npy", np.ones((2, 3)))
    found = []
    with temporarily(MODELS, TwoHeads), temporarily(TRAINERS, HeadsTrainer, OwnTrainer):
        for name in ("HeadsTrainer", "OwnTrainer"):
            data = loader(num_classes=3)
            run = fit(f"trainer.type={name}", data_loader=data, model="TwoHeads", loss=None, metrics=[]).run_dir
            status, output, _ = ask(run, "x.npy")
            assert status == 0
            found.append(table(output)[0])
    plain, own = found
    assert list(plain) == ["file", "row", "kind_0", "kind_1", "kind_2", "size"]
    assert list(own) == ["file", "row", "doubled"]
    assert float(own["doubled"]) == pytest.approx(2 * float(plain["size"]), rel=1e-5)


class Parts(BaseModel):
    """Has no ``forward``, as a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(3, 1)


class PartsTrainer(HeadsTrainer):
    model: Any

    def eval_step(self, batch: Any) -> Any:
        outputs = self.model.score(batch[0])
        return self.result(outputs.square().mean(), outputs, batch[0])


class PartsPredictor(PartsTrainer):
    def predict_step(self, inputs: Any) -> Any:
        return self.model.score(inputs)


def test_a_model_of_parts_needs_a_predict_step(fit: Fit, ask: Ask) -> None:
    np.save("x.npy", np.ones((2, 3)))
    with temporarily(MODELS, Parts), temporarily(TRAINERS, PartsTrainer, PartsPredictor):
        keys: dict[str, Any] = {"data_loader": loader(num_classes=3), "model": "Parts", "loss": None, "metrics": []}
        status, output, errors = ask(fit("trainer.type=PartsTrainer", **keys).run_dir, "x.npy")
        assert (status, output) == (2, "")
        assert "define predict_step in the trainer" in errors
        status, output, _ = ask(fit("trainer.type=PartsPredictor", **keys).run_dir, "x.npy")
        assert (status, len(values(output))) == (0, 2)


class Painter(BaseModel):
    """Scores of two classes for each pixel: whether it is above a learnt level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.conv(x)  # (B, 1, H, W) -> (B, 2, H, W)
        return pixels


class Bright(BaseDataLoader):
    """Pictures, and where they are bright."""

    def training_data(self, *, augment: bool) -> TensorSource:
        pictures = torch.rand(32, 1, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return TensorSource(pictures, (pictures[:, 0] > 0).long())

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


def test_masks_are_arrays(fit: Fit, ask: Ask) -> None:
    with temporarily(MODELS, Painter), temporarily(DATA_LOADERS, Bright):
        run = fit(
            data_loader={"type": "Bright", "args": {"batch_size": 4}},
            model="Painter",
            metrics=[],
            optimizer={"type": "Adam", "args": {"lr": 0.3}},
            trainer={"epochs": 4},
        ).run_dir
        pictures = np.random.default_rng(0).uniform(-1, 1, (7, 1, 6, 8)).astype(np.float32)
        np.save("x.npy", pictures)
        status, output, errors = ask(run, "x.npy")
        assert (status, output) == (2, "")
        assert (
            "the output mask has shape (6, 8) for each input, which does not fit in a table; --out FILE.npz" in errors
        )
        assert ask(run, "x.npy", "--out", "x.npz", "--show", "x.png")[0] == 0
        assert Path("x.png").stat().st_size > 1000
        with np.load("x.npz") as arrays:
            assert sorted(arrays) == ["file", "mask", "row"]
            assert arrays["mask"].dtype == np.uint8
            assert (arrays["mask"] == (pictures[:, 0] > 0)).mean() > 0.9
            masks = arrays["mask"].tolist()
        assert [record["mask"] for record in json.loads(ask(run, "x.npy", "--json")[1])] == masks
        np.save("y.npy", np.zeros((2, 1, 3, 4), np.float32))
        status, _, errors = ask(run, "x.npy", "y.npy", "--out", "x.npz")
        assert status == 2
        assert "error: the output mask has a different size for each input; only --json can write that" in errors
        with np.load("x.npz") as arrays:
            assert len(arrays["mask"]) == 7


def test_the_examples_of_the_page(fit: Fit, ask: Ask) -> None:
    for block in blocks(ROOT / "docs" / "predict.md", "python"):
        exec(compile(block, "docs/predict.md", "exec"), {"__name__": "docs_predict"})
    try:
        run = fit(
            "trainer.type=EmbeddingTrainer",
            "trainer.epochs=1",
            data_loader={"type": "PredictableLoader", "args": {"batch_size": 10}},
            model={"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5}},
        ).run_dir
        Image.new("RGB", (40, 30), "red").save("red.png")
        status, output, _ = ask(run, "red.png")
        assert status == 0
        (row,) = table(output)
        assert list(row) == ["file", *(f"embedding_{place}" for place in range(10))]
        assert sum(float(row[f"embedding_{place}"]) ** 2 for place in range(10)) == pytest.approx(1, abs=1e-5)
    finally:
        DATA_LOADERS.unregister("PredictableLoader")
        TRAINERS.unregister("EmbeddingTrainer")


def fields(task: Task, outputs: Any, count: int = 2) -> dict[str, Any]:
    found = Interpreter(task).fields(outputs, count)
    return {each.name: each.values if isinstance(each.values, list) else each.values.tolist() for each in found}


FLOAT, INDEX = Sample([2], "float32"), Sample([], "int64")


def test_labels_that_do_not_exclude_each_other() -> None:
    task = Task({"": "BCEWithLogitsLoss"}, outputs=FLOAT, targets=FLOAT, class_names=("cat", "dog"))
    assert fields(task, torch.tensor([[9.0, 9.0], [-9.0, 9.0]]))["classes"] == [["cat", "dog"], ["dog"]]
    one = fields(task, torch.tensor([[9.0], [-9.0]]))
    assert one["class"] == ["dog", "cat"]
    given = Task({"": "BCELoss"}, outputs=FLOAT, targets=FLOAT)
    assert fields(given, torch.tensor([0.25, 0.75])) == {"class": ["0", "1"], "probability": [0.25, 0.75]}


def test_a_probability_of_a_half_is_of_the_same_class_as_in_torchmetrics() -> None:
    task = Task({"": "BCEWithLogitsLoss"}, outputs=FLOAT, targets=FLOAT, class_names=("cat", "dog"))
    half = torch.zeros(1, 1)
    assert fields(task, half, 1) == {"class": ["cat"], "probability": [0.5]}
    assert float(BinaryAccuracy()(half.sigmoid(), torch.zeros(1, 1))) == 1
    assert fields(task, torch.zeros(1, 2), 1)["classes"] == [[]]


def test_a_first_batch_that_is_not_finite_does_not_tell_what_the_outputs_are() -> None:
    """A model that ends in a softmax."""
    interpreter = Interpreter(Task({"": "cross_entropy"}, outputs=FLOAT, targets=INDEX))
    interpreter.fields(torch.tensor([[torch.nan, 0.0]]), 1)
    _, probability, _ = interpreter.fields(torch.tensor([[0.1, 0.9]]), 1)
    assert probability.values == pytest.approx([0.9])


def test_classes_are_told_from_values_by_the_training() -> None:
    outputs = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])
    of_own_loss = Task({"": "my_loss"}, outputs=FLOAT, targets=INDEX, class_names=("cat", "dog"))
    assert fields(of_own_loss, outputs)["class"] == ["dog", ""]
    regression = Task({"": "my_loss"}, outputs=FLOAT, targets=FLOAT, class_names=("cat", "dog"))
    assert list(fields(regression, outputs)) == ["value"]
    assert "class" in fields(Task({"": "CrossEntropyLoss"}), outputs)  # a run of before
    own = Task(outputs=FLOAT, targets=INDEX, supervised=False)
    assert list(fields(own, outputs)) == ["value"]
    tokens = Task({"": "cross_entropy"}, outputs=Sample([5, 7]), targets=Sample([5], "int64"))
    assert list(fields(tokens, torch.zeros(2, 5, 7))) == ["value"]


def test_several_outputs_have_a_column_each() -> None:
    targets = Sample.read({"parts": {"kind": {"shape": [], "dtype": "int64"}, "size": None}})
    assert Sample.read({"shape": 3, "highest": "x", "parts": 4}) == Sample.read(None) == Sample()
    outputs = {"kind": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "size": torch.tensor([3.0, 4.0])}
    found = fields(Task(targets=targets), outputs)
    assert (found["kind_class"], found["size"]) == (["0", "1"], [3.0, 4.0])
    assert list(fields(Task(), (torch.zeros(2), torch.zeros(2, 3)))) == ["output_0", "output_1"]
    boxes = [{"boxes": torch.full((1, 4), 0.1, dtype=dtype)} for dtype in (torch.float32, torch.float64)]
    assert fields(Task(), [*boxes, {"boxes": torch.zeros(0, 4)}], 3) == {
        "outputs": [{"boxes": [[0.1] * 4]}, {"boxes": [[0.1] * 4]}, {"boxes": []}]
    }


@pytest.mark.parametrize("outputs", [{"file": torch.zeros(2)}, {"a": {"b": torch.zeros(2)}, "a_b": torch.ones(2)}])
def test_no_two_outputs_have_the_same_column(outputs: Any) -> None:
    with pytest.raises(DataError, match=r'two columns of the predictions would be named "(file|a_b)"'):
        fields(Task(), outputs)


@pytest.mark.parametrize("outputs", [torch.zeros(()), torch.zeros(3, 2), {"a": torch.zeros(())}, "text", (), None])
def test_outputs_that_are_not_one_for_each_input_are_told(outputs: Any) -> None:
    with pytest.raises(DataError, match="define predict_step in the trainer"):
        fields(Task(), outputs)


class Pairs(BaseDataLoader):
    """Inputs of two parts, as a graph's nodes and edges."""

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        return [((row, row.sum()), row[:1]) for row in rows]  # type: ignore[return-value]

    def test_data(self) -> Dataset[Any]:
        return self.training_data(augment=False)


class OfPairs(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        rows, sums = pair
        return self.layer(torch.cat([rows, sums[:, None]], 1))  # type: ignore[no-any-return]


def test_inputs_of_several_parts_need_prepare_input(fit: Fit, ask: Ask) -> None:
    with temporarily(DATA_LOADERS, Pairs), temporarily(MODELS, OfPairs):
        run = fit(
            data_loader={"type": "Pairs", "args": {"batch_size": 8}},
            model="OfPairs",
            loss="mse_loss",
            metrics=[],
            trainer={"monitor": "min loss"},
        ).run_dir
        np.save("rows.npy", np.zeros((3, 4), np.float32))
        status, _, error = ask(run, "rows.npy")
    assert status == 2
    assert "In training, the inputs were not one tensor; define prepare_input in Pairs" in error


class Graph:
    """Nodes (N, 3) of some graphs, and the number of nodes of each."""

    def __init__(self, nodes: Tensor, sizes: list[int]) -> None:
        self.nodes, self.sizes = nodes, sizes

    def to(self, device: Any) -> "Graph":
        return Graph(self.nodes.to(device), self.sizes)


@dataclass
class Nodes:
    """As above, of one graph."""

    nodes: Tensor

    @property
    def sizes(self) -> list[int]:
        return [len(self.nodes)]


class Graphs(BaseDataLoader):
    input_suffixes = (".npy",)

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return [(torch.randn(1 + index % 3, 3), torch.ones(1)) for index in range(8)]  # type: ignore[return-value]

    def test_data(self) -> Dataset[Any]:
        return self.training_data(augment=False)

    def collate(self, samples: list[Any]) -> Any:
        graphs, targets = zip(*samples, strict=True)
        return Graph(torch.cat(graphs), [len(graph) for graph in graphs]), torch.stack(targets)

    def prepare_input(self, raw: Any, facts: Mapping[str, Any]) -> Any:
        nodes = torch.from_numpy(np.load(raw))
        return Nodes(nodes) if len(nodes) == 2 else Graph(nodes, [len(nodes)])


class OfGraphs(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, graphs: Graph | Nodes) -> Tensor:
        return torch.stack([each.sum(0) for each in self.layer(graphs.nodes).split(graphs.sizes)])  # (B, 1)


def test_objects_of_ones_own_are_predicted_one_by_one(fit: Fit, ask: Ask) -> None:
    with temporarily(DATA_LOADERS, Graphs), temporarily(MODELS, OfGraphs):
        data = {"type": "Graphs", "args": {"batch_size": 4}}
        trainer = {"monitor": "min loss"}
        run = fit(data_loader=data, model="OfGraphs", loss="mse_loss", metrics=[], trainer=trainer).run_dir
        for number, size in enumerate((1, 1, 2, 2, 4)):
            np.save(f"{number}.npy", np.full((size, 3), number, np.float32))
        status, output, _ = ask(run, *(f"{number}.npy" for number in range(5)))
    layer = torch.load(run / "checkpoints/best.pth")["model"]
    bias, slope = float(layer["layer.bias"]), float(layer["layer.weight"].sum())
    assert status == 0
    assert values(output) == pytest.approx(
        [size * (bias + n * slope) for n, size in enumerate((1, 1, 2, 2, 4))], rel=1e-4
    )


def test_a_table_is_the_same_however_many_rows_are_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [(f"{number}.npy", number or None) for number in range(5)]
    fields = [Field("class", list("abcde")), Field("value", np.arange(10).reshape(5, 2), ["left", "right"])]
    tables = []
    for block in (4096, 2):
        monkeypatch.setattr(writing, "BLOCK", block)
        write(tmp_path / "out.csv", sources, fields, as_json=False)
        tables.append((tmp_path / "out.csv").read_text())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 6
