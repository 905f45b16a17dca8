"""Runs jobs in any number of processes, as torchrun starts them, but by forking one process that has all imports.

python -m tests.utils.distributed.run_jobs

Reads a line per launch, [count, jobs, results, log], and answers with its exit status. torchrun itself, which would
import torch again in every process, is tried in test_processes_fail.py.

jobs: a file with a list of {"run": arguments of train.py} with, for a resume, {"of": a run folder or the number of an
earlier job, "step": where to resume} in a copy of that folder; or of {"test": arguments of test.py, "of": a run, "out":
where to leave its report}. All are run one after the other in the same processes. results: the file for what they gave.
log: the file for what they print.
"""

import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributions import Categorical

import recipe
import train
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.data.sources import TensorSource
from base.experiment import Experiment
from base.metric import StepResult
from tests.base.data.test_orders import UnevenLengths
from tests.base.data.test_stream import ResumableStream, Stream
from tests.base.training.test_optimizers import LearntScale, PlainPair, Steady
from tests.conftest import leave_out_waste, load_script
from tests.docs import recipes
from tests.helpers import PATIENCE, ROOT, blocks
from tests.small_data import SmallSamples, SmallTensors, images
from trainer.trainer import Trainer
from utils.checkpoint.file import file_name
from utils.distributed import fsdp, get_process_group
from utils.errors import TrainingError, UserError
from utils.registry import DATA_LOADERS, LOSSES, MODELS, TRAINERS, import_components
from utils.schema import TrainerConfig

DIGITS = 5  # of a port, padded with spaces
# what the runs would import on the way, each process by itself
LATE_IMPORTS = (
    "extras.report.figures",
    "extras.tensorboard.board",
    "torchmetrics",
    "torchvision.transforms.v2",
    "utils.checkpoint.sharded",
    "utils.distributed.torchrun",
)


documented: dict[str, Any] = {}
"""What the page about several processes defines."""


class Restless(BaseModel):
    """Everything that is not a function of its input alone: dropout and running means."""

    def __init__(self, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten()
        )
        self.out = nn.Linear(4 * 15 * 15, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))  # type: ignore[no-any-return]


class TiedLayers(BaseModel):
    """Two layers that share a weight, as the embedding and the output of a language model do, and a repeated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3 * 32 * 32, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight
        repeated = nn.Linear(8, 8)
        self.repeated = nn.Sequential(repeated, nn.Tanh(), repeated)
        self.out = nn.Linear(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).tanh()  # type: ignore[no-any-return]

    def inner(self, features: Tensor) -> Tensor:
        return self.second(features).tanh()  # type: ignore[no-any-return]

    def middle(self, features: Tensor) -> Tensor:
        return self.inner(features).relu()

    def classify(self, features: Tensor) -> Tensor:
        features = self.third(self.middle(features)).tanh()
        return self.out(self.repeated(features))  # type: ignore[no-any-return]

    def distribution(self, x: Tensor) -> Categorical:
        return Categorical(logits=self(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)


class DifferentTensors(SmallTensors):
    """One sample more in each further process."""

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(*images(120 + get_process_group().rank))


class Idle(BaseModel):
    """A layer that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


class Sometimes(BaseModel):
    """A layer for some samples, of which a process may have none, and a table as long as most of them so far."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.used, self.extra = nn.Linear(12, 3), nn.Linear(12, 3)
        self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.used(x)
        chosen = (x[:, 0] > 1).nonzero()[:, 0]
        if len(chosen) > len(self.table):
            self.table = torch.ones(len(chosen))
        return outputs.index_add(0, chosen, self.extra(x[chosen])) if len(chosen) else outputs


class Scaled(BaseModel):
    """A parameter of shape () or, with a hook, (1,)."""

    def __init__(self, *, hooked: bool = False) -> None:
        super().__init__()
        self.out, self.scale = nn.Linear(12, 3), nn.Parameter(torch.ones(1 if hooked else ()))
        if hooked:
            self.scale.register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.out(x)  # type: ignore[no-any-return]


class SparseRows(BaseModel):
    """Rows of an embedding, whose gradients are sparse, for numbers rounded down, between dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(12, 3), nn.Linear(3, 3)
        self.rows = nn.Embedding(64, 3, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows((8 * x).long().clamp(-32, 31) + 32).sum(1)  # (B, 12) -> (B, 3)
        return self.out(self.first(x) + rows)  # type: ignore[no-any-return]


class Coder(BaseModel):
    """A model of which a trainer calls parts and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
        self.decoder, self.size, self.gain = nn.Linear(4, 6), 4, 1.0

    def decode(self, codes: Tensor) -> Tensor:
        return self.gain * self.decoder(codes)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encoder(x))


class CoderTrainer(BaseTrainer):
    """Reconstructs by parts of the model, sets an attribute of it, and takes two losses by two calls."""

    supervised = False
    model: Any

    def begin_epoch(self, epoch: int) -> None:
        self.model.gain = 1 / epoch

    def train_step(self, batch: Any) -> StepResult:
        inputs = codes = batch[0]
        for layer in self.model.encoder:
            codes = layer(codes)
        assert len(self.model.encoder) == 2
        assert self.model.encoder[0].out_features == self.model.size == codes.shape[1]
        outputs = self.model.decode(codes)
        loss, penalty = self.criterion(outputs, inputs), codes.square().mean()
        self.backward(loss)
        self.backward(penalty)
        return StepResult(loss + penalty, outputs, inputs)

    def eval_step(self, batch: Any) -> StepResult:
        outputs = self.model(batch[0])
        return StepResult(self.criterion(outputs, batch[0]), outputs, batch[0])


class MethodsTrainer(Trainer):
    """Calls a method of the model after another one, or one that returns no tensors."""

    model: Any

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        if self.progress.steps % 2:
            outputs = self.model.distribution(inputs).logits
        else:
            outputs = self.model.classify(self.model.features(inputs))
        loss = self.criterion(outputs, targets)
        self.backward(loss)
        return StepResult(loss, outputs, targets)


class ThawingTrainer(Trainer):
    """Runs the model, shrinks weights, and freezes and thaws layers from epoch to epoch."""

    model: Any

    def begin_epoch(self, epoch: int) -> None:
        with torch.no_grad():
            self.model(torch.ones(2, 6))
            self.model.fc1.weight.mul_(0.5)
        self.model.fc1.requires_grad_(epoch > 1)
        self.model.fc2.requires_grad_(epoch < 3)

    def end_epoch(self, validation: dict[str, float]) -> None:
        with torch.no_grad():
            self.model.fc2.weight.mul_(0.5)
        super().end_epoch(validation)


class LateTrainer(Trainer):
    """Thaws a layer within an epoch."""

    model: Any

    def begin_epoch(self, epoch: int) -> None:
        self.model.fc1.requires_grad_(False)

    def train_step(self, batch: Any) -> StepResult:
        self.model.fc1.requires_grad_(self.progress.steps > 0)
        return super().train_step(batch)


class IdlingTrainer(Trainer):
    """Has no loss in the second micro-batch of its first step."""

    def train_step(self, batch: Any) -> StepResult:
        if self.called_backward:
            return self.eval_step(batch)
        return super().train_step(batch)


class GatheringTrainer(Trainer):
    """Compares its outputs with those of all processes, as a contrastive loss does. how: by what it gathers them."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, how: str) -> None:
        super().__init__(experiment, settings)
        self.how = how

    def train_step(self, batch: Any) -> StepResult:
        outputs = self.model(batch[0])
        everyone = [outputs]
        with torch.no_grad():
            self.runtime.process_group.all_gather(outputs)  # where no gradient is wanted, it may be any tensor
        if self.how == "objects":
            everyone = self.runtime.process_group.all_gather(outputs)
        elif self.runtime.process_group.world_size > 1:
            everyone = [documented["AllGather"].apply(outputs)]
        loss = (outputs @ torch.cat(everyone).T).square().mean()
        self.backward(loss)
        return StepResult(loss, outputs, batch[1])


class ReplayTrainer(Trainer):
    """Keeps what its own process has seen, as docs/distributed.md does."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.replay = nn.Module()
        self.replay.register_buffer("seen", torch.zeros(()))

    def stateful(self) -> dict[str, Any]:
        parts = super().stateful()
        if hasattr(self, "training"):
            parts["replay"] = documented["PerProcess"](self.replay, self.runtime.process_group)
        return parts

    def train_step(self, batch: Any) -> StepResult:
        self.replay.seen += batch[0].sum()
        return super().train_step([batch[0] + self.replay.seen, batch[1]])


def copy_of(run: Path, step: int) -> Path:
    """A copy of a run in its own time, beside it; gives its checkpoint of a step."""
    number = len(list(run.parent.iterdir()))
    target = run.with_name(f"20200101-{number:06d}")
    shutil.copytree(run, target)
    return target / "checkpoints" / file_name(step)


def work(jobs: list[dict[str, Any]]) -> list[str]:
    """Run folders, or what was said instead."""
    results: list[str] = []
    for job in jobs:
        arguments, run = list(job.get("run", [])), Path()
        try:
            if "of" in job:
                run = Path(results[job["of"]] if isinstance(job["of"], int) else job["of"])
            if "test" in job:
                load_script("test").main(["-r", str(run), "--out", job["out"], *job["test"]])
                results.append(job["out"])
                continue
            if "of" in job:
                copied = functools.partial(copy_of, run, job["step"])
                arguments += ["-r", str(get_process_group().broadcast_object(copied))]
            results.append(str(train.main(arguments).run_dir))
        except (UserError, TrainingError) as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


def register() -> None:
    for loader in (SmallTensors, DifferentTensors, SmallSamples, Stream, ResumableStream, UnevenLengths):
        DATA_LOADERS.register(loader)
    for model in (Restless, TiedLayers, Idle, Sometimes, Scaled, SparseRows, PlainPair, Coder):
        MODELS.register(model)
    LOSSES.register(LearntScale)
    trainers: tuple[Any, ...] = (
        CoderTrainer, GatheringTrainer, IdlingTrainer, LateTrainer, MethodsTrainer, ReplayTrainer, Steady,
        ThawingTrainer,
    )  # fmt: skip
    for trainer in trainers:
        TRAINERS.register(trainer)
    fsdp.UNIT_PARAMETERS = 50  # so that small models have several units
    documented.update(torch=torch, dist=dist)
    for block in blocks(ROOT / "docs" / "distributed.md", "python"):
        exec(block, documented)
    for name in recipe.names():
        with contextlib.suppress(ModuleNotFoundError):  # transformers, which only one of them needs
            recipes.install(name)


def launch(count: int, jobs: Path, results: Path, log: Path) -> int:
    """Run the jobs in so many processes; the exit status of the first that fails, or 0."""
    ports, port = os.pipe()
    children = {}
    with log.open("w") as output:
        for rank in range(count):
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                # now, while this thread is alone: the first use after a fork replaces torch's pool of threads, which
                # two threads cannot do at once
                torch.set_num_threads(1)
                if count > 1:
                    join(rank, count, port=int(os.read(ports, DIGITS)))
                os._exit(run_all(jobs, results))
            children[child] = rank
    # only now: a process that is forked beside the store's thread could wait for a lock of it forever
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in children:
        os.write(port, f"{store.port:{DIGITS}}".encode())
    status = 0
    while children:
        child, ended = os.wait()
        del children[child]
        if ended and not status:
            status = os.waitstatus_to_exitcode(ended)
            for other in children:
                os.kill(other, signal.SIGKILL)
    return status


def join(rank: int, count: int, *, port: int) -> None:
    """What torchrun tells a process: its place, and where the launcher's store is."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launcher = {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({key: str(value) for key, value in {**place, **launcher}.items()})


def run_all(jobs: Path, results: Path) -> int:
    try:
        process_group = get_process_group()
        process_group.connect(PATIENCE)
        found = work(json.loads(jobs.read_text()))
        if process_group.is_main_process:
            results.write_text(json.dumps(found))
        process_group.finish()
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    register()
    import_components()
    for name in LATE_IMPORTS:
        if name.startswith("extras.") and not (ROOT / "extras").exists():  # in a minimal project
            continue
        importlib.import_module(name)
    torch.set_num_threads(1)
    leave_out_waste(pytest.MonkeyPatch())
    for line in sys.stdin:
        count, *paths = json.loads(line)
        launcher = os.fork()
        if launcher == 0:
            os._exit(launch(count, *map(Path, paths)))
        print(os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
