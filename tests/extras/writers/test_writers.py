"""The writers beside TensorBoard: each step once over kills and resumes, and none that could end a run."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import train
from base.build import build_experiment
from base.outputs import build_outputs
from extras.writers import delivery
from extras.writers.delivery import Delivery, Entry, Service
from logger import RunInfo, Writer
from tests.helpers import ROOT, Fit, blocks, lines, own_components, temporarily
from tests.utils.checkpoint.test_exactness import killed_in
from trainer.trainer import Trainer
from utils import cli
from utils.config import load_config
from utils.distributed.process_group import ProcessGroup
from utils.errors import UserError
from utils.registry import TRAINERS, WRITERS
from utils.run_folder import RunFolder

OFTEN = ("trainer.epochs=3", "trainer.log_every_steps=1", "trainer.save_every_steps=3")


def killed_and_resumed(fit: Fit, tmp_path: Path, *overrides: str) -> Path:
    """A run that is killed two steps after a checkpoint, twice, and then finishes."""
    with killed_in("optimizer_step", calls=9):
        fit(*OFTEN, *overrides, name="killed")
    run = RunFolder.newest(str(tmp_path / "saved"), "killed").path
    with killed_in("optimizer_step", calls=3, saves=False):
        train.main(["-r", str(run)])
    train.main(["-r", str(run)])
    return run


# ------------------------------------------------------------------ csv


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    return [
        {key: value for key, value in row.items() if key not in ("samples_per_second", "seconds")}
        for row in read
        if row.get("name") != "samples_per_second"
    ]


def test_csv_has_each_epoch_and_each_point_once(fit: Fit, tmp_path: Path) -> None:
    whole = fit(*OFTEN, 'trainer.writers=["csv"]', "trainer.tensorboard=null").run_dir
    killed = killed_and_resumed(fit, tmp_path, 'trainer.writers=["csv"]')
    assert not list(whole.glob("events*")), "TensorBoard is not among the writers"
    for run in (whole, killed):
        assert rows(run / "metrics.csv") == [{key: str(value) for key, value in row.items()} for row in lines(run)]
    assert rows(killed / "steps.csv") == rows(whole / "steps.csv")
    points = [(row["step"], row["name"]) for row in rows(killed / "steps.csv")]
    assert len(points) == len({*points}) > 30


def test_a_metric_that_is_added_later_is_a_new_column(fit: Fit) -> None:
    run = fit('trainer.writers=["csv"]', "trainer.epochs=1", "metrics=[]").run_dir
    train.main(["-r", str(run), "trainer.epochs=2", 'metrics=["accuracy"]'])
    first, second = rows(run / "metrics.csv")
    assert (first["accuracy"], float(second["accuracy"]) >= 0) == ("", True)


def test_a_writer_that_is_switched_on_and_off_keeps_what_it_has(fit: Fit) -> None:
    run = fit('trainer.writers=["csv"]', "trainer.epochs=1").run_dir
    train.main(["-r", str(run), "trainer.epochs=2", "trainer.writers=[]"])
    train.main(["-r", str(run), "trainer.epochs=3", 'trainer.writers=["csv"]'])
    assert [row["epoch"] for row in rows(run / "metrics.csv")] == ["1", "3"]


# ------------------------------------------------------------------ a service


class Recorded(Service):
    """Keeps what each run of a service has got."""

    def __init__(self) -> None:
        self.runs: list[list[Entry]] = []
        self.refusals = 0
        self.closed: list[bool] = []

    def open(self, run: RunInfo, known: str | None) -> str:
        if known is None:
            self.runs.append([])
        self.now = len(self.runs) - 1 if known is None else int(known)
        return str(self.now)

    def send(self, entries: list[tuple[Entry, Tensor | None]]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("nobody answers")
        self.runs[self.now] += [entry for entry, _ in entries]

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)

    def values(self, run: int = -1) -> list[tuple[int, Any]]:
        """What a run has but for figures of time: the step, and what was logged."""
        found = []
        for entry in self.runs[run]:
            kept = {key: value for key, value in entry.get("values", {}).items() if key != "samples_per_second"}
            found.append((entry["step"], kept or entry.get("image") or entry["text"]))
        return found


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """Of the writer "recorded", which waits for nothing between two batches."""
    made = Recorded()

    def recorded(run: RunInfo) -> Writer:
        return Delivery("recorded", run, made)

    monkeypatch.setattr(delivery, "PAUSE", 0)
    monkeypatch.setattr(delivery, "RETRY", 0)
    with temporarily(WRITERS, recorded):
        yield made


TO_SERVICE = 'trainer.writers=["recorded"]'


def test_a_service_gets_each_point_once(fit: Fit, tmp_path: Path, service: Recorded) -> None:
    fit(*OFTEN, TO_SERVICE)
    killed_and_resumed(fit, tmp_path, TO_SERVICE)
    whole, killed = service.values(0), service.values(1)
    assert len(service.runs) == 2, "resumed in the same run"
    assert killed == whole
    assert {step for step, _ in whole} == set(range(1, 16))
    assert {"loss/step", "learning_rate", "gradient_norm"} <= {name for _, values in whole for name in values}
    assert service.closed == [True, False, True]  # the second kill came before anything new


def test_a_run_that_takes_another_course_is_a_new_run_there(fit: Fit, service: Recorded) -> None:
    run = fit(*OFTEN, TO_SERVICE, "trainer.keep_last=null").run_dir
    train.main(["-r", str(run / "checkpoints" / "step-00000006.pth"), "optimizer.args.lr=0.5"])
    assert len(service.runs) == 2
    first, second = service.values(0), service.values(1)
    same = [entry for entry in second if entry[0] <= 6]
    assert same == [entry for entry in first if entry[0] <= 6]
    assert [step for step, _ in first] == [step for step, _ in second]
    assert first != second
    train.main(["-r", str(run), "trainer.epochs=4"])
    assert service.values(1)[: len(second)] == second, "and that one is continued"
    assert max(step for step, _ in service.values(1)) == 20


@pytest.mark.slow
def test_a_service_that_does_not_answer_costs_one_warning(
    fit: Fit, service: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    service.refusals = 10**9
    run = fit(*OFTEN, TO_SERVICE).run_dir
    said = [line for line in capsys.readouterr().err.splitlines() if "recorded" in line]
    assert ["ConnectionError: nobody answers" in said[0], "did not get" in said[-1], len(said)] == [True, True, 2]
    assert service.values() == []
    service.refusals = 0
    train.main(["-r", str(run)])  # at its end already
    assert len(lines(run)) == 3
    assert {step for step, _ in service.values()} == set(range(1, 16))


def test_what_a_service_missed_comes_when_it_answers_again(fit: Fit, service: Recorded) -> None:
    service.refusals = 1
    fit(*OFTEN, TO_SERVICE)
    assert {step for step, _ in service.values()} == set(range(1, 16))


def test_pictures_and_texts_are_sent_once(tmp_path: Path, service: Recorded) -> None:
    def deliver(state: Mapping[str, Any] | None) -> Mapping[str, Any]:
        writer = Delivery("recorded", RunInfo(tmp_path, "x", {}, print), service)
        if state is not None:
            writer.resume(state, step=1)
        before = writer.state_dict()
        writer.images(2, "samples", torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
        writer.text(2, "said", "hello")
        writer.close(finished=True)
        return before

    state = deliver(None)
    deliver({**state, "entries": 0})
    assert service.values() == [(2, "samples"), (2, "hello")]


def test_a_journal_that_a_kill_cut_short_is_whole_again(tmp_path: Path, service: Recorded) -> None:
    writer = Delivery("recorded", RunInfo(tmp_path, "x", {}, print), service)
    writer.scalars(1, {"loss": 1.0})
    state = writer.state_dict()
    writer.close(finished=False)
    with (tmp_path / "recorded.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "val')
    again = Delivery("recorded", RunInfo(tmp_path, "x", {}, print), service)
    assert again.resume(state, step=1) == ""
    again.scalars(2, {"loss": 0.5})
    again.close(finished=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "recorded.jsonl").read_text().splitlines()] == [1, 2]
    assert service.values() == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]


def test_what_a_full_disk_delays_is_sent_once(
    tmp_path: Path, service: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    writer = Delivery("recorded", RunInfo(tmp_path, "x", {}, print), service)
    with monkeypatch.context() as patch:
        patch.setattr("utils.files.os.write", full)
        writer.scalars(1, {"loss": 1.0})
    writer.scalars(2, {"loss": 0.5})
    writer.close(finished=True)
    assert service.values() == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]


# ------------------------------------------------------------------ any writer


class Broken(Writer):
    """Fails from the second point on."""

    def __init__(self, run: RunInfo) -> None:
        self.points = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.points += 1
        if self.points > 1:
            raise OSError(28, "No space left on device")


def test_a_writer_that_fails_ends_no_run(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(WRITERS, Broken):
        result = fit(*OFTEN, 'trainer.writers=["Broken", "csv"]')
    [said] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "the writer Broken failed; training continues without it: OSError" in said
    assert result.steps == 15
    assert len(rows(result.run_dir / "metrics.csv")) == 3


class Stateless(Writer):
    """Forgets to return its state."""

    def __init__(self, run: RunInfo) -> None:
        pass

    def state_dict(self) -> Any:
        pass


def test_a_run_resumes_though_a_writer_returned_no_state(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(WRITERS, Stateless):
        run = fit('trainer.writers=["Stateless"]', "trainer.epochs=1").run_dir
        assert "the writer Stateless failed; training continues without it: TypeError" in (capsys.readouterr().err)
        assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2


class KeepsTexts(Stateless):
    """Has a state with the keys of our own writers, but other values."""

    def state_dict(self) -> Any:
        return {"file": None, "bytes": "1.5 kB", "earlier": [1]}


def test_a_writer_chooses_the_keys_and_values_of_its_state(fit: Fit) -> None:
    with temporarily(WRITERS, KeepsTexts):
        run = fit('trainer.writers=["KeepsTexts"]', "trainer.epochs=1").run_dir
        assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2


def test_only_the_main_process_writes(write_config: Callable[..., Path], tmp_path: Path, service: Recorded) -> None:
    loaded = load_config(write_config(), [TO_SERVICE])
    experiment = build_experiment(loaded)
    experiment.runtime.process_group = SecondOfTwo()
    assert build_outputs(loaded, RunFolder(tmp_path), experiment).writers.writers == {}


class SecondOfTwo(ProcessGroup):
    rank, world_size = 1, 2


@pytest.mark.parametrize(
    ("writers", "says"),
    [
        (["tensorbord"], 'trainer.writers.0: unknown writer "tensorbord"; did you mean "tensorboard"?'),
        ([{"type": "mlflow", "args": {"url": "x"}}], 'mlflow has no argument "url"; did you mean "uri"?'),
        ([{"type": "wandb", "args": {"mode": "of"}}], "trainer.writers.0.args.mode: "),
        ("csv", 'trainer.writers: should be a list, got "csv"'),
    ],
)
def test_a_mistake_is_named(
    writers: Any, says: str, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(train.main, ["-c", str(write_config(trainer={"writers": writers}))]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_named(fit: Fit, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"pip install {name}"):
        fit(f'trainer.writers=["{name}"]')
    with pytest.raises(UserError, match=f"pip install {name}"):
        fit("--check", f'trainer.writers=["{name}"]')


def test_tensorboard_has_a_switch_of_its_own(fit: Fit) -> None:
    def writes(*overrides: str) -> tuple[bool, bool]:
        run = fit("trainer.epochs=1", *overrides, trainer={"tensorboard": None}).run_dir
        return bool(list(run.glob("events*"))), (run / "metrics.csv").exists()

    assert writes() == (True, False)
    assert writes('trainer.writers=["tensorboard","csv"]') == (True, True)
    assert writes('trainer.writers=["tensorboard","csv"]', "trainer.tensorboard=false") == (False, True)
    assert writes("trainer.writers=[]", "trainer.tensorboard=true") == (True, False)


def test_the_writers_in_the_documentation_work(fit: Fit) -> None:
    """Those of docs/writers.md, and the trainer that adds an embedding."""
    code = blocks(ROOT / "docs" / "writers.md", "python")
    names: dict[str, Any] = {"Trainer": Trainer, "__name__": "writers_page"}
    method = code[2].replace("self.model.embedding.weight", "self.model.fc1.weight").replace("\n", "\n    ")
    with own_components():
        for text in (code[0], code[1], f"class Embeds(Trainer):\n    {method}"):
            exec(text, names)
        with temporarily(TRAINERS, names["Embeds"]):
            run = fit("trainer.type=Embeds", 'trainer.writers=["PictureFiles", "Board"]', "trainer.epochs=2").run_dir
        writer = WRITERS["PictureFiles"](RunInfo(run, "run", {}, print), columns=2)
        writer.images(7, "some/samples", torch.zeros(3, 4, 5, 1, dtype=torch.uint8))
    assert len(list((run / "board").glob("*/default/tensors.tsv"))) == 2
    with Image.open(run / "some-samples-00000007.png") as image:
        assert image.size == (2 * (5 + 2) + 2, 2 * (4 + 2) + 2)  # two columns, two rows, margins of 2
