"""``sweep.py``: from the command line to a sweep's folder, and through the sweep to its end."""

import argparse
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from extras.sweep.coordinator import Coordinator
from extras.sweep.display import Display
from extras.sweep.results import Result, conclude
from extras.sweep.search import need_optuna
from extras.sweep.spaces import check_monitor, check_spaces, check_trials, grid_size, parse_spaces
from extras.sweep.sweep_folder import Spec, SweepFolder
from extras.sweep.trial_process import TrialProcesses
from utils.config.sources import read_config
from utils.distributed import launch
from utils.errors import Stopped, UserError
from utils.paths import PROJECT, display_path, shell_path
from utils.registry import import_components
from utils.streams import say, say_error
from utils.text import count, one_line

LAUNCHER = re.compile(r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
"""Variables that tell a process to train together with others, which trials do not."""


def sweep(options: argparse.Namespace) -> Result:
    """Run a new sweep, or continue one. options: config, resume, overrides, trials, jobs, sampler, pruner, note."""
    jobs = options.jobs
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be at least 1")
    if options.trials is not None and options.trials < 1:
        raise UserError(f"--trials {options.trials}: must be at least 1")
    job = None if options.resume else _job()
    first = _place("RANK", "SLURM_PROCID") == 0
    local_rank = _place("LOCAL_RANK", "SLURM_LOCALID")
    for name in filter(LAUNCHER.fullmatch, list(os.environ)):
        del os.environ[name]
    import_components()
    folder = _continued(options) if options.resume else SweepFolder.create(*_asked(options), job=job)
    spec = folder.read_spec()
    devices = torch.cuda.device_count()
    processes = TrialProcesses(threads=spec.threads, devices=devices, first_slot=local_rank * jobs, note=spec.note)
    display = Display(spec, quiet=not first)
    coordinator = Coordinator(folder, processes, display, jobs=jobs)
    if first:
        _introduce(folder, coordinator, spec, jobs)
    started = time.monotonic()
    try:
        trials = coordinator.run()
        return conclude(folder, coordinator.spec, trials, quiet=not first, seconds=time.monotonic() - started)
    except (Stopped, UserError):
        if first:
            command = f"python {shell_path(PROJECT / 'sweep.py')} -r {shell_path(folder.path)}"
            say_error(f"To continue the sweep:\n{command}")
        raise


def _job() -> str | None:
    """The launcher's id for this job, whose processes all work on the same sweep. Raises UserError if it has none."""
    name, _ = launch()
    step = os.environ.get("SLURM_STEP_ID")  # set by srun, but not in the script of a job
    if name is None and step and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        name = f"slurm-{os.environ.get('SLURM_JOB_ID')}-{step}"
    size = os.environ.get("WORLD_SIZE") or "1"
    differs = os.environ.get("TORCHELASTIC_RUN_ID") == "none" and size != os.environ.get("LOCAL_WORLD_SIZE")
    if differs or (name is None and size != "1"):
        raise UserError(
            "the processes of this launcher have no id in common by which to find the same sweep: give torchrun "
            "--rdzv-id NAME, the same on all machines, or start python sweep.py -r FOLDER on each"
        )
    return name


def _place(*variables: str) -> int:
    """The number of this process as given by torchrun or Slurm; 0 without them."""
    found = [value for name in variables if (value := os.environ.get(name, "")).isdecimal()]
    return int(found[0]) if found else 0


def _asked(options: argparse.Namespace) -> tuple[Spec, dict[str, Any]]:
    """The sweep given on the command line, checked, and its base config's values. Raises UserError."""
    config = options.config or PROJECT / "config.json"
    fixed, spaces = parse_spaces(options.overrides)
    if not spaces:
        what = f"--trials {options.trials}" if options.trials else "a sweep"
        single = f"; a single value, as in {' and '.join(fixed)}, applies to all trials" if fixed else ""
        raise UserError(f"{what} needs a space: KEY=SPACE, e.g. seed=0..4 or optimizer.args.lr=log:1e-4..1e-1{single}")
    sampler = options.sampler
    if options.trials is None:
        grid_size(spaces)
        if sampler is not None:
            raise UserError(f"--sampler {sampler} needs the number of trials: --trials N; without it, this is a grid")
    else:
        check_trials(spaces, options.trials)
        sampler = sampler or "tpe"
    pruner = options.pruner if options.pruner != "none" else None
    if sampler or pruner:
        need_optuna(f"--sampler {sampler}" if sampler else f"--pruner {pruner}")
    loaded, spaces = check_spaces(config, fixed, spaces)
    monitor = loaded.config.trainer.monitor
    if monitor is None:
        raise UserError(
            "trials are compared by the monitored value, but trainer.monitor is null; "
            'set it, e.g. trainer.monitor="min val_loss"'
        )
    check_monitor(loaded.config, spaces)
    base = read_config(config, fixed).value
    seed = base.get("seed", 0)
    threads = max(1, torch.get_num_threads() // options.jobs)  # per trial: those of a single run, divided
    spec = Spec(
        loaded.config.name, spaces, monitor, loaded.config.trainer.epochs, options.trials, sampler, pruner,
        seed if isinstance(seed, int) else 0, threads, options.note,
    )  # fmt: skip
    return spec, base


def _continued(options: argparse.Namespace) -> SweepFolder:
    """The folder of -r. --trials changes the number, and --note the label."""
    if options.config or options.overrides or options.sampler or options.pruner:
        raise UserError(
            "-r continues a sweep as it is, with at most --trials, --jobs and --note; for another one, leave out -r"
        )
    folder = SweepFolder.of(Path(options.resume))
    with folder.locked():
        own = folder.read_spec()
        if own.sampler or own.pruner:
            need_optuna(f"the sweep {folder.path}")
        if options.trials is not None and own.sampler is None:
            raise UserError(f"{folder.path} is a grid; --trials cannot change that")
        if options.trials is not None:
            check_trials(own.spaces, options.trials)
            if options.trials < (there := len(folder.trials())):
                raise UserError(f"--trials {options.trials} is the total, and {folder.path} already has {there} trials")
        asked = {name: value for name in ("trials", "note") if (value := getattr(options, name)) is not None}
        folder.write_spec(replace(own, **asked))
    return folder


def _introduce(folder: SweepFolder, coordinator: Coordinator, spec: Spec, jobs: int) -> None:
    done = sum(trial.outcome is not None for trial in folder.trials())
    total = count(coordinator.total(), "trial")
    how = f"by {spec.sampler}" if spec.sampler else "of a grid"
    pruned = f", pruned by {spec.pruner}" if spec.pruner else ""
    at_once = f", {jobs} at once" if jobs > 1 else ""
    say(f"{spec.name}: {total} {how}{pruned}{at_once}, compared by {spec.monitor}")
    if spec.note:
        say(f"  note: {one_line(spec.note)}")
    for space in spec.spaces:
        say(f"  {space.key} = {space.text}{' (integers)' if space.integer else ''}")
    threads = count(spec.threads, "thread")
    say(f"  {display_path(folder.path)}{f', {done} done' if done else ''}; {threads} a trial")
