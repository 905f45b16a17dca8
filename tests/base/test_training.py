"""What the training loop promises: steps, accumulation, clipping, judging, stopping, keeping, arithmetic."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import train
from data_loader.random_tensor import RandomTensorLoader
from tests.helpers import Fit, curves, equal, fork, lines, needs_extra, state, temporarily
from utils.config import load_config
from utils.errors import ConfigError, DataError, TrainingError, UserError
from utils.registry import DATA_LOADERS, METRICS, OPTIMIZERS, SCHEDULERS
from utils.run_folder import RunFolder


def quick(all_names: list[str], *some: str) -> list[Any]:
    """Parameters of a test: these names in the quick part of the tests, and all others."""
    return [name if name in some else pytest.param(name, marks=pytest.mark.slow) for name in all_names]


def names(result: train.Result) -> list[str]:
    return sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())


def test_an_epoch_is_one_pass_or_a_number_of_steps(fit: Fit) -> None:
    assert [record["step"] for record in lines(fit().run_dir)] == [5, 10]
    assert [record["step"] for record in lines(fit("trainer.steps_per_epoch=7").run_dir)] == [7, 14]


def test_a_run_leaves_nothing_out_of_garbage_collection(fit: Fit) -> None:
    """Else the models of several runs in one process would stay."""
    before = gc.get_freeze_count()
    fit()
    assert gc.get_freeze_count() == before


def test_accumulated_batches_are_one_large_batch(fit: Fit) -> None:
    """40 samples in batches of 8 by 3: groups of 24 and of 16, as a batch size of 24 gives them."""
    large = fit("--bs=24")
    small = fit("trainer.accumulate_steps=3")
    assert [record["step"] for record in lines(small.run_dir)] == [2, 4]
    for name, weights in state(large.run_dir)["model"].items():
        torch.testing.assert_close(state(small.run_dir)["model"][name], weights)
    for one, other in zip(lines(large.run_dir), lines(small.run_dir), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_accumulated_sums_are_one_large_batch(fit: Fit) -> None:
    loss = {"type": "cross_entropy", "args": {"reduction": "sum"}}
    large, small = fit("--bs=24", "--lr=0.01", loss=loss), fit("trainer.accumulate_steps=3", "--lr=0.01", loss=loss)
    for name, weights in state(large.run_dir)["model"].items():
        torch.testing.assert_close(state(small.run_dir)["model"][name], weights)
    assert small.last == pytest.approx(large.last | {key: small.last[key] for key in ("seconds", "samples_per_second")})


def test_gradients_are_clipped_by_their_common_norm(fit: Fit) -> None:
    still = fit("trainer.clip_grad_norm=1e-12", "--lr=1")
    free = fit("--lr=1")
    before, after = lines(still.run_dir)[0]["val_loss"], lines(still.run_dir)[-1]["val_loss"]
    assert before == pytest.approx(after, rel=1e-6)
    assert lines(free.run_dir)[0]["val_loss"] != pytest.approx(before, rel=1e-3)


def test_the_best_epoch_is_kept_beside_the_newest(fit: Fit) -> None:
    result = fit("trainer.epochs=6", "trainer.keep_last=2", "trainer.monitor=max val_loss", "--lr=0.5")
    records = lines(result.run_dir)
    best = max(records, key=lambda record: record["val_loss"])
    assert best["epoch"] < 5, "the test needs a best epoch that is not among the last two"
    assert result.best == best["val_loss"]
    step = f"step-{best['step']:08d}.pth"
    assert names(result) == sorted([step, "step-00000025.pth", "step-00000030.pth", "best.pth", "last.pth"])
    folder = result.run_dir / "checkpoints"
    assert (folder / "best.pth").samefile(folder / step)
    assert (folder / "last.pth").samefile(folder / "step-00000030.pth")


def test_save_period_and_keep_all(fit: Fit) -> None:
    result = fit("trainer.epochs=5", "trainer.save_period=2", "trainer.keep_last=null")
    assert names(result) == ["last.pth", "step-00000010.pth", "step-00000020.pth", "step-00000025.pth"]
    within = fit("trainer.epochs=1", "trainer.save_every_steps=2", "trainer.keep_last=null")
    assert names(within) == ["last.pth", "step-00000002.pth", "step-00000004.pth", "step-00000005.pth"]


def test_early_stopping_waits_for_its_patience(fit: Fit) -> None:
    result = fit("trainer.epochs=50", "trainer.monitor=max loss", "trainer.early_stop=3")
    records = lines(result.run_dir)
    best = max(records, key=lambda record: record["loss"])
    assert result.epochs == best["epoch"] + 3 < 50


def test_plateau_follows_the_monitored_value(fit: Fit) -> None:
    arguments: dict[str, Any] = {"mode": "max", "patience": 1, "factor": 0.5}
    scheduler = {"type": "ReduceLROnPlateau", "args": arguments}
    records = lines(fit("trainer.epochs=8", "trainer.monitor=max loss", lr_scheduler=scheduler).run_dir)
    reference = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, **arguments)
    expected = []
    for record in records:
        expected.append(reference.param_groups[0]["lr"])
        plateau.step(record["loss"])
    assert [record["lr"] for record in records] == expected
    assert len(set(expected)) > 2, "the loss falls, and the test needs some cuts of the rate"


SCHEDULES: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]},
    "ExponentialLR": {"gamma": 0.9},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.1},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "SequentialLR": {
        "schedulers": [{"type": "LinearLR", "args": {"total_iters": 3}}, {"type": "CosineAnnealingLR"}],
        "milestones": [3],
    },
    "ChainedScheduler": {"schedulers": [{"type": "ConstantLR"}, {"type": "ExponentialLR", "args": {"gamma": 0.9}}]},
}


@pytest.mark.parametrize("name", quick(SCHEDULERS.names(), "OneCycleLR", "StepLR"))
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_every_scheduler_of_torch_runs_and_resumes(fit: Fit, name: str, interval: str) -> None:
    if name == "ReduceLROnPlateau" and interval == "step":
        pytest.skip("moves after each epoch")
    scheduler = {"type": name, "args": SCHEDULES.get(name, {}), "interval": interval}
    often = ("trainer.save_every_steps=4", "trainer.keep_last=null", "trainer.tensorboard=false")
    result = fit("trainer.epochs=3", "trainer.monitor=min val_loss", *often, lr_scheduler=scheduler)
    half = fork(result.run_dir, 8)
    train.main(["-r", str(half)])
    equal(result.run_dir, half)


@pytest.mark.parametrize("name", quick(OPTIMIZERS.names(), "SGD", "Adam", "SparseAdam"))
def test_every_optimizer_of_torch_trains(fit: Fit, name: str) -> None:
    if name == "SparseAdam":
        pytest.skip("needs sparse gradients, which none of the models has")
    model = {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 3, "bias": False}}
    often = ("trainer.epochs=3", "trainer.tensorboard=false")
    result, again = (fit(*often, model=model, optimizer={"type": name}) for _ in range(2))
    assert lines(result.run_dir) == lines(again.run_dir)
    moved = [record["val_loss"] for record in lines(result.run_dir)]
    assert moved[0] != moved[-1]


def test_a_larger_run_recomputes_its_schedule(fit: Fit) -> None:
    scheduler = {"type": "OneCycleLR", "args": {"max_lr": 0.1}, "interval": "step"}
    short = fit("trainer.epochs=2", lr_scheduler=scheduler)
    assert lines(short.run_dir)[-1]["lr"] < 1e-3
    longer = train.main(["-r", str(short.run_dir), "trainer.epochs=4"])
    asked = fit("trainer.epochs=4", lr_scheduler=scheduler)
    rates = [[record["lr"] for record in lines(result.run_dir)] for result in (longer, asked)]
    assert len(rates[0]) == 4
    assert rates[0][2:] == pytest.approx(rates[1][2:])


def test_a_schedule_of_another_length_than_the_runs_is_refused(fit: Fit) -> None:
    with pytest.raises(ConfigError, match="the run has 10"):
        fit(lr_scheduler={"type": "OneCycleLR", "args": {"max_lr": 0.1, "total_steps": 3}, "interval": "step"})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_nearly_as_well(fit: Fit, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    full, low = fit("trainer.epochs=5"), fit("trainer.epochs=5", f"runtime.precision={precision}")
    assert lines(full.run_dir) != lines(low.run_dir)
    assert low.last["loss"] == pytest.approx(full.last["loss"], rel=0.05)
    assert ("scale" in state(low.run_dir)["runtime"]) == (precision == "fp16")
    assert ("fp16 (slow on a CPU; bf16 is faster)" in capsys.readouterr().out) == (precision == "fp16")


@pytest.mark.parametrize(
    ("schedule", "waits"),
    [(None, False), ({"type": "OneCycleLR", "args": {"max_lr": 0.1}, "interval": "step"}, True)],
)
def test_fp16_reads_whether_it_overflowed_only_for_a_schedule_by_step(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, schedule: Any, waits: bool
) -> None:
    """To read it from an accelerator, the host waits for the optimizer's step."""
    read = torch.amp.GradScaler._found_inf_per_device
    reads: list[int] = []

    def counting(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> Any:
        reads.append(1)
        return read(scaler, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "_found_inf_per_device", counting)
    result = fit("runtime.precision=fp16", lr_scheduler=schedule)
    assert (len(reads) >= result.steps) == waits


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_trains_and_keeps_its_names(fit: Fit) -> None:
    plain, compiled = fit(), fit("runtime.compile=true")
    assert state(compiled.run_dir)["model"].keys() == state(plain.run_dir)["model"].keys()
    assert compiled.last["loss"] == pytest.approx(plain.last["loss"], rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_stops_the_run(fit: Fit, precision: str) -> None:
    often = ("trainer.epochs=9", "trainer.save_every_steps=1", f"runtime.precision={precision}")
    with pytest.raises(TrainingError) as caught:
        fit("--lr=1e30", *often, loss="mse_loss", **REGRESSION)
    message = str(caught.value)
    assert "at step" in message
    assert "samples" in message
    assert "lower learning rate" in message
    assert ("runtime.precision=fp32" in message) is (precision == "bf16")


class OneBroken(RandomTensorLoader):
    """Sample 17 has a value that is missing."""

    def training_data(self, *, augment: bool) -> Any:
        source = super().training_data(augment=augment)
        assert isinstance(source.inputs, torch.Tensor)
        source.inputs[17, 2] = float("nan")
        return source


@needs_extra("advice")
@pytest.mark.parametrize(("workers", "log_every"), [(0, 20), (1, 20), (0, 1), (0, 2)])
def test_samples_with_values_that_are_not_finite_are_named(fit: Fit, workers: int, log_every: int) -> None:
    args = {"num_samples": 40, "input_shape": [6], "num_classes": 3, "batch_size": 8, "num_workers": workers}
    with (
        temporarily(DATA_LOADERS, OneBroken),
        pytest.raises(TrainingError, match=r"in the data: values of 1 sample among these are not finite: 17.$"),
    ):
        fit(
            "trainer.monitor=null",
            f"trainer.log_every_steps={log_every}",
            data_loader={"type": "OneBroken", "args": args},
        )


def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        fit("--lr=1e30", "trainer.epochs=9", "trainer.save_every_steps=1", loss="mse_loss", **REGRESSION)
    step = int(str(caught.value).split("at step ")[1].split()[0])
    kept = sorted(tmp_path.glob("saved/small/*/checkpoints/step-*.pth"))
    assert kept
    assert all(int(path.stem.removeprefix("step-")) < step for path in kept)


def large(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.full((len(targets),), 1e25)


def test_a_run_with_very_large_values_resumes_within_an_epoch(fit: Fit) -> None:
    with temporarily(METRICS, large):
        whole = fit("trainer.save_every_steps=1", "trainer.keep_last=null", metrics=["large"])
        half = fork(whole.run_dir, 7)
        train.main(["-r", str(half)])
    assert [line["large"] for line in lines(half)] == [line["large"] for line in lines(whole.run_dir)]


REGRESSION: dict[str, Any] = {
    "data_loader": {
        "type": "RandomTensorLoader",
        "args": {"num_samples": 50, "input_shape": [6], "target_shape": [3], "batch_size": 8},
    },
    "metrics": ["mean_squared_error"],
}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.args.in_features=5", "first batch"),
        ("model.args.out_features=1", "first batch"),
        ('metrics=[{"type": "top_k_accuracy", "args": {"k": 7}}]', "larger than the model's 3 classes"),
        ("trainer.monitor=min val_loss data_loader.args.validation_split=0", "validation_split"),
        ("runtime.device=cuda:77", "is not a device of this machine"),
    ],
)
def test_parts_that_do_not_fit_are_the_users_to_mend(fit: Fit, tmp_path: Path, override: str, says: str) -> None:
    overrides = override.split(" ") if "validation_split" in override else [override]
    if len(overrides) > 2:
        overrides = [" ".join(overrides[:2]), overrides[2]]
    with pytest.raises(UserError, match=says):
        fit(*overrides)
    assert not list(tmp_path.glob("saved/small/*")), "a run folder with nothing in it"


def test_an_error_in_the_users_code_leaves_no_empty_folder_either(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.two_layer_net.TwoLayerNet.forward", lambda self, x: self.fc3(x))
    with pytest.raises(UserError, match=r"no attribute 'fc3'[^$]*removed the empty run folder"):
        fit()
    assert not (tmp_path / "saved" / "small").exists()


def test_a_resumed_run_keeps_its_folder_even_if_nothing_is_in_it(fit: Fit) -> None:
    run = fit().run_dir
    for path in [*(run / "checkpoints").iterdir(), run / "metrics.jsonl", run / "environment.json"]:
        path.unlink()
    config = json.loads((run / "config.json").read_text())
    config["model"]["args"]["in_features"] = 5
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="first batch"):
        train.main(["-r", str(run)])
    assert (run / "config.json").exists()


def test_a_folder_that_holds_anything_else_stays(tmp_path: Path) -> None:
    def left(name: str) -> bool:
        folder = RunFolder.create(str(tmp_path), "a")
        folder.config.write_text("{}")
        (folder.path / name).touch()
        return not folder.remove_empty() and folder.config.exists()

    assert not left("events.out.tfevents.1.machine")
    assert left("notes.txt")
    assert left("metrics.jsonl")
    assert left("checkpoints/step-00000001.pth")


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_torchmetrics_by_name(fit: Fit) -> None:
    f1 = {"type": "F1Score", "name": "f1", "args": {"task": "multiclass", "num_classes": 3, "average": "macro"}}
    result = fit(metrics=["accuracy", f1])
    assert 0 <= result.last["val_f1"] <= 1
    assert "f1/valid" in curves(result.run_dir)


def test_losses_of_torch_by_name(fit: Fit) -> None:
    assert fit(loss="CrossEntropyLoss").last["loss"] == fit(loss="cross_entropy").last["loss"]
    says = r"config.json:\d+:\d+: loss.args.reduction: the loss must be \"mean\" or \"sum\" over the samples"
    with pytest.raises(ConfigError, match=says):
        fit(loss={"type": "CrossEntropyLoss", "args": {"reduction": "none"}})


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_has_training_and_validation_in_one_group(fit: Fit) -> None:
    result = fit("trainer.epochs=3")
    found = curves(result.run_dir)
    expected = {"loss/train", "loss/valid", "loss/step", "accuracy/train", "accuracy/valid", "accuracy/step"}
    assert found.keys() - {"gradient_norm"} == expected | {"learning_rate"}
    assert [step for step, _ in found["loss/valid"]] == [5, 10, 15]
    assert [step for step, _ in found["loss/step"]] == [2, 4, 6, 8, 10, 12, 14]
    assert [step for step, _ in found["learning_rate"]] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    records = lines(result.run_dir)
    for tag, name in [("loss/train", "loss"), ("accuracy/valid", "val_accuracy")]:
        assert [value for _, value in found[tag]] == pytest.approx([record[name] for record in records])
    assert "events" not in [path.name[:6] for path in fit("trainer.tensorboard=false").run_dir.iterdir()]


def test_a_run_can_be_taken_as_a_config(fit: Fit) -> None:
    first = fit("--lr=0.05")
    again = train.main(["-c", str(first.run_dir / "config.json")])
    assert load_config(first.run_dir / "config.json").config == load_config(again.run_dir / "config.json").config
    assert lines(first.run_dir) == lines(again.run_dir)
    assert first.run_dir != again.run_dir


class Failing(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("a mistake in the user's code")


class FailingLoader(RandomTensorLoader):
    def training_data(self, *, augment: bool) -> Any:
        return Failing()


@pytest.mark.slow
def test_a_mistake_in_a_data_set_is_not_a_worker_that_died(fit: Fit) -> None:
    data = ("data_loader.type=FailingLoader", "data_loader.args.num_workers=1", "data_loader.args.validation_split=0")
    with (
        temporarily(DATA_LOADERS, FailingLoader),
        pytest.raises(DataError, match=r"sample 7 cannot be read: .* a mistake in the user's code"),
    ):
        fit(*data)
