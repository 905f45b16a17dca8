"""Resume runs with random changes of their config: each takes effect, or is refused and the folder stays as it is.

python dev/campaigns/resume_changes.py --changes 500

Needs no data and about half a second a change. Status 1 if a change is ignored, if a refusal has changed the folder, or
if a run that was refused cannot be resumed as it was.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

import train
from tests.conftest import small_config
from utils import checkpoint
from utils.config import load_config
from utils.config.resume import changes, with_all_defaults
from utils.errors import UserError
from utils.registry import OPTIMIZERS, SCHEDULERS, import_components
from utils.schema import Config

Json = dict[str, Any]
LOSSES = ("cross_entropy", {"type": "CrossEntropyLoss", "args": {"weight": [1.0, 2.0, 0.5]}}, "MultiMarginLoss")
# values to draw from, for a start and for a change
VALUES: dict[str, list[Any]] = {
    "seed": [0, 1],
    "model.args.hidden_features": [4, 5],
    "model.args.bias": [True, False],
    "loss": [*LOSSES],
    "metrics": [["accuracy"], [], ["accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}]],
    "data_loader.args.batch_size": [10, 7],
    "data_loader.args.eval_batch_size": [None, 5],
    "data_loader.args.num_samples": [60, 50],
    "data_loader.args.validation_split": [0.2, 0.3],
    "data_loader.args.shuffle": [True, False],
    "data_loader.args.drop_last": [True, False],
    "data_loader.args.num_workers": [0, 0, 1],
    "trainer.epochs": [2, 3, 4],
    "trainer.steps_per_epoch": [None, 4, 7],
    "trainer.accumulate_steps": [1, 2],
    "trainer.clip_grad_norm": [None, 0.1],
    "trainer.monitor": ["min val_loss", "max val_loss", "min loss"],
    "trainer.early_stop": [None, 1, 5],
    "trainer.save_period": [1, 2],
    "trainer.keep_last": [None, 1, 3],
    "trainer.log_every_steps": [1, 3, 50],
    "trainer.tensorboard": [True, False],
    "trainer.profile_steps": [None],
    "trainer.verbosity": [1, 2],
    "trainer.checkpoint": ["full", "sharded"],
    "runtime.precision": ["fp32", "bf16"],
    "runtime.device": ["cpu", "auto"],
    "runtime.timeout": [600.0, 60.0],
    "name": ["small", "other"],
    "trainer.save_dir": [None],
}
NOT_TRIED = {"SparseAdam", "SequentialLR", "ChainedScheduler"}
RATES = (0.01, 0.05, 0.1)


def component(draw: random.Random, registry: Any, kind: str) -> Json:
    """An optimizer or a scheduler of torch, with some of its arguments changed from their defaults."""
    name = draw.choice([name for name in registry.names() if name not in NOT_TRIED and name not in registry.own()])
    args: Json = {"lr": draw.choice(RATES)} if kind == "optimizer" else {}
    for key, parameter in registry.parameters(name).items():
        default = parameter.default
        if default is parameter.empty:
            args[key] = {"step_size": 2, "milestones": [1, 3], "T_0": 2, "gamma": 0.8}.get(key, draw.choice(RATES))
        elif draw.random() < 0.3 and key not in ("lr", "total_steps", "epochs", "steps_per_epoch"):
            if isinstance(default, bool):
                args[key] = not default
            elif isinstance(default, int) and default > 0:
                args[key] = default + draw.choice((1, 2))
            elif isinstance(default, float) and 0 < default < 1:
                args[key] = draw.choice((default, default * 0.9))
    return {"type": name, "args": args}


def drawn(draw: random.Random, key: str) -> Any:
    if key == "optimizer":
        return component(draw, OPTIMIZERS, key)
    if key == "lr_scheduler":
        interval = draw.choice(("epoch", "step"))
        return None if draw.random() < 0.3 else component(draw, SCHEDULERS, key) | {"interval": interval}
    return draw.choice(VALUES[key])


def overridden(config: Json, key: str, value: Any) -> Json:
    config = json.loads(json.dumps(config))
    at = config
    *parents, last = key.split(".")
    for part in parents:
        at = at[part]
    at[last] = value
    return config


def start(draw: random.Random, folder: Path) -> tuple[Path, Json] | None:
    """A run with a random config; None if the config is refused."""
    length = {"epochs": 2, "monitor": "min val_loss", "keep_last": None, "save_every_steps": 1}
    path = small_config(
        folder,
        optimizer=component(draw, OPTIMIZERS, "optimizer"),
        lr_scheduler=drawn(draw, "lr_scheduler"),
        trainer={**length, "save_dir": str(folder)},
    )
    config: Json = json.loads(path.read_text())
    for key in draw.sample([key for key in VALUES if key not in ("trainer.save_dir", "trainer.keep_last")], 5):
        config = overridden(config, key, drawn(draw, key))
    path.write_text(json.dumps(config))
    try:
        run = train.main(["-c", str(path)]).run_dir
    except Exception:  # most are steps that torch or the loss does not like
        return None
    return run, json.loads((run / "config.json").read_text())


def cut(draw: random.Random, run: Path) -> None:
    """Leave the run as it was at a random checkpoint."""
    files = sorted(checkpoint.step_files(run / "checkpoints"))
    last = draw.choice(files)
    for path in files:
        if path > last:
            path.unlink()
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    for name in ("last.pth", "best.pth"):
        (run / "checkpoints" / name).unlink(missing_ok=True)


def content(run: Path) -> dict[str, bytes]:
    skipped = (".lock", ".job", "train.log")
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in skipped}


def resume(run: Path, *overrides: str) -> tuple[str, str]:
    """What was printed, and the error that refused it; empty if it was not refused."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            train.main(["-r", str(run), *overrides])
    except UserError as error:
        return printed.getvalue(), str(error)
    return printed.getvalue(), ""


def changed(draw: random.Random, config: Json) -> tuple[str, ...]:
    """Overrides of one to three keys."""
    keys = draw.sample([*VALUES, "optimizer.args", "optimizer.args", "optimizer", "lr_scheduler", "lr_scheduler"], 3)
    found = {}
    for key in keys[: draw.choice((1, 1, 2, 3))]:
        if key == "trainer.save_dir":
            found[key] = "elsewhere"
        elif key == "optimizer.args":
            new = component(draw, OPTIMIZERS, "optimizer")
            if new["type"] != config["optimizer"]["type"]:
                new["args"] = {"lr": draw.choice((0.02, 0.2))}
            found |= {f"optimizer.args.{name}": value for name, value in new["args"].items()}
        else:
            found[key] = drawn(draw, key)
    return tuple(f"{key}={json.dumps(value)}" for key, value in found.items())


def wrong(run: Path, before: Json, overrides: tuple[str, ...], seen: Counter[str]) -> str:
    """Resume with these overrides. What is wrong with what happened; empty if nothing is."""
    untouched = content(run)
    steps = checkpoint.read(checkpoint.step_files(run / "checkpoints")[0])["progress"]["steps"]
    try:
        printed, error = resume(run, *overrides)
    except Exception as failure:
        if "not finite" in str(failure) or "loss is" in str(failure):
            seen["not finite"] += 1
            return ""
        return f"{type(failure).__name__}: {failure}"
    if error:
        if content(run) != untouched:
            return f"refused, but the folder changed: {error}"
        seen["refused"] += 1
        again, second = resume(run)
        return f"cannot be resumed any more: {second} {again}" if second else ""
    after = json.loads((run / "config.json").read_text())
    progress = checkpoint.read(checkpoint.step_files(run / "checkpoints")[0])["progress"]
    if progress["steps"] == steps:
        seen["no step to take"] += 1
        return "" if after == before else "config.json changed without a step"
    expected = load_config(run / "config.json", overrides).config
    was, written = (with_all_defaults(Config.model_validate(each)) for each in (before, after))
    if left := changes(written, with_all_defaults(expected)):
        return f"config.json does not have {left[0]}"
    for change in changes(was, written):
        if before["trainer"]["verbosity"] and f"resumed with {change}" not in printed:
            return f"not reported: {change}"
        seen["took effect"] += 1
    return in_effect(run, expected.model_dump())


def in_effect(run: Path, config: Json) -> str:
    """Whether the optimizer in the newest checkpoint has the arguments of the config."""
    group = checkpoint.read(checkpoint.step_files(run / "checkpoints")[0])["optimizer"]["param_groups"][0]
    optimizer = OPTIMIZERS[config["optimizer"]["type"]](
        [torch.nn.Parameter(torch.ones(2, 2))], **config["optimizer"]["args"]
    )
    scheduled = {"lr", "initial_lr", "betas", "momentum"} if config["lr_scheduler"] else set()
    for key, value in optimizer.param_groups[0].items():
        if key not in ("params", "fused", "foreach") and key not in scheduled and group[key] != value:
            return f"the optimizer has {key} {group[key]}, and the config {value}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=500, help="how many resumes (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: 0)")
    options = parser.parse_args()
    import_components()
    torch.set_num_threads(1)
    draw, seen, failed, done = random.Random(options.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        while done < options.changes:
            folder = Path(temporary) / str(done)
            folder.mkdir(exist_ok=True)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                started = start(draw, folder)
            if started is None:
                continue
            run, before = started
            for _ in range(min(4, options.changes - done)):
                copy = run.with_name(f"20000101-{done:06d}")
                shutil.copytree(run, copy)
                cut(draw, copy)
                overrides = changed(draw, before)
                if problem := wrong(copy, before, overrides, seen):
                    failed += 1
                    print(f"{json.dumps(before)}\n  {' '.join(overrides)}\n  {problem}", flush=True)
                done += 1
                shutil.rmtree(copy)
            shutil.rmtree(folder)
    print(f"{done} resumes with changes, {failed} wrong; {dict(seen)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
