"""The trained model of another run."""

import json
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import train
from base.build import build_experiment
from base.load_run import load_run, load_trainer
from tests.helpers import Fit, state, temporarily
from trainer.trainer import Trainer
from utils.errors import CheckpointError, ConfigError, Stopped
from utils.registry import MODELS, TRAINERS
from utils.run_folder import RunFolder


def test_it_has_the_weights_that_a_test_evaluates(fit: Fit) -> None:
    run = fit('trainer.ema={"decay": 0.8}', "trainer.monitor=min val_loss").run_dir
    before = torch.get_rng_state()
    model = load_run(run).model
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, value in state(run, "best.pth")["averaged_weights"].items():
        assert torch.equal(model.state_dict()[name], value)


class Scaled(nn.Module):
    """An expanded buffer, and a state that is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0
        self.register_buffer("scale", torch.ones(1).expand(3))

    def forward(self, inputs: Tensor) -> Any:
        self.calls += self.training
        return self.layer(inputs) * self.scale

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


@pytest.mark.parametrize("ema", ["null", '{"decay": 0.8}'])
def test_a_model_with_an_expanded_buffer_and_a_state_of_its_own(fit: Fit, ema: str) -> None:
    with temporarily(MODELS, Scaled):
        run = fit(f"trainer.ema={ema}", "trainer.epochs=1", model="Scaled").run_dir
        train.main(["-r", str(run), "trainer.epochs=2"])
        assert load_run(run).model.calls == 10
        load_trainer(run)
        started = fit("trainer.epochs=1", f"model.weights={run}", model="Scaled").run_dir
        assert load_run(started).model.calls == 15


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run folder or checkpoint"):
        load_run(tmp_path / "nothing")


def test_a_model_that_has_changed_since_is_told(fit: Fit) -> None:
    run = fit().run_dir
    config = run / "config.json"
    config.write_text(config.read_text().replace('"hidden_features": 5', '"hidden_features": 4'))
    with pytest.raises(CheckpointError, match="do not match this model"):
        load_run(run)


@pytest.mark.parametrize(
    "override",
    [
        *("trainer.epochs=5", "optimizer.args.lr=0.5", "lr_scheduler=null", "trainer.freeze=[]"),
        *("trainer.ema.decay=0.5", 'trainer.ema={"decay": 0.5}'),
        *("data_loader.args.drop_last=true", "runtime.strategy=fsdp", 'trainer={"verbosity": 0, "epochs": 5}'),
        *('optimizer={"type": "SGD", "args": {"lr": 0.1}}', "optimizer.args={}", 'model.weights={"file": "a.pth"}'),
    ],
)
def test_an_override_that_only_training_reads_is_refused(fit: Fit, override: str) -> None:
    run = fit("trainer.epochs=1").run_dir
    data = json.loads((run / "config.json").read_text())["data_loader"]["args"]
    load_trainer(run, ["data_loader.args.eval_batch_size=7", "trainer.verbosity=0", "metrics=[]"])
    load_trainer(run, [f"data_loader.args={json.dumps(data)}", 'trainer={"verbosity": 0}'])
    with pytest.raises(ConfigError, match=r"^override (.*)=.*: this command does not use .*; leave it out$"):
        load_trainer(run, [override])


def test_a_checkpoint_that_its_run_has_removed_meanwhile_is_told(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = fit().run_dir / "checkpoints"
    first, _ = sorted(checkpoints.glob("step-*.pth"))

    def pruned(*arguments: Any) -> Any:
        first.unlink()
        return build_experiment(*arguments)

    monkeypatch.setattr("base.load_run.build_experiment", pruned)
    with pytest.raises(CheckpointError, match=rf"{first.name} cannot be read: No such file"):
        load_trainer(first)


def test_what_a_run_and_its_result_have(own_cifar10: Path, fit: Fit) -> None:
    args = {"data_dir": str(own_cifar10), "batch_size": 50, "download": False}
    data = {"type": "CIFAR10Loader", "args": args}
    result = fit("trainer.epochs=2", data_loader=data, model={"type": "LeNet", "args": {"in_channels": 3}})
    run = load_run(result.run_dir / "checkpoints" / "last.pth")

    assert run.class_names is not None
    assert run.class_names[3] == "cat"
    assert (run.config.model.type, run.folder, run.checkpoint.name) == ("LeNet", result.run_dir, "last.pth")
    inputs, _ = next(iter(run.data.test().one_pass())).data
    outputs = run.predict(inputs)
    assert not outputs.requires_grad
    assert torch.equal(outputs, run.model(inputs))

    assert not result.model.training
    assert torch.equal(outputs, result.model(inputs))
    assert [epoch["epoch"] for epoch in result.history] == [1, 2]
    assert result.history == [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(repr(result)) < 300, "a notebook shows it"


def test_a_run_without_a_checkpoint(fit: Fit) -> None:
    run = fit().run_dir
    for path in run.glob("checkpoints/*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_run(run)


class Noting(Trainer):
    """Notes the epochs that begin."""

    begun: ClassVar[list[int]] = []

    def begin_epoch(self, epoch: int) -> None:
        self.begun.append(epoch)


def test_a_run_that_was_stopped_before_its_first_step_is_loaded_in_its_first_epoch(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with temporarily(TRAINERS, Noting):
        monkeypatch.setattr(Noting, "check_stateful", lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            fit("trainer.type=Noting", f"trainer.save_dir={tmp_path}")
        run = RunFolder.newest(str(tmp_path), None).path
        assert state(run)["progress"]["steps"] == 0
        load_trainer(run)
    assert Noting.begun == [1]
