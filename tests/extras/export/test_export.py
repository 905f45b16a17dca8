"""export.py: files that give what the run's model gives, or one message."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest
import safetensors
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

import export
import train
from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.load_run import load_run
from base.metric import StepResult
from extras.export import calls
from extras.export.formats import flat_names
from tests.conftest import small_config
from tests.helpers import Fit, copy_run, state, temporarily
from trainer.trainer import Trainer
from utils import cli
from utils.checkpoint.weights_file import read_weights
from utils.config import load_config
from utils.registry import DATA_LOADERS, MODELS, TRAINERS

Capture = pytest.CaptureFixture[str]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cifar10_folder: Path) -> Iterator[Path]:
    """LeNet on small images as bytes, with averaged weights."""
    folder = tmp_path_factory.mktemp("export")
    data = {"type": "CIFAR10Loader", "args": {"data_dir": str(cifar10_folder), "batch_size": 20, "download": False}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_, **__: True)
        config = small_config(folder, data_loader=data, model={"type": "LeNet", "args": {"in_channels": 3}})
        yield train.main(["-c", str(config), 'trainer.ema={"decay": 0.9}', "trainer.epochs=1"]).run_dir


@pytest.fixture
def stored() -> Tensor:
    """Five images as a data set stores them."""
    return torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def outputs(run: Path, images: Tensor) -> Tensor:
    """What the averaged weights make of images, computed without the code that exports."""
    loaded = load_run(run)
    loaded.model.load_state_dict(state(run)["averaged_weights"])
    with torch.no_grad():
        found: Tensor = loaded.model((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    return found


def failure(capsys: Capture, *words: str) -> str:
    """The one message of a command with status 2."""
    capsys.readouterr()
    assert cli.run(export.main, words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    return printed.err


# ------------------------------------------------------------------ what works


@pytest.mark.slow
def test_a_torch_archive_takes_bytes_and_any_batch(run: Path, stored: Tensor, capsys: Capture) -> None:
    file = export.main(["-r", str(run)])
    assert file == run / "model.pt2"
    extra = {"metadata.json": ""}
    module = torch.export.load(file, extra_files=extra).module()
    for images in (stored, stored[:1]):
        assert torch.allclose(module(inputs=images), outputs(run, images), atol=1e-5)
    about = json.loads(extra["metadata.json"])
    assert about["class_names"] == CLASSES
    assert about["inputs"] == [{"name": "inputs", "shape": ["batch", 32, 32, 3], "dtype": "uint8"}]
    assert about["outputs"] == [{"name": "outputs", "shape": ["batch", 10], "dtype": "float32"}]
    assert (about["name"], about["run"], about["epoch"], about["step"]) == ("small", run.name, 1, 5)
    printed = capsys.readouterr().out
    assert "takes     inputs: uint8 (batch, 32, 32, 3)\n" in printed
    assert "ImageLoader.normalize, in the graph" in printed
    assert "compared  largest difference 0 over 40 samples and over one alone\n" in printed


@pytest.mark.slow
def test_onnx_runs_elsewhere(run: Path, stored: Tensor, tmp_path: Path, capsys: Capture) -> None:
    file = export.main(["-r", str(run), "--out", str(tmp_path / "lenet.onnx")])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for images in (stored, stored[:1]):
        (found,) = session.run(["outputs"], {"inputs": images.numpy()})
        assert torch.allclose(torch.from_numpy(found), outputs(run, images), atol=1e-5)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.shape, given.shape) == (["batch", 32, 32, 3], ["batch", 10])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == CLASSES
    assert "over 40 samples" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["lenet.onnx"]


def test_safetensors_hold_the_averaged_weights_and_the_config(run: Path, tmp_path: Path) -> None:
    file = export.main(["-r", str(run), "--format", "safetensors", "--out", str(tmp_path / "lenet.safetensors")])
    _, weights = read_weights(file)
    averaged = state(run)["averaged_weights"]
    assert weights.keys() == averaged.keys()
    assert all(torch.equal(weights[name], averaged[name]) for name in averaged)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    (tmp_path / "config.json").write_text(metadata["config"])
    assert load_config(tmp_path / "config.json").config.model.type == "LeNet"
    assert json.loads(metadata["class_names"]) == CLASSES


class Pairs(Dataset[Any]):
    """Batches are dicts of texts, padded, and of numbers."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        words = torch.randint(1, 20, (2 + index % 7,), generator=generator)
        numbers, some = torch.randn(3, generator=generator), torch.randn(3 + index % 5, generator=generator)
        return {"words": words, "numbers": numbers, "some": some, "target": torch.tensor(index % 2)}


class PairLoader(BaseDataLoader):
    """Without test data: the model is traced with training data."""

    def training_data(self, *, augment: bool) -> Pairs:
        return Pairs()

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        words = pad_sequence([sample["words"] for sample in samples], batch_first=True)
        return {
            "words": words,
            "numbers": torch.stack([sample["numbers"] for sample in samples]),
            "some": pad_sequence([sample["some"] for sample in samples], batch_first=True),
            "target": torch.stack([sample["target"] for sample in samples]),
        }


class TwoInputs(nn.Module):
    """words (B, L), numbers: {"all": (B, 3), "some": (B, M)} -> (B, 2) and a hidden state (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)
        self.out = nn.Linear(7, 2)

    def forward(self, words: Tensor, *, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.embed(words).mean(1) + numbers["some"].mean(1, keepdim=True)
        return {"scores": self.out(torch.cat([hidden, numbers["all"]], 1)), "hidden": hidden}


class PairTrainer(BaseTrainer):
    def eval_step(self, batch: Any) -> StepResult:
        scores = self.model(batch["words"], numbers={"all": batch["numbers"], "some": batch["some"]})["scores"]
        return StepResult(self.criterion(scores, batch["target"]), scores, batch["target"])

    def train_step(self, batch: Any) -> StepResult:
        result = self.eval_step(batch)
        self.backward(result.loss)
        return result


@pytest.mark.slow
def test_several_inputs_of_any_length_by_name(fit: Fit, capsys: Capture) -> None:
    data = {"type": "PairLoader", "args": {"batch_size": 10}}
    with temporarily(DATA_LOADERS, PairLoader), temporarily(MODELS, TwoInputs), temporarily(TRAINERS, PairTrainer):
        folder = fit("trainer.type=PairTrainer", data_loader=data, model="TwoInputs", metrics=[]).run_dir
        file = export.main(["-r", str(folder), "--format", "onnx"])
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        shapes = {argument.name: argument.shape for argument in session.get_inputs()}
        assert shapes == {
            "words": ["batch", "length"],
            "numbers.all": ["batch", 3],
            "numbers.some": ["batch", "length_2"],
        }
        words, numbers, some = torch.randint(1, 20, (4, 11)), torch.randn(4, 3), torch.randn(4, 5)
        feed = {"words": words, "numbers.all": numbers, "numbers.some": some}
        found = session.run(["scores", "hidden"], {name: each.numpy() for name, each in feed.items()})
        expected = load_run(folder).model(words, numbers={"all": numbers, "some": some})
    for one, name in zip(found, expected, strict=True):
        assert torch.allclose(torch.from_numpy(one), expected[name], atol=1e-5)
    printed = capsys.readouterr().out
    assert "words: int64 (batch, length)" in printed
    assert "numbers.some: float32 (batch, length_2)" in printed
    assert "over 30 samples" in printed


# ------------------------------------------------------------------ what does not


class Branching(nn.Module):
    """What it computes depends on the values of its inputs, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(x if x.sum() > 0 else -x)
        return outputs


class Bessel(Branching):
    """With a function that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(torch.special.bessel_j0(x))
        return outputs


class Looping(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.out(row) for row in x])


class Named(NamedTuple):
    outputs: Tensor


def test_outputs_in_a_named_tuple_have_the_names_of_its_fields() -> None:
    assert flat_names({"heads": Named(torch.zeros(1))}) == ["heads.outputs"]


class NamedNet(Branching):
    def forward(self, x: Tensor) -> Any:
        return Named(self.out(x))


class SqueezedNet(Branching):
    def forward(self, x: Tensor) -> Any:
        return {"outputs": self.out(x), "norm": x.norm(dim=1).squeeze()}


class NamedTrainer(Trainer):
    """Takes the outputs from a named tuple or a dict."""

    def train_step(self, batch: Any) -> StepResult:
        result = self.eval_step(batch)
        self.backward(result.loss)
        return result

    def eval_step(self, batch: Any) -> StepResult:
        found = self.model(batch[0])
        outputs = found["outputs"] if isinstance(found, dict) else found.outputs
        return StepResult(self.criterion(outputs, batch[1]), outputs, batch[1])


class Noisy(Branching):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(x + torch.randn_like(x))
        return outputs


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)


class PartsTrainer(PairTrainer):
    def eval_step(self, batch: Any) -> StepResult:
        outputs = self.model.get_submodule("inner")(batch[0])
        return StepResult(self.criterion(outputs, batch[1]), outputs, batch[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (Branching, "torch", ("Branching cannot be exported to torch", "test_export.py:", "x if x.sum() > 0 else -x")),
        (Branching, "onnx", ("Branching cannot be exported to onnx", "x if x.sum() > 0 else -x")),
        (Looping, "torch", ("Looping cannot be exported to torch", "samples only", "write x.shape[0]), a loop")),
        (NamedNet, "torch", ("NamedNet cannot be exported to torch: torch.export cannot save it", "--format onnx")),
        (SqueezedNet, "torch", ("its outputs have other axes for a single sample, as by squeeze()",)),
        (Bessel, "onnx", ("Bessel cannot be exported to onnx", "test_export.py:", "torch.special.bessel_j0(x)")),
    ],
)
def test_a_model_that_cannot_be_exported_says_what_and_where(
    fit: Fit, model: type[nn.Module], kind: str, says: tuple[str, ...], capsys: Capture
) -> None:
    trainer = "NamedTrainer" if model in (NamedNet, SqueezedNet) else "Trainer"
    with temporarily(MODELS, model), temporarily(TRAINERS, NamedTrainer):
        folder = fit("trainer.epochs=1", f"trainer.type={trainer}", model=model.__name__).run_dir
        before = sorted(folder.iterdir())
        said = failure(capsys, "-r", str(folder), "--format", kind)
    assert all(text in said for text in says), said
    assert len(said.splitlines()) <= 4
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_random_numbers_in_evaluation_are_not_compared(fit: Fit, capsys: Capture) -> None:
    with temporarily(MODELS, Noisy):
        folder = fit("trainer.epochs=1", model="Noisy").run_dir
        export.main(["-r", str(folder)])
    assert "compared  no: the model draws random numbers" in capsys.readouterr().out


def test_a_trainer_that_calls_only_parts_of_the_model(fit: Fit, capsys: Capture) -> None:
    with temporarily(MODELS, Parts), temporarily(TRAINERS, PartsTrainer):
        folder = fit("trainer.type=PartsTrainer", model="Parts", metrics=[]).run_dir
        assert "PartsTrainer.eval_step never calls Parts itself" in failure(capsys, "-r", str(folder))
        export.main(["-r", str(folder), "--format", "safetensors"])
    assert "compared  the file contains the same 2 tensors" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_that_gives_something_else_is_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    loaded = torch.export.load

    def spoiled(file: Any) -> Any:
        program = loaded(file)
        with torch.no_grad():
            program.state_dict["model.fc3.bias"] += 0.1
        return program

    monkeypatch.setattr(torch.export, "load", spoiled)
    said = failure(capsys, "-r", str(run), "--out", str(tmp_path / "a.pt2"))
    assert "outputs differ from the model's: largest difference 0.1 over 40 samples" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", ["runtime.precision=bf16", "trainer.epochs=99", "metrics=[]"])
def test_an_override_without_effect_is_refused(run: Path, capsys: Capture, override: str) -> None:
    assert f"override {override}: this command does not use" in failure(capsys, "-r", str(run), override)


def test_a_mistake_is_one_message(run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = copy_run(run, tmp_path)
    for path in empty.glob("checkpoints/*"):
        path.unlink()
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.setattr(calls, "record_calls", pytest.fail)  # all of these are found before the work
    for words, says in [
        (["-r", str(tmp_path / "nothing")], "no such run folder or checkpoint"),
        (["-r", str(empty)], "has no checkpoint yet"),
        (["-r", str(run), "model.args.kernel_size=3"], "do not match this model"),
        (["-r", str(run), "--out", str(tmp_path / "no" / "a.onnx")], f"no such folder: {tmp_path / 'no'}"),
        (["-r", str(run), "--out", str(tmp_path / "folder.onnx")], "is a folder; name a file"),
        (["-r", str(run), "--out", str(run / "config.json")], "must end with one of .pt2, .onnx, .safetensors"),
        (["-r", str(run), "--format", "onnx", "--out", "a.pt2"], "must end with .onnx"),
        (["-r", str(run), "--format", "tflite"], "invalid choice: 'tflite'"),
        (["-d", "cuda", "-r", str(run)], "unrecognized arguments: -d"),
        ([], "the following arguments are required: -r"),
    ]:
        assert says in failure(capsys, *words), words
    for package, kind in (("onnxscript", "onnx"), ("onnxruntime", "onnx"), ("safetensors", "safetensors")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            said = failure(capsys, "-r", str(run), "--format", kind)
            assert (
                f"files need {package}: pip install {'onnx onnxscript onnxruntime' if kind == 'onnx' else kind}" in said
            )


def test_without_data_or_images_there_is_nothing_to_trace(fit: Fit, capsys: Capture) -> None:
    class Gone(PairLoader):
        def test_data(self) -> Pairs:
            raise FileNotFoundError(2, "No such file or directory", "pairs.csv")

    with temporarily(DATA_LOADERS, Gone), temporarily(MODELS, TwoInputs), temporarily(TRAINERS, PairTrainer):
        data = {"type": "Gone", "args": {"batch_size": 10}}
        folder = fit("trainer.type=PairTrainer", data_loader=data, model="TwoInputs", metrics=[]).run_dir
        said = failure(capsys, "-r", str(folder))
        assert "tracing the model needs a batch of test data. Gone: the test data cannot be read: FileNotFoundE" in said
        export.main(["-r", str(folder), "--format", "safetensors"])
    assert "compared  the file contains the same" in capsys.readouterr().out


def test_a_single_test_sample_is_no_reason_to_blame_the_model(fit: Fit, capsys: Capture) -> None:
    run = fit("trainer.epochs=1", "data_loader.args.num_test_samples=1").run_dir
    assert "the test data has a single sample; tracing the model needs" in failure(capsys, "-r", str(run))


def test_help_ends_with_commands_to_try(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        export.main(["--help"])
    _, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert all(line.startswith("  python export.py -r ") for line in examples.splitlines())
