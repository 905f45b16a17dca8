"""What real users train: models, data sets and loops by hand, for both sides of the bench.

``python dev/bench/jobs.py JOB FOLDER [- [DEVICE]]`` runs a loop by hand, which imports nothing of the project, and
prints the line of JSON of hand_written.py. components.py registers the same models and data for train.py, with
dev/bench/configs.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # as in hand_written.py

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hand_written import LeNet, Marks, clear_gradients, log, value  # type: ignore[import-not-found]  # beside this file
from own_data import CLASSES, Photographs, Rows, RowStream, Windows  # type: ignore[import-not-found]

VOCABULARY, LENGTH, IGNORED = 65, 64, 255
DEVICE = sys.argv[4] if __name__ == "__main__" and len(sys.argv) > 4 else "cpu"
"""Where the loops by hand train; the data in memory lie there."""
SHORT_EPOCHS = 1 if DEVICE == "cpu" else 10
"""Of the jobs whose epoch takes an accelerator less time than its first kernels take to load."""

# ---------------------------------------------------------------------- models


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    made: nn.Module = resnet18(num_classes=CLASSES)
    return made


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        queries, keys, values = heads
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # (B, H, T, D)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        outputs: Tensor = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return outputs


class GPT(nn.Module):
    """Four layers on characters."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(4)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)"""
        features = self.characters(codes) + self.positions.weight[: codes.shape[1]]
        logits: Tensor = self.out(self.norm(self.blocks(features)))
        return logits


class SmallUNet(nn.Module):
    """That of docs/recipes/segmentation.md."""

    def __init__(self, num_classes: int = 2, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2), nn.ReLU())
        self.out = nn.Conv2d(width + 1, num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.out(torch.cat([self.up(self.down(images)), images], 1))
        return outputs


class SmallNet(nn.Module):
    """For the data set of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(20, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(self.fc1(x).relu())
        return outputs


# ---------------------------------------------------------------------- data


def photographs(count: int) -> tuple[Tensor, Tensor]:
    """Noise in place of photographs, which takes the same time: uint8 of (N, 32, 32, 3), and labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, CLASSES, (count,), generator=generator)


def texts(count: int) -> tuple[Tensor, Tensor]:
    """Codes of characters, (N, T), and those of the characters that follow."""
    codes = torch.randint(0, VOCABULARY, (count, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return codes[:, :-1].contiguous(), codes[:, 1:].contiguous()


def discs(count: int) -> tuple[Tensor, Tensor]:
    """The images and masks of docs/recipes/segmentation.md."""
    generator = torch.Generator().manual_seed(0)
    centers = 4 + 8 * torch.rand(count, 2, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    distances = ((rows - centers[:, 0]) ** 2 + (columns - centers[:, 1]) ** 2).sqrt()  # (N, 16, 16)
    noise = torch.randn(count, 16, 16, generator=generator)
    masks = (distances < 4).long().masked_fill((distances - 4).abs() < 0.5, IGNORED)
    return (noise + 2 * (distances < 4))[:, None], masks


# ---------------------------------------------------------------------- loops by hand

Batch = tuple[Tensor, Tensor]


@dataclass
class Job:
    """What is trained on what.

    measure: a metric of torchmetrics, or like one.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    batches: Callable[[], Iterable[Batch]]
    """The training batches of an epoch."""
    validation: Callable[[], Iterable[Batch]] | None = None
    measure: Any = None
    epochs: int = 1
    clip: float | None = None


class Accuracy:
    """In the manner of torchmetrics, which takes many times as long."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right: Tensor | int = 0
        self.count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right = self.right + (outputs.argmax(1) == targets).sum()
        self.count += len(targets)

    def compute(self) -> float:
        return float(self.right) / self.count


def in_memory(
    data: Batch, first: int, end: int, size: int, prepare: Callable[[Tensor, Tensor], Batch], *, shuffle: bool
) -> Callable[[], Iterator[Batch]]:
    """Batches of the samples from first to end."""
    data = data[0].to(DEVICE), data[1].to(DEVICE)

    def batches() -> Iterator[Batch]:
        order = first + torch.randperm(end - first) if shuffle else torch.arange(first, end)
        for chosen in torch.split(order.to(DEVICE), size):
            yield prepare(data[0].index_select(0, chosen), data[1].index_select(0, chosen))

    return batches


def as_they_are(inputs: Tensor, targets: Tensor) -> Batch:
    return inputs, targets


def normalized(images: Tensor, labels: Tensor) -> Batch:
    rows = images.flatten(2).float()  # (B, H, W * 3)
    rows.mul_(2 / 255).sub_(1)
    return rows.view(images.shape).permute(0, 3, 1, 2), labels


def flipped(images: Tensor, masks: Tensor) -> Batch:
    mirrored = torch.rand(len(images), device=DEVICE) < 0.5
    images[mirrored], masks[mirrored] = images[mirrored].flip(-1), masks[mirrored].flip(-1)
    return images, masks


def resnet_job() -> Job:
    model, data = resnet18().to(DEVICE).to(memory_format=torch.channels_last), photographs(3_200)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4, fused=True)
    train = in_memory(data, 128, 3_200, 64, normalized, shuffle=True)
    return Job(
        *(model, F.cross_entropy, optimizer, train, in_memory(data, 0, 128, 64, normalized, shuffle=False)),
        measure=Accuracy(),
        epochs=SHORT_EPOCHS,
    )


def gpt_job() -> Job:
    model, data = GPT().to(DEVICE), texts(832)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)
    train = in_memory(data, 64, 832, 32, as_they_are, shuffle=True)

    def loss(logits: Tensor, codes: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())  # (B * T, V), (B * T,)

    validation = in_memory(data, 0, 64, 32, as_they_are, shuffle=False)
    return Job(model, loss, optimizer, train, validation, epochs=SHORT_EPOCHS, clip=1.0)


def segmentation_job() -> Job:
    model, data = SmallUNet().to(DEVICE).to(memory_format=torch.channels_last), discs(8_256)
    optimizer = torch.optim.Adam(model.parameters(), 0.005, fused=True)
    train = in_memory(data, 64, 8_256, 16, flipped, shuffle=True)
    validation = in_memory(data, 0, 64, 16, as_they_are, shuffle=False)

    def loss(outputs: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(outputs, masks, ignore_index=IGNORED)

    from torchmetrics import JaccardIndex  # as in the recipe, whatever it costs

    iou = JaccardIndex(task="multiclass", num_classes=2, ignore_index=IGNORED).to(DEVICE)
    return Job(model, loss, optimizer, train, validation, iou, epochs=5)


def epoch_end_job() -> Job:
    """Epochs of two steps: nearly all is validation, logging and saving."""
    model, data = LeNet().to(DEVICE).to(memory_format=torch.channels_last), photographs(5_128)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, fused=True)
    train = in_memory(data, 5_000, 5_128, 64, normalized, shuffle=True)
    validation = in_memory(data, 0, 5_000, 500, normalized, shuffle=False)
    return Job(model, F.cross_entropy, optimizer, train, validation, Accuracy(), epochs=10)


def loaded(dataset: Dataset[Any], model: nn.Module, *, batch: int = 64, workers: int = 0, epochs: int = 1) -> Job:
    """A user's data set, by torch's DataLoader."""
    model.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=True)
    loader = DataLoader(dataset, batch, shuffle=not isinstance(dataset, IterableDataset), num_workers=workers)
    return Job(model, F.cross_entropy, optimizer, lambda: loader, None, Accuracy(), epochs=epochs)


JOBS: dict[str, Callable[[], Job]] = {
    "resnet18": resnet_job,
    "gpt": gpt_job,
    "segmentation": segmentation_job,
    "epoch end": epoch_end_job,
    "rows": lambda: loaded(Rows(40_000), SmallNet()),
    "rows, 5 epochs": lambda: loaded(Rows(40_000), SmallNet(), epochs=5),
    "rows, batch 16": lambda: loaded(Rows(40_000), SmallNet(), batch=16),
    "rows, 2 workers": lambda: loaded(Rows(40_000), SmallNet(), workers=2),
    "windows, 5 epochs": lambda: loaded(Windows(40_000), SmallNet(), epochs=5),
    "stream, 5 epochs": lambda: loaded(RowStream(40_000), SmallNet(), epochs=5),
    "photographs": lambda: loaded(Photographs(6_000), LeNet()),
    "photographs, batch 16": lambda: loaded(Photographs(6_000), LeNet(), batch=16),
    "photographs, 2 workers": lambda: loaded(Photographs(6_000), LeNet(), workers=2),
}


@torch.inference_mode()
def evaluate(job: Job) -> dict[str, float]:
    """Mean loss over the samples, and the score."""
    assert job.validation is not None
    job.model.eval()
    total: Tensor | float = 0.0
    count = 0
    if job.measure:
        job.measure.reset()
    for inputs, targets in job.validation():
        outputs = job.model(inputs)
        total += value(job.loss(outputs, targets)) * len(targets)
        count += len(targets)
        if job.measure:
            job.measure.update(outputs, targets)
    return {"loss": float(total / count)} | ({"score": float(job.measure.compute())} if job.measure else {})


def save(folder: Path, job: Job, epoch: int, *, best: bool) -> None:
    """A checkpoint that is there in whole or not at all."""
    temporary = folder / "checkpoint.tmp"
    with temporary.open("wb") as file:
        torch.save({"model": job.model.state_dict(), "optimizer": job.optimizer.state_dict(), "epoch": epoch}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "last.pth")
    if best:
        (folder / "best.pth").unlink(missing_ok=True)
        os.link(folder / "last.pth", folder / "best.pth")


def train(job: Job, folder: Path, log_every: int = 20) -> None:
    writer, marks, step, lowest = SummaryWriter(folder), Marks(DEVICE), 0, float("inf")
    marks.begin()
    for epoch in range(job.epochs):
        job.model.train()
        total: Tensor | float = 0.0
        window: Tensor | float = 0.0
        samples = 0
        if job.measure:
            job.measure.reset()
        for batch in job.batches():
            inputs, targets = (part.to(DEVICE, non_blocking=True) for part in batch)
            clear_gradients(job.optimizer)
            outputs = job.model(inputs)
            loss = job.loss(outputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if job.clip:
                nn.utils.clip_grad_norm_(job.model.parameters(), job.clip)
            job.optimizer.step()
            read = value(loss)
            total, samples, window = total + read * len(targets), samples + len(targets), window + read
            if job.measure:
                job.measure.update(outputs.detach(), targets)
            step += 1
            if step == 1:
                marks.stepped()
            if step % log_every == 0:
                log(writer, f"{epoch + 1}/{job.epochs}", step, window / log_every, job.optimizer.param_groups[0]["lr"])
                window = 0.0
        values = {"train/loss": float(total / samples)}
        if job.measure:
            values["train/score"] = float(job.measure.compute())
        if job.validation:
            values |= {f"valid/{name}": found for name, found in evaluate(job).items()}
        judged = values.get("valid/loss", values["train/loss"])
        for name, found in values.items():
            writer.add_scalar(name, found, step)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch + 1, "step": step, **values}) + "\n")
        print("  ".join(f"{name} {found:.4g}" for name, found in values.items()))
        save(folder, job, epoch, best=judged < lowest)
        lowest = min(lowest, judged)
    writer.close()
    marks.end()
    marks.report(step)


if __name__ == "__main__":
    torch.manual_seed(0)
    train(JOBS[sys.argv[1]](), Path(sys.argv[2]))
