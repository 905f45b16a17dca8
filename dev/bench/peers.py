"""The same jobs as users of Lightning, ignite and accelerate write them: ``python dev/bench/peers.py NAME JOB FOLDER``.

TensorBoard, a progress bar and a checkpoint an epoch are on. Data come from torch's ``DataLoader``, which all three
expect; images are read and transformed one by one in two worker processes. Prints the same line of JSON as
hand_written.py.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hand_written import LeNet, Marks, TwoLayerNet  # type: ignore[import-not-found]  # beside this file
from jobs import SmallNet  # type: ignore[import-not-found]
from own_data import Photographs, Rows  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split


@dataclass
class Job:
    """What is trained on what. valid: None: nothing is held out."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    rate: float
    momentum: float
    train: DataLoader[Any]
    valid: DataLoader[Any] | None
    epochs: int

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), self.rate, momentum=self.momentum)


def two_layer() -> Job:
    """2,000 steps on one batch of 64: four epochs of 500 equal batches."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets, reduction="sum")

    batch = torch.randn(64, 1000).repeat(500, 1), torch.randn(64, 10).repeat(500, 1)
    return Job(TwoLayerNet(), loss, 1e-6, 0.0, DataLoader(TensorDataset(*batch), batch_size=64), None, 4)


def own(dataset: Dataset[Any], model: nn.Module) -> Job:
    """An epoch over a user's data set."""
    return Job(model, F.cross_entropy, 0.01, 0.0, DataLoader(dataset, batch_size=64, shuffle=True), None, 1)


def lenet(data_dir: str) -> Job:
    """One epoch of 45,000 images and validation on 5,000."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    look = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    train, valid = random_split(CIFAR10(data_dir, True, look), [45_000, 5_000])
    training = DataLoader(train, batch_size=64, shuffle=True, num_workers=2)
    return Job(LeNet(), F.cross_entropy, 0.015, 0.9, training, DataLoader(valid, batch_size=64, num_workers=2), 1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def by_lightning(job: Job, folder: Path, marks: Marks) -> None:
    from lightning import pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model

        def training_step(self, batch: Any, index: int) -> Tensor:
            inputs, targets = batch
            loss = job.loss(self.model(inputs), targets)
            self.log("loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            inputs, targets = batch
            outputs = self.model(inputs)
            self.log_dict({"val_loss": job.loss(outputs, targets), "val_accuracy": accuracy(outputs, targets)})

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.optimizer()

    trainer = pl.Trainer(
        max_epochs=job.epochs, accelerator="cpu", logger=TensorBoardLogger(folder), log_every_n_steps=50
    )
    marks.begin()
    trainer.fit(Module(), job.train, job.valid)
    marks.end()


def by_ignite(job: Job, folder: Path, marks: Marks) -> None:
    from ignite.contrib.handlers import ProgressBar
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import ModelCheckpoint
    from ignite.handlers.tensorboard_logger import TensorboardLogger
    from ignite.metrics import Accuracy, Loss

    optimizer = job.optimizer()
    trainer = create_supervised_trainer(job.model, optimizer, job.loss)
    logger = TensorboardLogger(log_dir=folder)
    logger.attach_output_handler(trainer, Events.ITERATION_COMPLETED(every=50), tag="train", output_transform=_loss)
    ProgressBar().attach(trainer, output_transform=_loss)
    save = ModelCheckpoint(folder, "model", n_saved=1, require_empty=False)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, save, {"model": job.model, "optimizer": optimizer})
    if job.valid is not None:
        evaluator = create_supervised_evaluator(job.model, {"loss": Loss(job.loss), "accuracy": Accuracy()})
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(job.valid))
    marks.begin()
    trainer.run(job.train, max_epochs=job.epochs)
    logger.close()
    marks.end()


def _loss(value: float) -> dict[str, float]:
    return {"loss": value}


def by_accelerate(job: Job, folder: Path, marks: Marks) -> None:
    from accelerate import Accelerator
    from tqdm import tqdm

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=folder)
    accelerator.init_trackers("run")
    model, optimizer, train = accelerator.prepare(job.model, job.optimizer(), job.train)
    valid = accelerator.prepare(job.valid) if job.valid is not None else None
    step = 0
    marks.begin()
    for epoch in range(job.epochs):
        model.train()
        for inputs, targets in tqdm(train):
            optimizer.zero_grad()
            loss = job.loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step % 50 == 0:
                accelerator.log({"loss": loss.item()}, step=step)
        if valid is not None:
            model.eval()
            with torch.no_grad():
                right = sum(float(accuracy(model(inputs), targets)) for inputs, targets in valid)
            accelerator.log({"val_accuracy": right / len(valid)}, step=step)
        accelerator.save_state(str(folder / f"epoch-{epoch}"))
    accelerator.end_training()
    marks.end()


def main(name: str, job_name: str, folder: Path, data_dir: str) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    jobs: dict[str, Callable[[], Job]] = {
        "two-layer": two_layer,
        "lenet": lambda: lenet(data_dir),
        "rows": lambda: own(Rows(40_000), SmallNet()),
        "photographs": lambda: own(Photographs(6_000), LeNet()),
    }
    job = jobs[job_name]()
    marks = Marks()
    {"lightning": by_lightning, "ignite": by_ignite, "accelerate": by_accelerate}[name](job, folder, marks)
    marks.report(job.epochs * len(job.train))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "data")
