"""The best training loops that we can write by hand: what the project is measured against.

A script of its own that imports nothing of the project:
``python dev/bench/hand_written.py JOB FOLDER [DATA_DIR [DEVICE]]``.
The data lie in memory, the optimizer is fused, convolutions run with the channels last, the losses are read where it is
cheapest, TensorBoard and a checkpoint an epoch are written. Prints a line of JSON: see ``Marks``.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # until Marks.begin, so that it does not look through what is imported

import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.tensorboard import SummaryWriter


class Marks:
    """When what was done: for the report at the end. device: where it is done."""

    first_step = first_cpu = 0.0
    """The end of the first optimizer step, in seconds since the epoch and of the processors since the start."""
    loop = cpu = 0.0
    """Seconds from the first batch to the last thing written, of the clock and of the processors."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def wait(self) -> None:
        """For what an accelerator has still to do."""
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def begin(self) -> None:
        gc.freeze()  # what the imports made is not looked through again, nor at the end
        gc.enable()
        self.wait()
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def stepped(self) -> None:
        """The first optimizer step has ended."""
        self.wait()
        self.first_step, self.first_cpu = time.time(), time.process_time()

    def end(self) -> None:
        self.wait()
        self.loop, self.cpu = time.perf_counter() - self._start, time.process_time() - self._cpu

    def report(self, steps: int) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        if self.device != "cpu":
            peak = torch.accelerator.max_memory_allocated() / 2**20
        times = {"first_step": self.first_step, "first_cpu": self.first_cpu, "loop": self.loop, "cpu": self.cpu}
        print(json.dumps({**times, "steps": steps, "peak": peak, "faults": usage.ru_minflt}))


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"epoch-{epoch}.pth")


def value(loss: Tensor) -> Tensor | float:
    """A loss to add up: read where that costs nothing; from an accelerator it would have to be waited for."""
    return loss.item() if loss.is_cpu else loss.detach()


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """``zero_grad`` without its mark for torch's profiler. That of ``step`` can only be left out by private names."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def log(writer: SummaryWriter, epoch: str, step: int, loss: Tensor | float, rate: float) -> None:
    """A point of the curves. loss: the mean since the one before."""
    print(f"epoch {epoch}  step {step}  loss {loss:.4g}")
    writer.add_scalar("loss/step", loss, step)
    writer.add_scalar("learning_rate", rate, step)


class TwoLayerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1000, 100, bias=False)
        self.fc2 = nn.Linear(100, 10, bias=False)
        nn.init.normal_(self.fc1.weight)
        nn.init.normal_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(self.fc1(x).relu())
        return outputs


def two_layer(folder: Path, device: str, *, epochs: int, steps: int, log_every: int = 20) -> None:
    """The two-layer net of config.json: one batch of 64, again and again."""
    inputs, targets = torch.randn(64, 1000).to(device), torch.randn(64, 10).to(device)
    model = TwoLayerNet().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, fused=True)
    writer, marks, step = SummaryWriter(folder), Marks(device), 0
    marks.begin()
    for epoch in range(epochs):
        epoch_loss: Tensor | float = 0.0
        window_loss: Tensor | float = 0.0
        for _ in range(steps):
            clear_gradients(optimizer)
            loss = F.mse_loss(model(inputs), targets, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            window_loss += value(loss)
            step += 1
            if step == 1:
                marks.stepped()
            if step % log_every == 0:
                rate = optimizer.param_groups[0]["lr"]
                log(writer, f"{epoch + 1}/{epochs}", step, window_loss / log_every, rate)
                epoch_loss, window_loss = epoch_loss + window_loss, 0.0
        writer.add_scalar("loss/train", epoch_loss / steps, step)
        save(folder, model, optimizer, epoch)
    writer.close()
    marks.end()
    marks.report(step)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2).relu()
        x = F.max_pool2d(self.conv2(x), 2).relu()
        x = self.fc1(x.flatten(1)).relu()
        outputs: Tensor = self.fc3(self.fc2(x).relu())
        return outputs


class Photographs:
    """All of CIFAR10's training images as bytes in memory, and their labels."""

    scale = (1 / (255 * torch.tensor([0.2470, 0.2435, 0.2616]))).repeat(32)
    shift = (-torch.tensor([0.4914, 0.4822, 0.4465]) / torch.tensor([0.2470, 0.2435, 0.2616])).repeat(32)

    def __init__(self, folder: str, device: str = "cpu") -> None:
        from torchvision.datasets import CIFAR10

        files = CIFAR10(folder, train=True)
        self.images = torch.from_numpy(files.data).contiguous().to(device)
        self.labels = torch.tensor(files.targets).to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.images.index_select(0, chosen).flatten(2).float()
        torch.addcmul(self.shift, rows, self.scale, out=rows)
        return rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2), self.labels.index_select(0, chosen)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Photographs, indices: Tensor, writer: SummaryWriter, step: int) -> None:
    """Mean loss and accuracy."""
    model.eval()
    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    for chosen in torch.split(indices, 500):
        images, labels = data.batch(chosen)
        outputs = model(images)
        loss += value(F.cross_entropy(outputs, labels, reduction="sum"))
        correct += value((outputs.argmax(1) == labels).sum())
    for name, total in [("loss/valid", loss), ("accuracy/valid", correct)]:
        print(f"step {step}  {name} {total / len(indices):.4g}")
        writer.add_scalar(name, total / len(indices), step)


def lenet(
    folder: Path,
    data_dir: str,
    device: str,
    *,
    batch: int,
    held_out: int = 0,
    limit: int = 50_000,
    log_every: int,
    epochs: int = 1,
) -> None:
    """LeNet on CIFAR10 with accuracy. limit: samples to train on, for a part of an epoch."""
    data = Photographs(data_dir, device)
    split = torch.randperm(len(data.images)).to(device)
    valid, train = split[:held_out].sort().values, split[held_out:][:limit]
    steps = -(-len(train) // batch)
    model = LeNet().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.015, momentum=0.9, nesterov=True, fused=True)
    schedule = OneCycleLR(optimizer, 0.045, total_steps=epochs * steps, div_factor=3, anneal_strategy="linear")
    writer, marks, step = SummaryWriter(folder), Marks(device), 0
    marks.begin()
    for epoch in range(epochs):
        model.train()
        epoch_loss: Tensor | float = 0.0
        window_loss: Tensor | float = 0.0
        correct: Tensor | float = 0.0
        for chosen in torch.split(train[torch.randperm(len(train)).to(device)], batch):
            images, labels = data.batch(chosen)
            clear_gradients(optimizer)
            outputs = model(images)
            loss = F.cross_entropy(outputs, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            window_loss += value(loss)
            correct += value((outputs.detach().argmax(1) == labels).sum())
            step += 1
            if step == 1:
                marks.stepped()
            if step % log_every == 0:
                log(writer, f"{epoch + 1}/{epochs}", step, window_loss / log_every, float(schedule.get_last_lr()[0]))
                epoch_loss, window_loss = epoch_loss + window_loss, 0.0
        writer.add_scalar("loss/train", epoch_loss / steps, step)
        writer.add_scalar("accuracy/train", correct / len(train), step)
        if held_out:
            evaluate(model, data, valid, writer, step)
        save(folder, model, optimizer, epoch)
    writer.close()
    marks.end()
    marks.report(step)


def main(job: str, folder: Path, data_dir: str = "data", device: str = "cpu") -> None:
    epochs = 1 if device == "cpu" else 10  # an epoch takes an accelerator less time than its first kernels take to load
    torch.manual_seed(0)
    if job == "two-layer":
        two_layer(folder, device, epochs=4, steps=500)
    elif job == "two-layer, 10,000 steps":
        two_layer(folder, device, epochs=4, steps=2500)
    elif job == "lenet":
        lenet(folder, data_dir, device, batch=64, held_out=5000, log_every=50, epochs=epochs)
    elif job in ("batch 512", "batch 4096"):
        lenet(folder, data_dir, device, batch=int(job.split()[1]), held_out=5000, log_every=50, epochs=epochs)
    elif job == "batch 4":
        lenet(folder, data_dir, device, batch=4, limit=12_000, log_every=500)
    elif job == "start two-layer":
        two_layer(folder, device, epochs=1, steps=1)
    elif job == "start lenet":
        lenet(folder, data_dir, device, batch=64, held_out=5000, limit=20 * 64, log_every=50)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
