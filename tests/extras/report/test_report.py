"""What test.py leaves in a run's folder."""

import base64
import contextlib
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import train
from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.data.sources import TensorSource
from base.metric import StepResult
from data_loader.random_tensor import RandomTensorLoader
from extras.document import Paragraph, Source, as_markdown, escaped, markdown_table
from extras.report.description import component, memorised
from extras.report.evaluation_report import Predictions
from extras.report.statistics import Classification
from tests.conftest import load_script
from tests.helpers import Fit, curves, lines, needs_extra, temporarily
from trainer.trainer import Trainer
from utils import cli, files
from utils.distributed.process_group import ProcessGroup
from utils.errors import DataError, UserError
from utils.registry import DATA_LOADERS, LOSSES, MODELS, TRAINERS
from utils.run_folder import RunFolder
from utils.schema import Component

pytestmark = pytest.mark.slow

test = load_script("test")

IMAGES = {"input_shape": [3, 8, 8], "batch_size": 8, "num_samples": 24, "num_test_samples": 20}
LINEAR = {"input_shape": [6], "batch_size": 8, "num_samples": 24, "num_test_samples": 20}


def loader(**arguments: Any) -> dict[str, Any]:
    return {"type": "RandomTensorLoader", "args": arguments}


def net(inputs: int, outputs: int) -> dict[str, Any]:
    return {"type": "TwoLayerNet", "args": {"in_features": inputs, "hidden_features": 5, "out_features": outputs}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "events")))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sound(folder: Path) -> str:
    """report.md, all of whose links lead to files and whose tables have straight edges."""
    text = (folder / "report.md").read_text()
    links = re.findall(r"\]\((.*?)\)", text)
    assert links
    for link in links:
        assert (folder / link).is_file(), link
    for block in text.split("\n\n"):
        if block.startswith("|") and block.isascii():
            assert len({len(line) for line in block.splitlines()}) == 1
    return text


@pytest.fixture
def other(fit: Fit) -> Path:
    """Neither a classification nor a regression: its report has no pictures, which take most of the time."""
    data = loader(**LINEAR, target_shape=[3])
    return fit(data_loader=data, model=net(6, 3), loss="SoftMarginLoss", metrics=[]).run_dir


@pytest.fixture
def run(fit: Fit) -> Path:
    return fit("trainer.epochs=1").run_dir


@pytest.mark.usefixtures("report_pictures")
def test_a_classification(fit: Fit) -> None:
    run = fit(data_loader=loader(**IMAGES, num_classes=3), model=net(192, 3)).run_dir
    values = test.main(["-r", str(run)])
    folder = run / "test"
    pictures = ["calibration.png", "confusion_matrix.png", "curves.png", "mistakes.png"]
    reports = ["report.html", "report.md"]
    assert names(folder) == [*pictures[:3], "metrics.json", "mistakes.png", "predictions.csv", *reports]
    found = json.loads((folder / "metrics.json").read_text())
    assert found["accuracy"] == values["accuracy"]
    assert 0 <= found["expected_calibration_error"] <= 1
    table = rows(folder)
    assert [row["index"] for row in table] == [str(index) for index in range(20)]
    right = sum(row["true"] == row["predicted"] for row in table)
    assert right / 20 == pytest.approx(values["accuracy"])
    for row in table:
        chances = {name: float(row[f"p_{name}"]) for name in "012"}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert max(chances, key=chances.__getitem__) == row["predicted"]
    text = sound(folder)
    assert text.startswith("# Test of small/")
    assert all(f"({name})" in text for name in pictures)
    support = [sum(row["true"] == name for row in table) for name in "012"]
    assert [int(count) for count in re.findall(r"^\| \d .*\| +(\d+) \|$", text, flags=re.MULTILINE)[:3]] == support


def test_mistakes_without_pictures_are_a_table(run: Path) -> None:
    test.main(["-r", str(run)])
    assert "mistakes.png" not in names(run / "test")
    assert "| predicted | true" in sound(run / "test")


def test_a_classifier_that_predicts_one_class_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Trainer.eval_step

    def one_class(self: Trainer, batch: Any) -> StepResult:
        result = evaluate(self, batch)
        result.outputs[:, 2] = 100.0
        return result

    monkeypatch.setattr(Trainer, "eval_step", one_class)
    test.main(["-r", str(run)])
    assert "\n**The model predicts 2 for every sample.**\n" in (run / "test" / "report.md").read_text()


@pytest.mark.usefixtures("report_pictures")
@pytest.mark.parametrize("width", [1, 4])
def test_a_regression(fit: Fit, width: int) -> None:
    data = loader(**LINEAR, target_shape=[width])
    run = fit(data_loader=data, model=net(6, width), loss="mse_loss", metrics=["mean_absolute_error"]).run_dir
    values = test.main(["-r", str(run)])
    folder = run / "test"
    reports = ["report.html", "report.md"]
    assert names(folder) == ["curves.png", "metrics.json", "predictions.csv", *reports, "residuals.png", "scatter.png"]
    assert json.loads((folder / "metrics.json").read_text())["r2"] < 1
    ends = [""] if width == 1 else [f"_{place}" for place in range(width)]
    residuals = [float(row[f"predicted{end}"]) - float(row[f"true{end}"]) for row in rows(folder) for end in ends]
    assert len(residuals) == 20 * width
    assert sum(map(abs, residuals)) / len(residuals) == pytest.approx(values["mean_absolute_error"], rel=1e-5)
    assert f"of {20 * width} values" in sound(folder)


def test_a_task_of_another_kind_has_its_metrics(other: Path) -> None:
    test.main(["-r", str(other)])
    assert names(other / "test") == ["curves.png", "metrics.json", "report.html", "report.md"]
    assert "No figures: " in (other / "test" / "report.md").read_text()


def test_what_an_older_report_had_and_this_one_has_not_is_removed(run: Path) -> None:
    folder = run / "test"
    folder.mkdir()
    for name in ("scatter.png", "mistakes.png", ".predictions.csv.tmp", "notes.txt"):
        (folder / name).touch()
    test.main(["-r", str(run)])
    assert names(folder) == [
        "calibration.png", "confusion_matrix.png", "curves.png", "metrics.json", "notes.txt", "predictions.csv",
        "report.html", "report.md",
    ]  # fmt: skip
    assert not list(folder.glob(".*.tmp"))


def test_an_evaluation_that_fails_leaves_the_older_report_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test.main(["-r", str(run)])
    before = {path.name: path.read_bytes() for path in (run / "test").iterdir()}
    original, calls = BaseTrainer.evaluate, []

    def evaluate(self: BaseTrainer, batches: Any, view: Any) -> Any:
        class Failing(type(batches)):  # type: ignore[misc]
            def one_pass(self) -> Any:
                for pair in super().one_pass():
                    calls.append(pair)
                    if len(calls) == 2:
                        raise OSError("the data are gone")
                    yield pair

        batches.__class__ = Failing
        return original(self, batches, view)

    monkeypatch.setattr(BaseTrainer, "evaluate", evaluate)
    with pytest.raises(OSError, match="the data are gone"):
        test.main(["-r", str(run)])
    assert {path.name: path.read_bytes() for path in (run / "test").iterdir()} == before


@pytest.mark.parametrize("name", ["curves.png", "metrics.json", "predictions.csv"])
def test_a_full_disk_leaves_the_older_report_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """All of it: no new picture beside old numbers."""
    test.main(["-r", str(run)])
    before = {path.name: path.read_bytes() for path in (run / "test").iterdir()}
    original = files.atomic_write

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            """Nothing is waiting."""

    @contextlib.contextmanager
    def write(path: Path) -> Iterator[Any]:
        with original(path) as file:
            yield Full() if path.name == name else file

    monkeypatch.setattr("utils.run_folder.atomic_write", write)
    last = run / "checkpoints" / "last.pth"
    assert cli.run(test.main, ["-r", str(last), "data_loader.args.eval_batch_size=3"]) == 2
    assert f"{name}: No space left on device; make room" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (run / "test").iterdir()} == before


def test_one_test_of_a_run_at_a_time(run: Path) -> None:
    (run / "test").mkdir()
    with RunFolder(run / "test").locked(), pytest.raises(UserError, match=r"test is in use: .* writes a report"):
        test.main(["-r", str(run)])


def test_a_run_is_tested_while_it_is_trained(other: Path) -> None:
    with RunFolder(other).locked():
        assert test.main(["-r", str(other)])["loss"] > 0


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_shows_a_test_as_one_point_of_the_run(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.epochs=2").run_dir
    before = curves(run)
    for _ in range(3):
        values = test.main(["-r", str(run)])
    shown = {tag: points for tag, points in curves(run).items() if tag.endswith("/test")}
    assert [step for step, _ in shown["loss/test"]] == [10]
    assert shown["accuracy/test"][0][1] == pytest.approx(values["accuracy"])
    assert not list((run / "test").glob("events*")), "or TensorBoard would show another run"
    assert curves(run) == before | shown
    train.main(["-r", str(run), "trainer.epochs=3"])
    assert [step for step, _ in curves(run)["loss/train"]] == [5, 10, 15]
    assert curves(run)["loss/test"] == shown["loss/test"]
    assert "logs" not in capsys.readouterr().err


def test_without_tensorboard_there_is_no_event_file(other: Path) -> None:
    test.main(["-r", str(other)])
    assert not list(other.rglob("events*"))


def test_a_report_elsewhere_and_never_among_others_files(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_size for path in run.rglob("*")}
    for _ in range(2):
        test.main(["-r", str(run), "--out", str(tmp_path / "new" / "report")])
    sound(tmp_path / "new" / "report")
    assert cli.run(test.main, ["-r", str(run), "--out", str(run)]) == 2
    assert {path: path.stat().st_size for path in run.rglob("*")} == before


@pytest.mark.usefixtures("report_pictures")
def test_names_of_every_kind(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["고양이", "a/b|c", "=1+1", 'a,"b"', "two\nlines"]
    monkeypatch.setattr(RandomTensorLoader, "class_names", kinds)
    run = fit(data_loader=loader(**LINEAR, num_classes=5), model=net(6, 5)).run_dir
    test.main(["-r", str(run)])
    table = rows(run / "test")
    safe = [f"'{name}" if name.startswith("=") else name for name in kinds]
    assert {row["true"] for row in table} <= set(safe)
    assert list(table[0])[3:] == [f"p_{name}" for name in kinds]
    text = sound(run / "test")
    assert "| 고양이 " in text
    assert "a/b\\|c" in text


@pytest.mark.usefixtures("report_pictures")
@pytest.mark.parametrize("classes", [1, 100, 101])
def test_few_and_many_classes(fit: Fit, classes: int) -> None:
    run = fit("metrics=[]", data_loader=loader(**LINEAR, num_classes=classes), model=net(6, classes)).run_dir
    test.main(["-r", str(run)])
    chances = [name for name in rows(run / "test")[0] if name.startswith("p_")]
    assert chances == ([f"p_{name}" for name in range(classes)] if classes <= 100 else ["p_true", "p_predicted"])
    assert f"| {classes - 1} " in sound(run / "test")


@pytest.mark.usefixtures("report_pictures")
@pytest.mark.parametrize("channels", [1, 16])
def test_images_of_any_channels(fit: Fit, channels: int) -> None:
    data = loader(**{**IMAGES, "input_shape": [channels, 8, 8]}, num_classes=3)
    run = fit(data_loader=data, model=net(64 * channels, 3)).run_dir
    test.main(["-r", str(run)])
    assert "mistakes.png" in names(run / "test")


def test_what_a_loader_gives_for_pictures_is_checked(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(data_loader=loader(**IMAGES, num_classes=3), model=net(192, 3)).run_dir
    monkeypatch.setattr(RandomTensorLoader, "pictures", lambda self, inputs: inputs)
    with pytest.raises(DataError, match=r"RandomTensorLoader.pictures returns \(\d+, 3, 8, 8\) float32; expected"):
        test.main(["-r", str(run)])


def test_an_empty_test_set_is_reported_and_nothing_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = TensorSource(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
    monkeypatch.setattr(RandomTensorLoader, "test_data", lambda self: empty)
    with pytest.raises(DataError, match="the test data is empty"):
        test.main(["-r", str(run)])
    assert not (run / "test").exists()


@pytest.mark.usefixtures("tensorboard")
def test_a_foreign_event_file_is_no_trouble(other: Path) -> None:
    for folder in (other, other / "test"):
        folder.mkdir(exist_ok=True)
        (folder / "events.out.tfevents.1700000000.elsewhere").write_bytes(b"garbage" * 99)
        (folder / "events.out.tfevents.of-mine").write_bytes(b"mine")
    test.main(["-r", str(other)])
    assert (other / "test" / "events.out.tfevents.of-mine").read_bytes() == b"mine"
    assert len(curves(other)["loss/test"]) == 1


def test_values_that_are_not_numbers_are_null(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.two_layer_net.TwoLayerNet.forward", lambda self, x: x[:, :3] * float("nan"))
    test.main(["-r", str(run)])
    assert '"loss": null' in (run / "test" / "metrics.json").read_text()
    assert lines(run)[-1]["epoch"] == 1


@pytest.mark.parametrize("name", ["report.md", "predictions.csv", ".lock"])
def test_a_link_leads_nothing_out_of_the_folder(run: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (run / "test").mkdir()
    (run / "test" / name).symlink_to(precious)
    refused = pytest.raises(UserError, match="but a link or something else")
    with refused if name == ".lock" else contextlib.nullcontext():
        test.main(["-r", str(run)])
    assert precious.read_text() == "precious"


def test_the_folder_of_reports_is_not_a_link(run: Path, tmp_path: Path) -> None:
    (run / "test").symlink_to(tmp_path)
    with pytest.raises(UserError, match="test is a link"):
        test.main(["-r", str(run)])
    assert not list(tmp_path.glob("report*"))


def test_markdown_shows_names_as_they_are() -> None:
    assert escaped("top_k a|b $x$ __init__ a*b*") == r"top_k a\|b \$x\$ \_\_init\_\_ a\*b\*"
    lines = markdown_table(["name", "n"], [["고양이", "1"], ["cat", "22"]], right=[1])
    assert lines == ["| name   |   n |", "| ------ | --: |", "| 고양이 |   1 |", "| cat    |  22 |"]


def test_links_lead_to_files_of_any_name() -> None:
    written = as_markdown([Source("config", "", "../my run (2)/config.json"), Paragraph("All:", link="a b.csv")])
    assert "(../my%20run%20%282%29/config.json)" in written
    assert "[a b.csv](a%20b.csv)" in written


def test_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    numbers = torch.tensor([1700000123.5, 0.1, math.nan], dtype=torch.float64)
    written = []
    for outputs, targets in ((numbers, torch.tensor([1700000123, 7, -8])), (numbers.float(), numbers.float())):
        predictions = Predictions(ProcessGroup())
        predictions.add_numbers(0, outputs, targets)
        (tmp_path / "predictions.csv").write_bytes(b"".join(predictions.parts))
        written.append([(row["true"], row["predicted"]) for row in rows(tmp_path)])
    assert written[0] == [("1700000123", "1700000123.5"), ("7", "0.1"), ("-8", "nan")]
    assert written[1] == [("1.70000013e+09",) * 2, ("0.100000001",) * 2, ("nan",) * 2]


def test_the_head_says_what_was_tested(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train.main(
        ["-c", str(fit("trainer.epochs=1").run_dir / "config.json"), "--note", "wider <b>\x1b[2J|*"]
    ).run_dir
    monkeypatch.setattr("sys.argv", ["test.py", "-r", str(run), "runtime.device=cpu"])
    test.main()
    text = sound(run / "test")
    head = dict(re.findall(r"^\| ([a-z ]+?) +\| (.*?) +\|$", text.split("config: ")[0], flags=re.MULTILINE))
    assert head["note"] == r"wider \<b\>\\x1b\[2J\|\*"
    assert head["checkpoint"] == "last.pth: epoch 1, step 5"
    assert head["test data"].startswith("RandomTensorLoader(")
    assert head["test data"].endswith("): 20 samples")
    assert head["model"] == "TwoLayerNet(in_features=6, hidden_features=5, out_features=3): 53 trainable parameters"
    assert (head["loss"], head["optimizer"]) == ("cross_entropy", "SGD(lr=0.1)")
    assert head["command"].endswith(f"test.py -r {run} runtime.device=cpu")
    assert json.loads((run / "test/metrics.json").read_text())["overrides"] == ["runtime.device=cpu"]
    assert re.fullmatch(r"[\d-]{10} [\d:]{8} on cpu", head["trained"])
    assert re.fullmatch(r"[\d-]{10} [\d:]{8}", head["tested"])
    assert "[../config.json](../config.json)" in text


class Parsed(HTMLParser):
    """Counts the tags of a page and collects its text, its pictures and its links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.sources, self.open = Counter[str](), "", list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.sources += [str(value) for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("report_pictures")
def test_the_page_needs_no_other_file_and_shows_names_as_they_are(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [
        "</td><script>alert(1)</script>",
        "고양이",
        '<img src=x onerror="a">',
        "a|b_c_",
        "\x1b]0;title\x07",
        "\udcff&amp;",
    ]
    monkeypatch.setattr(RandomTensorLoader, "class_names", kinds)
    run = fit(data_loader=loader(**IMAGES, num_classes=6), model=net(192, 6)).run_dir
    test.main(["-r", str(run)])
    folder = run / "test"
    page = Parsed((folder / "report.html").read_text())
    assert not page.open
    assert page.tags["script"] == 0
    pictures = [source for source in page.sources if source.startswith("data:image/png;base64,")]
    assert len(pictures) == page.tags["img"] == 4
    assert base64.b64decode(pictures[0].partition(",")[2]) == (folder / "confusion_matrix.png").read_bytes()
    assert set(page.sources) - set(pictures) == {"predictions.csv"}
    shown = [*kinds[:4], "\\x1b]0;title\\x07", "\\udcff&amp;"]
    assert all(name in page.text for name in shown)
    assert '"hidden_features": 5' in page.text, "the config"
    for name in ("report.html", "report.md", "predictions.csv"):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", (folder / name).read_text()), name
    assert {row["true"] for row in rows(folder)} <= set(shown)
    sound(folder)


def test_a_regression_that_memorised_its_data_says_so(fit: Fit) -> None:
    data = loader(**{**LINEAR, "input_shape": [60]}, target_shape=[1])
    memorised: dict[str, Any] = {
        "data_loader": data,
        "model": net(60, 1),
        "loss": "mse_loss",
        "metrics": [],
        "validation": None,
    }
    run = fit(
        "trainer.epochs=200",
        "data_loader.args.batch_size=24",
        optimizer={"type": "SGD", "args": {"lr": 0.1}},
        **memorised,
    ).run_dir
    test.main(["-r", str(run)])
    text = sound(run / "test")
    assert "**The model has memorised its training data. The training loss is " in text
    assert re.search(r"R² is -?[\d.]+ on the test data, where always predicting the mean", text)
    row = re.search(r"^\| loss +\| +([\d.e-]+) \| +- \| +([\d.e-]+) \|$", text, flags=re.MULTILINE)
    assert row is not None
    assert float(row[1]) * 10 < float(row[2])
    assert "memorised" in Parsed((run / "test" / "report.html").read_text()).text
    early = fit("trainer.epochs=1", **memorised).run_dir
    test.main(["-r", str(early)])
    assert "memorised" not in sound(early / "test")


def test_a_regression_that_learnt_does_not_say_that_it_memorised(fit: Fit) -> None:
    data = loader(**LINEAR, linear=[1.0, -2.0, 0.0, 0.0, 3.0, 0.0])
    linear = {"type": "LinearRegression", "args": {"in_features": 6}}
    sums = {"type": "mse_loss", "args": {"reduction": "sum"}}
    run = fit(
        "trainer.epochs=30", "optimizer.args.lr=0.01", data_loader=data, model=linear, loss=sums, metrics=[]
    ).run_dir
    test.main(["-r", str(run)])
    text = sound(run / "test")
    assert "memorised" not in text
    assert "The loss is a sum: over a step in training, over all samples otherwise." in text


@pytest.mark.parametrize(("loss", "notes"), [(9.0, 0), (11.0, 1), (math.inf, 0), (math.nan, 0)])
def test_only_a_finite_loss_tells_of_memorising(loss: float, notes: int) -> None:
    tested: Any = SimpleNamespace(epoch=lambda: {"loss": 1.0}, about={"samples": 2})
    found = Classification(2)
    found.add(0, torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
    assert len(list(memorised(tested, loss, sum_loss=False, found=found))) == notes


def test_without_the_curves_extra_the_report_has_no_curves(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extras.report.evaluation_report.find_extra", lambda folder: None)
    test.main(["-r", str(run)])
    assert "curves.png" not in sound(run / "test")
    assert "| accuracy | " in sound(run / "test"), "training beside the test"


def test_a_component_shows_names_in_their_own_letters() -> None:
    assert component(Component(type="Loader", args={"names": ["고양이"]})) == 'Loader(names=["고양이"])'


def test_texts_are_not_markup_at_the_start_of_a_line() -> None:
    assert escaped("- one") == r"\- one"
    assert escaped("1. one & <b>") == r"1\. one \& \<b\>"
    assert escaped("R² is -0.5 (no _ or 1.5)") == r"R² is -0.5 (no \_ or 1.5)"


class PerNode(Trainer):
    """Evaluates two nodes of each sample, from some batch on."""

    first = 0

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        self.first -= 1
        if self.first >= 0:
            return result
        return StepResult(result.loss, result.outputs.repeat(2, 1), result.targets.repeat(2))


class NamedLoader(RandomTensorLoader):
    def test_names(self) -> list[str]:
        return [f"molecule-{number}" for number in range(20)]


@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_are_not_samples_get_no_names_of_samples(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(PerNode, "first", first)
    keys = {"data_loader": {"type": "NamedLoader", "args": {**LINEAR, "num_classes": 3}}, "model": net(6, 3)}
    with temporarily(TRAINERS, PerNode), temporarily(DATA_LOADERS, NamedLoader):
        run = fit("trainer.type=PerNode", "trainer.epochs=1", loss="cross_entropy", metrics=[], **keys).run_dir
        test.main(["-r", str(run)])
    text = (run / "test/report.md").read_text()
    assert "molecule" not in text
    assert "| predicted | true | probability |\n" in text
    assert "The rows of the outputs are not samples" in text
    assert re.search(rf"mean over classes .* {40 - 8 * first} \|", text)
    assert not (run / "test/predictions.csv").exists()


class Padded(BaseDataLoader):
    """Sequences of one to four numbers, padded to the longest in each batch."""

    def training_data(self, *, augment: bool) -> list[Tensor]:  # type: ignore[override]
        return [torch.ones(1 + index // 8) for index in range(32)]

    def test_data(self) -> list[Tensor]:  # type: ignore[override]
        return self.training_data(augment=False)

    def collate(self, samples: list[Tensor]) -> tuple[Tensor, Tensor]:
        inputs = pad_sequence(samples, batch_first=True)  # (B, T)
        return inputs, 2 * inputs


class Factor(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.usefixtures("report_pictures")
def test_sequences_of_different_lengths_have_their_metrics(fit: Fit) -> None:
    data = {"type": "Padded", "args": {"batch_size": 8, "validation_split": 24}}
    with temporarily(DATA_LOADERS, Padded), temporarily(MODELS, Factor):
        run = fit(data_loader=data, model="Factor", loss="mse_loss", metrics=["mean_absolute_error"]).run_dir
        values = test.main(["-r", str(run)])
    assert values.keys() == {"loss", "mean_absolute_error"}
    assert names(run / "test") == ["curves.png", "metrics.json", "report.html", "report.md"]
    assert "No figures: " in sound(run / "test")


class TwoClasses(BaseDataLoader):
    """Targets of 0 and 1 as floats of shape (B, 1), which the sign of the first input decides."""

    def training_data(self, *, augment: bool) -> TensorSource:
        inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        return TensorSource(inputs, (inputs[:, :1] > 0).float())

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


@pytest.mark.parametrize("loss", ["BCEWithLogitsLoss", "BCELoss"])
def test_one_output_for_two_classes_is_a_classification(fit: Fit, loss: str) -> None:
    class Certain(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            outputs = self.scale * x[:, :1]
            return outputs.sigmoid() if loss == "BCELoss" else outputs

    with temporarily(DATA_LOADERS, TwoClasses), temporarily(MODELS, Certain):
        keys = {"data_loader": {"type": "TwoClasses", "args": {"batch_size": 16}}, "model": "Certain", "loss": loss}
        run = fit("--lr=1e-9", "trainer.epochs=1", "trainer.monitor=null", metrics=[], **keys).run_dir
        test.main(["-r", str(run)])
    text = sound(run / "test")
    assert "confusion" in text
    rows = list(csv.DictReader((run / "test/predictions.csv").read_text().splitlines()))
    assert len(rows) == 40
    inputs = TwoClasses(batch_size=16).test_data().inputs
    assert isinstance(inputs, Tensor)
    for row, first in zip(rows, inputs[:, 0].tolist(), strict=True):
        assert row["true"] == row["predicted"] == str(int(first > 0))
        assert float(row["p_1"]) == pytest.approx(1 / (1 + math.exp(-2 * first)), abs=1e-5)
        assert float(row["p_0"]) + float(row["p_1"]) == pytest.approx(1, abs=1e-5)


class Counts(BaseDataLoader):
    """Targets are counts, of which those of the first batches are 0 and 1."""

    def training_data(self, *, augment: bool) -> TensorSource:
        inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        return TensorSource(inputs, torch.arange(40) // 4 % 8)

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


def of_counts(outputs: Tensor, targets: Tensor) -> Tensor:
    mean, log_variance = outputs.unbind(1)  # (B, 2)
    return ((targets - mean).square() * (-log_variance).exp() + log_variance).mean()


@needs_extra("predict")
def test_two_numbers_for_a_count_are_not_two_classes(fit: Fit, tmp_path: Path) -> None:
    with temporarily(DATA_LOADERS, Counts), temporarily(LOSSES, of_counts):
        data = {"type": "Counts", "args": {"batch_size": 20, "eval_batch_size": 4}}
        model = {"args": {"in_features": 6, "hidden_features": 5, "out_features": 2}}
        keys = {"data_loader": data, "model": model, "loss": "of_counts", "metrics": []}
        run = fit("trainer.epochs=1", "trainer.monitor=null", **keys).run_dir
        values = test.main(["-r", str(run)])
        np.save(tmp_path / "inputs.npy", np.zeros((3, 6), np.float32))
        load_script("predict").main(["-r", str(run), str(tmp_path / "inputs.npy"), "--out", str(tmp_path / "out.csv")])
    assert values.keys() == {"loss"}
    assert "No figures: " in sound(run / "test")
    assert not (run / "test/predictions.csv").exists()
    assert not (run / "test/confusion_matrix.png").exists()
    assert "class" not in (tmp_path / "out.csv").read_text()


class Broken(TwoClasses):
    """The first test input is missing."""

    def training_data(self, *, augment: bool) -> TensorSource:
        source = super().training_data(augment=augment)
        assert isinstance(source.targets, Tensor)
        return TensorSource(source.inputs, source.targets[:, 0].long())

    def test_data(self) -> TensorSource:
        source = self.training_data(augment=False)
        assert isinstance(source.inputs, Tensor)
        source.inputs[0] = math.nan
        return source


class Softmax(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = torch.stack([-self.scale * x[:, 0], self.scale * x[:, 0]], 1).softmax(1)
        return outputs


def test_a_sample_that_is_not_finite_changes_no_other(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(DATA_LOADERS, Broken), temporarily(MODELS, Softmax):
        keys = {"data_loader": {"type": "Broken", "args": {"batch_size": 16}}, "model": "Softmax"}
        run = fit("--lr=1e-9", "trainer.epochs=1", "trainer.monitor=null", loss="cross_entropy", metrics=[], **keys)
        test.main(["-r", str(run.run_dir)])
    text = sound(run.run_dir / "test")
    assert "1 sample is not finite in the outputs, and left out of what follows." in text
    assert "nan" not in text.lower()  # in every table, a dash
    assert "nan" in capsys.readouterr().out  # the console shows what was computed
    assert re.search(r"\| loss +\| +- \|", text)
    assert re.search(r"\| loss +\| .* \| +- \| +- \|", text)
    first, second, *_ = csv.DictReader((run.run_dir / "test/predictions.csv").read_text().splitlines())
    assert (first["predicted"], first["p_0"]) == ("", "nan")
    inputs = Broken(batch_size=16).test_data().inputs
    assert isinstance(inputs, Tensor)
    assert float(second["p_1"]) == pytest.approx(1 / (1 + math.exp(-4 * float(inputs[1, 0]))), abs=1e-5)
