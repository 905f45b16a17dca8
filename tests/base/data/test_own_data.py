"""Common mistakes in your own data set or data loader: each ends with one message that names it and the sample."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import train
from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.data import TensorSource
from data_loader.random_tensor import RandomTensorLoader
from tests.conftest import load_script
from tests.helpers import Fit, equal, fork, needs_extra, registering, temporarily
from utils.errors import DataError, UserError
from utils.registry import DATA_LOADERS, MODELS

INPUTS, TARGETS = torch.arange(240.0).view(40, 6) / 240, torch.arange(40) % 3


class Samples(Dataset[Any]):
    """40 samples with a fault. fault: which."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        if self.fault == "corrupt" and index == 17:
            raise OSError("image 17 is corrupt")
        if self.fault == "sizes" and index == 17:
            return torch.zeros(7), index % 3
        if self.fault == "objects":
            return object(), index % 3
        if self.fault == "dict":
            return {"values": INPUTS[index], "label": index % 3}
        return INPUTS[index], index % 3


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return INPUTS[0], 0


class Lines(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for index in range(400):
            if index == 20:
                raise ValueError("line 20 is malformed")
            yield INPUTS[index], index % 3


def without_attribute(inputs: Tensor, *_: Any) -> Tensor:
    return inputs.scaled  # type: ignore[attr-defined,no-any-return]


class OwnData(BaseDataLoader):
    """fault: what is wrong."""

    def __init__(self, *, fault: str, batch_size: int = 8, validation_split: int = 0, num_workers: int = 0) -> None:
        if fault != "super":
            super().__init__(batch_size=batch_size, validation_split=validation_split, num_workers=num_workers)
        self.fault = fault

    @property
    def class_names(self) -> Any:  # type: ignore[override]
        return 3 if self.fault == "names" else None

    def input_facts(self) -> Any:
        return [0.5] if self.fault == "facts" else {}

    def pictures(self, inputs: Tensor) -> Any:
        # a batch for training is shown before the run begins
        return inputs.scaled if self.fault == "pictures" and len(inputs) == 1 else None  # type: ignore[attr-defined]

    def validation(self) -> Any:
        return [INPUTS] if self.fault == "validation" else super().validation()

    def training_data(self, *, augment: bool) -> Any:
        data: dict[str, Callable[[], Any]] = {
            "pair": lambda: (INPUTS, TARGETS),
            "arrays": lambda: TensorSource(INPUTS.numpy(), np.arange(40) % 3),  # type: ignore[arg-type]
            "csr": lambda: TensorSource(INPUTS.to_sparse_csr(), TARGETS),
            "targets": lambda: TensorSource(INPUTS, {"class": TARGETS}),  # type: ignore[arg-type]
            "transform": lambda: TensorSource(INPUTS, TARGETS, transform=without_attribute),
            "augment": lambda: TensorSource(INPUTS, TARGETS, augment=without_attribute),
            "augment_pair": lambda: TensorSource(INPUTS, TARGETS, augment_pair=without_attribute),  # type: ignore[arg-type]
            "fewer": lambda: TensorSource(INPUTS, TARGETS[:39]),
            "lines": Lines,
            "endless": Endless,
        }
        return data.get(self.fault, lambda: Samples(self.fault))()

    def test_data(self) -> Any:
        return self.training_data(augment=False)


class OwnCollate(OwnData):
    def collate(self, samples: list[Any]) -> Any:
        return samples[0].shape


class Dropping(OwnData):
    """Leaves out a sample of each batch, as what filters out broken ones does."""

    def collate(self, samples: list[Any]) -> Any:
        return super().collate(samples[1:])


class Doubling(OwnData):
    """Two rows for each sample, as a graph has several nodes."""

    def collate(self, samples: list[Any]) -> Any:
        return super().collate(samples * 2)


class OwnPictures(OwnData):
    """Of inputs that are images."""

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(INPUTS.view(40, 1, 2, 3), TARGETS)

    def pictures(self, inputs: Tensor) -> Any:
        return inputs.scaled if self.fault == "attribute" else list(inputs)  # type: ignore[attr-defined]


class OwnNames(OwnData):
    def test_names(self) -> Any:
        return (index for index in range(40))


class OwnEpoch(OwnData):
    def begin_epoch(self) -> None:  # type: ignore[override]
        pass


_registered = registering((DATA_LOADERS, OwnData, OwnCollate, Doubling, Dropping, OwnPictures, OwnNames, OwnEpoch))


HERE = r"\n  tests/base/data/test_own_data.py:\d+: "


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support:UserWarning")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("corrupt", rf"Samples: sample 17 cannot be read: OSError: image 17 is corrupt{HERE}raise OSError"),
        (
            "sizes",
            r"samples [\d, ]+ and 3 more cannot be made into a batch. .* the same shapes .*: RuntimeError: ",
        ),
        (
            "objects",
            "Samples: samples .* cannot be made into a batch. .* define collate .*: TypeError: default_collate",
        ),
        ("endless", "args: the data is of type Endless; expected .* a data set with __getitem__ and __len__"),
        ("pair", r"args: the data is of type tuple; expected a TensorSource\(inputs, targets\)"),
        ("arrays", rf"TypeError: TensorSource takes tensors, got ndarray; convert it with torch.as_tensor.*{HERE}"),
        ("csr", r"TypeError: TensorSource cannot select rows of torch.sparse_csr; use x.to_dense\(\) or x.to_sparse"),
        ("targets", rf"TensorSource takes tensors, got dict; .* return a data set of samples .*{HERE}"),
        ("transform", rf"transform fails for a batch of \(8, 6\) float32, \(8,\) int64: AttributeError: .*{HERE}"),
        ("augment", rf"augment fails for a batch of \(8, 6\) float32, \(8,\) int64: AttributeError: .*{HERE}"),
        ("augment_pair", r"augment_pair fails for a batch of \(8, 6\) float32, \(8,\) int64: AttributeError: "),
        ("fewer", rf"OwnData cannot be built: 40 inputs and 39 targets{HERE}"),
        ("validation", "OwnData returns list; expected Batches or NoneType"),
        ("names", "OwnData.class_names is 3; expected a list of names, or None"),
        ("facts", r"OwnData.input_facts returned \[0.5\]; expected a dict"),
        ("super", r"data_loader: OwnData.__init__ does not call super\(\).__init__\(batch_size=batch_size, ...\)"),
    ],
)
def test_a_mistake_in_the_data_is_named(fit: Fit, fault: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(data_loader={"type": "OwnData", "args": {"fault": fault}})


class Ordered(RandomTensorLoader):
    def __init__(self, **batches: Any) -> None:
        super().__init__(shuffle=False, **batches)


def test_an_argument_that_the_constructor_sets_itself_is_named(fit: Fit) -> None:
    data = {"type": "Ordered", "args": {"num_samples": 8, "input_shape": [6], "num_classes": 3, "batch_size": 8}}
    with temporarily(DATA_LOADERS, Ordered):
        fit("trainer.epochs=1", data_loader=data)
        with pytest.raises(
            UserError, match=rf"{HERE}super.*\nThe code sets 'shuffle' itself: leave it out of the config; if it is req"
        ):
            fit("data_loader.args.shuffle=true", data_loader=data)


@needs_extra("report", "tensorboard")
@pytest.mark.usefixtures("tensorboard")
def test_pictures_that_fail_do_not_end_a_run(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"type": "OwnData", "args": {"fault": "pictures", "validation_split": 8}}
    assert fit("trainer.pictures_every=1", data_loader=data).epochs == 2
    said = capsys.readouterr().err
    assert said.count("mistakes are shown without pictures: OwnData.pictures failed: AttributeError") == 1


def test_an_own_collate_that_fails_is_named(fit: Fit) -> None:
    with pytest.raises(DataError, match=rf"Samples: samples .* AttributeError: 'tuple' .*{HERE}return samples"):
        fit(data_loader={"type": "OwnCollate", "args": {"fault": ""}})


def test_a_batch_without_some_of_its_samples(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"returned shape \(7,\) for 8 samples; .*\nIf rows are not samples"):
        fit(data_loader={"type": "Dropping", "args": {"fault": ""}})


def test_samples_of_several_rows_need_a_metric_of_torchmetrics(fit: Fit) -> None:
    data: Any = {"type": "Doubling", "args": {"fault": ""}}
    with pytest.raises(UserError, match=r"returned shape \(16,\) for 8 samples; .*\nIf rows are not samples"):
        fit(data_loader=data)
    metric = {"type": "Accuracy", "args": {"task": "multiclass", "num_classes": 3}}
    assert 0 <= fit(data_loader=data, metrics=[metric]).history[-1]["Accuracy"] <= 1


@needs_extra("tensorboard")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("attribute", rf"pictures failed: AttributeError: .*{HERE}return inputs"),
        ("list", "pictures returns type list; expected"),
    ],
)
def test_pictures_that_are_none_end_the_run_before_its_first_step(
    fit: Fit, tmp_path: Path, fault: str, message: str
) -> None:
    data = {"type": "OwnPictures", "args": {"fault": fault}}
    with pytest.raises(DataError, match=rf"OwnPictures.{message}"):
        fit("trainer.tensorboard=true", "trainer.pictures_every=null", data_loader=data)
    assert not list(tmp_path.glob("saved/*/*"))


@needs_extra("report")
def test_names_of_test_samples_may_be_any_iterable(fit: Fit) -> None:
    run = fit(data_loader={"type": "OwnNames", "args": {"fault": ""}}).run_dir
    load_script("test").main(["-r", str(run)])
    assert (run / "test" / "predictions.csv").read_text().splitlines()[-1].startswith("39,39,")


def test_a_begin_epoch_without_its_argument_is_named(fit: Fit) -> None:
    with pytest.raises(UserError, match=r"json:\d+:\d+: data_loader: OwnEpoch.begin_epoch should be \(self, epoch\)"):
        fit(data_loader={"type": "OwnEpoch", "args": {"fault": ""}})


def test_a_sample_of_a_stream_that_cannot_be_read_is_named(fit: Fit) -> None:
    with pytest.raises(DataError, match=rf"Lines: sample 20 cannot be read: ValueError: line 20 is malformed{HERE}"):
        fit("trainer.steps_per_epoch=5", data_loader={"type": "OwnData", "args": {"fault": "lines"}}, trainer={})


@pytest.mark.slow
def test_a_sample_that_a_worker_cannot_read_is_named(fit: Fit) -> None:
    with pytest.raises(DataError, match=rf"Samples: sample 17 cannot be read: OSError: image 17 is corrupt{HERE}"):
        fit(data_loader={"type": "OwnData", "args": {"fault": "corrupt", "num_workers": 2}})


@needs_extra("advice")
def test_the_parts_of_a_batch_that_is_a_dict_are_named(fit: Fit) -> None:
    says = r"\(values: \(8, 6\) float32, label: \(8,\) int64\) failed [^$]* keys of a dict; read batch\[.values.\]"
    with pytest.raises(UserError, match=says):
        fit(data_loader={"type": "OwnData", "args": {"fault": "dict"}})


class TrainingData(BaseDataLoader):
    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(INPUTS, TARGETS)


def test_test_data_may_be_left_out(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(DATA_LOADERS, TrainingData):
        data = {"type": "TrainingData", "args": {"batch_size": 8, "validation_split": 8}}
        run = fit("trainer.verbosity=1", data_loader=data).run_dir
        assert "python test.py" not in capsys.readouterr().out
        with pytest.raises(UserError, match=r"TrainingData has no test data; let it define test_data\(\)"):
            load_script("test").main(["-r", str(run)])
    assert not (run / "test").exists()


@needs_extra("check")
def test_a_check_does_not_ask_for_test_data(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporarily(DATA_LOADERS, TrainingData):
        data = {"type": "TrainingData", "args": {"batch_size": 8, "validation_split": 8}}
        train.main(["-c", str(write_config(data_loader=data)), "--check"])
    assert "test data" not in capsys.readouterr().out


class Standardized(BaseDataLoader):
    """Inputs over a scale that is measured on the training data."""

    scale = 2.0

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(INPUTS / self.scale, TARGETS)

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)

    def input_facts(self) -> dict[str, Any]:
        torch.rand(3)  # as a DataLoader draws, over which a mean is computed
        return {"scale": self.scale, "names": ["a"], "all": torch.full((2,), self.scale), "size": 200_000}


@needs_extra("advice")
def test_data_that_is_now_prepared_differently_is_noticed_on_resume_and_in_a_test(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "Standardized.input_facts gives another scale, all than in this run so far: the data has changed"
    with temporarily(DATA_LOADERS, Standardized):
        run = fit("trainer.monitor=null", data_loader={"type": "Standardized", "args": {"batch_size": 8}}).run_dir
        for scale, changed in ((2.0 * (1 + 1e-7), False), (3.0, True)):
            monkeypatch.setattr(Standardized, "scale", scale)
            capsys.readouterr()
            load_script("test").main(["-r", str(run)])
            assert capsys.readouterr().err.count(warning) == changed
            train.main(["-r", str(run), f"trainer.epochs={3 + changed}"])
            assert capsys.readouterr().err.count(warning) == changed
        monkeypatch.delattr(Standardized, "scale")  # as if it were known only with the training data
        monkeypatch.setattr(Standardized, "test_data", lambda _: TensorSource(INPUTS, TARGETS))
        load_script("test").main(["-r", str(run)])
        assert "input_facts" not in capsys.readouterr().err


class Sampled(Standardized):
    """Facts of some samples, drawn at random."""

    def input_facts(self) -> dict[str, Any]:
        return {"mean": INPUTS[torch.randperm(len(INPUTS))[:3]].mean(0)}


def test_facts_of_random_samples_are_the_same_in_a_test(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(DATA_LOADERS, Sampled):
        run = fit(data_loader={"type": "Sampled", "args": {"batch_size": 8}}).run_dir
        train.main(["-r", str(run), "trainer.epochs=3"])
        load_script("test").main(["-r", str(run)])
    assert "input_facts" not in capsys.readouterr().err


class Noisy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(x + torch.randn_like(x))
        return outputs


def test_facts_that_draw_random_numbers_leave_a_resume_exact(fit: Fit, tmp_path: Path) -> None:
    often = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.monitor=null")
    with temporarily(DATA_LOADERS, Standardized), temporarily(MODELS, Noisy):
        loader = {"type": "Standardized", "args": {"batch_size": 8}}
        whole = fit(*often, data_loader=loader, model="Noisy").run_dir
        half = fork(whole, 3)
        train.main(["-r", half])
    equal(whole, half)


class Drawn(BaseDataLoader):
    """Inputs drawn in the constructor, and noise that is drawn once, when the data is first needed."""

    made: ClassVar[list["Drawn"]] = []

    def __init__(self, **batches: Any) -> None:
        super().__init__(**batches)
        self.inputs = torch.from_numpy(np.random.randn(40, 6)).float()
        self.noise: Any = None
        self.made.append(self)

    def training_data(self, *, augment: bool) -> TensorSource:
        if self.noise is None:
            self.noise = torch.randn(40, 6)
        return TensorSource(self.inputs + self.noise, TARGETS)

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


class DrawnWithValidation(Drawn):
    def validation_data(self) -> TensorSource:
        return TensorSource(torch.randn(8, 6), TARGETS[:8])


@pytest.mark.parametrize(
    ("loader", "validation"),
    [
        ({"type": "Drawn", "args": {"batch_size": 8, "validation_split": 8}}, None),
        ({"type": "DrawnWithValidation", "args": {"batch_size": 8}}, None),
        ({"type": "Drawn", "args": {"batch_size": 8}}, {"type": "Drawn", "args": {"batch_size": 8}}),
    ],
)
def test_data_that_is_drawn_is_the_same_in_a_resumed_run(
    fit: Fit, loader: dict[str, Any], validation: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawn, "made", [])
    often = ("trainer.save_every_steps=1", "trainer.keep_last=null")
    # asks for the data before the model is built; a resumed run does not
    model = {
        "type": "TwoLayerNet",
        "args": {"in_features": 6, "hidden_features": 4, "out_features": "${data.num_classes}"},
    }
    with temporarily(DATA_LOADERS, Drawn), temporarily(DATA_LOADERS, DrawnWithValidation):
        more = {"validation": validation} if validation else {}
        whole = fit(*often, data_loader=loader, model=model, **more).run_dir
        separate = [(each.inputs, each.noise) for each in Drawn.made]
        half = fork(whole, 3)
        np.random.seed(1)
        train.main(["-r", half])
    equal(whole, half)
    assert len(separate) == 1 + bool(validation)
    assert not any(torch.equal(*pair) for pair in zip(separate[0], separate[-1], strict=True) if validation)


def test_an_argument_that_the_data_refuses_is_located(fit: Fit) -> None:
    with pytest.raises(DataError, match=r"split=300: data_loader\.args\.validation_split: 300 of \d+ training samples"):
        fit("data_loader.args.validation_split=300")
    args = {"batch_size": 8, "num_samples": 10, "input_shape": [6], "num_classes": 3, "folds": 50, "fold": 0}
    with pytest.raises(DataError, match=r"config\.json:\d+:\d+: validation\.args\.folds: 10 training samples"):
        fit("data_loader.args.validation_split=0", validation={"type": "RandomTensorLoader", "args": args})


class Demanding(OwnData):
    def __init__(self, *, batch_size: int = 8, says: str) -> None:
        raise DataError(says)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("data_loader.args.says must be a number", "data_loader.args: data_loader.args.says must be a number"),
        ("data_loader.args.says: not\na number", "data_loader.args.says: not\na number"),
    ],
)
def test_what_a_data_loader_of_yours_says_of_an_argument_is_kept(fit: Fit, says: str, expected: str) -> None:
    with temporarily(DATA_LOADERS, Demanding), pytest.raises(DataError) as raised:
        fit(data_loader={"type": "Demanding", "args": {"says": says}})
    assert expected in str(raised.value)


def test_samples_of_other_shapes_are_named_from_a_worker_too(fit: Fit) -> None:
    with pytest.raises(DataError, match=r"Samples: samples .* cannot be made into a batch"):
        fit(data_loader={"type": "OwnData", "args": {"fault": "sizes", "num_workers": 1}})
