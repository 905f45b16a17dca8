"""Names in other templates, libraries and torch.nn.functional, and their equivalents here."""

import re
from collections.abc import Callable, Sequence
from typing import Any

# by what to use instead
_FORMER_KEYS = {
    '"model"': "arch net network backbone",
    '"data_loader"': "dataset datamodule train_loader train_dataloader",
    '"data_loader": {"args": ...}': "data_loader_args",
    "a data loader of your own (docs/data.md)": "transform transforms augmentation",
    '"loss"': "criterion loss_fn loss_function",
    '"lr", under optimizer.args': "learning_rate base_lr",
    '"groups"': "param_groups",
    '"lr_scheduler": {"type": ...}': "lr_scheduler_type",
    'a "SequentialLR" (docs/training.md: Warm-up and decay)': "warmup warmup_steps warmup_epochs",
    '"weights": {"file": ...}, under "model"': "pretrained init_from load_from",
    "torch.utils.checkpoint in the model": "gradient_checkpointing",
    "a trainer of your own (docs/training.md)": "callbacks",
    '"epochs", under "trainer"': "max_epochs num_epochs n_epochs num_train_epochs nb_epochs",
    '"steps_per_epoch" and "epochs", under "trainer"': "max_steps total_steps num_steps iterations",
    '"steps_per_epoch", under "trainer"': "len_epoch",
    '"accumulate_steps", under "trainer"': "accumulate_grad_batches gradient_accumulation gradient_accumulation_steps",
    '"clip_grad_norm", under "trainer"': "grad_clip gradient_clip_val max_grad_norm",
    '"ema": {"decay": ...}, under "trainer"': "ema_decay",
    '"monitor": "min NAME" or "max NAME", under "trainer"': "mode",
    '"early_stop", under "trainer"': "early_stopping",
    '"early_stop", under "trainer"; that of a scheduler belongs under lr_scheduler.args': "patience",
    '"validate_every_steps", under "trainer"': "val_check_interval eval_steps eval_every val_step",
    '"save_dir", under "trainer"': "output_dir out_dir log_dir checkpoint_dir",
    '"save_period"': "save_freq",
    '"keep_last", under "trainer"; best.pth is kept, too': "save_top_k save_total_limit",
    '"writers", under "trainer"': "logger loggers wandb mlflow visualize",
    '"tensorboard"': "tensorboardX",
    '"tensorboard", under "trainer"': "visualization",
    "the command: python train.py -r RUN": "resume resume_from_checkpoint ckpt_path",
    '"precision", under "runtime"': "amp fp16 mixed_precision",
    '"runtime": {"device": ...}; several processes are started with torchrun': (
        "n_gpu gpu gpus cuda with_cuda devices device_id device_ids accelerator num_nodes"
    ),
}
FORMER_KEYS = {former: key for key, names in _FORMER_KEYS.items() for former in names.split()}

FORMER_NAMES = {
    "data loader": {"MnistDataLoader": '"CIFAR10Loader", or a file of your own in data_loader/'},
    "model": {"MnistModel": '"LeNet"'},
    "loss": {
        "nll_loss": '"cross_entropy" on outputs without log_softmax, or torch.nn\'s "NLLLoss"',
        "binary_cross_entropy": 'torch.nn\'s "BCELoss"',
        "binary_cross_entropy_with_logits": 'torch.nn\'s "BCEWithLogitsLoss"',
        "L1": 'torch.nn\'s "L1Loss"',
    },
    "metric": {
        "top_k_acc": '{"type": "top_k_accuracy", "args": {"k": 3}}',
        "top_acc": '"accuracy"',
        "acc": '"accuracy"',
        "roc_auc": '"AUROC"',
        "pr_auc": '"AveragePrecision"',
        **dict.fromkeys(("iou", "miou", "mIoU"), '"JaccardIndex"'),
        **dict.fromkeys(("psnr", "PSNR"), '"PeakSignalNoiseRatio"'),
        "mse": '"mean_squared_error"',
        "mae": '"mean_absolute_error"',
        "rmse": '{"type": "MeanSquaredError", "args": {"squared": false}}',
        "f1": '{"type": "F1Score", "args": {"task": "multiclass", "num_classes": ...}}',
    },
    "scheduler": {"cosine": '"CosineAnnealingLR"'},
}
"""Components, by kind."""


def former_name(kind: str, name: str) -> str | None:
    """The equivalent of a component of a kind that is called differently elsewhere."""
    return FORMER_NAMES.get(kind, {}).get(name)


FORMER_HOOKS = {
    "training_step": "train_step(batch), which calls self.backward(loss)",
    "validation_step": "eval_step(batch)",
    "_train_epoch": "train_step(batch) for each batch",
    "_valid_epoch": "eval_step(batch) for each batch",
    "configure_optimizers": '"optimizer" and "lr_scheduler" in the config',
    "on_train_epoch_start": "begin_epoch(epoch)",
    "on_train_epoch_end": "a metric class, or begin_epoch(epoch) of the next one",
    "on_validation_epoch_end": "a metric class",
}
"""Methods that trainers of Lightning and victoresque/pytorch-template define."""


def hook_hint(trainer: Callable[..., Any]) -> str:
    """What to define instead of a method that only other frameworks call; "" if it has none, or ours too."""
    if not isinstance(trainer, type):
        return ""
    for name, instead in FORMER_HOOKS.items():
        owner = next((kind for kind in trainer.__mro__ if name in vars(kind)), None)
        if owner is not None and instead.partition("(")[0] not in vars(owner):
            return f"{trainer.__name__}.{name} is never called here; instead: {instead}"
    return ""


def key_meant(key: str, known: Sequence[str]) -> str | None:
    """The key of a section that is called differently elsewhere; None if it is not one of those known."""
    former = FORMER_KEYS.get(key, "")
    return next((name for name in known if former.startswith(f'"{name}"')), None)


_FORMER_IMPORTS = {
    "Write: from base.base_model import BaseModel": "BaseModel",
    "Write: from base.base_data_loader import BaseDataLoader": "BaseDataLoader",
    "Write: from base.base_trainer import BaseTrainer": "BaseTrainer",
    "The training loop does that here: leave out the import": (
        "MetricTracker inf_loop prepare_device ensure_dir read_json write_json util utils"
    ),
    "A trainer here logs by StepResult(..., log={...}), self.picture and self.text": (
        "TensorboardWriter WriterTensorboard WriterTensorboardX setup_logging Logger visualization logger"
    ),
    "The config is read before: each component gets its own arguments": "ConfigParser parse_config",
}
"""What victoresque/pytorch-template and projects built on it import, by what to do instead."""
_FORMER_PACKAGES = ("base", "utils", "logger", "parse_config")


def import_hint(error: BaseException) -> str:
    """What to write instead of an import that only other templates have; "" if it is none of those."""
    if not isinstance(error, ImportError) or (error.name or "").split(".")[0] not in _FORMER_PACKAGES:
        return ""
    named = re.match(r"cannot import name '(\w+)'", str(error))
    name = named[1] if named else str(error.name).rpartition(".")[2]
    instead = next((advice for advice, names in _FORMER_IMPORTS.items() if name in names.split()), "")
    return f"{instead} (docs/migrating.md)" if instead else ""
