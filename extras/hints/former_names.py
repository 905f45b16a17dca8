"""Names in other templates, libraries and torch.nn.functional, and their equivalents here."""

import re
from collections.abc import Sequence

FORMER_NAMES = {
    "arch": '"model"',
    "n_gpu": '"runtime": {"device": ...}; several processes are started with torchrun',
    "save_freq": '"save_period"',
    "len_epoch": '"steps_per_epoch", under "trainer"',
    "data_loader_args": '"data_loader": {"args": ...}',
    "lr_scheduler_type": '"lr_scheduler": {"type": ...}',
    "tensorboardX": '"tensorboard"',
    "visualization": '"tensorboard", under "trainer"',
    "nll_loss": '"cross_entropy" on outputs without log_softmax, or torch.nn\'s "NLLLoss"',
    "binary_cross_entropy": 'torch.nn\'s "BCELoss"',
    "binary_cross_entropy_with_logits": 'torch.nn\'s "BCEWithLogitsLoss"',
    "top_k_acc": '{"type": "top_k_accuracy", "args": {"k": 3}}',
    "top_acc": '"accuracy"',
    "acc": '"accuracy"',
    "f1": '{"type": "F1Score", "args": {"task": "multiclass", "num_classes": ...}}',
    "L1": 'torch.nn\'s "L1Loss"',
    "cosine": '"CosineAnnealingLR"',
    "patience": '"early_stop", under "trainer"; that of a scheduler belongs under lr_scheduler.args',
    **dict.fromkeys(("grad_clip", "gradient_clip_val", "max_grad_norm"), '"clip_grad_norm", under "trainer"'),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation", "gradient_accumulation_steps"),
        '"accumulate_steps", under "trainer"',
    ),
    **dict.fromkeys(("amp", "fp16", "mixed_precision"), '"precision", under "runtime"'),
    "MnistModel": '"LeNet"',
    "MnistDataLoader": '"CIFAR10Loader", or a file of your own in data_loader/',
}


FORMER_IMPORTS = {
    "BaseDataLoader": "Here: from base.base_data_loader import BaseDataLoader",
    "BaseModel": "Here: from base.base_model import BaseModel",
    "BaseTrainer": "Here: from base.base_trainer import BaseTrainer",
    "ConfigParser": "Leave it out: a component gets its keys as arguments",
    "MetricTracker": "Leave it out: the loop averages losses and metrics",
    "inf_loop": "Leave it out: trainer.steps_per_epoch sets the length of an epoch",
}


def import_hint(error: BaseException) -> str:
    """What replaces a name that a project elsewhere imports; "" for any other error."""
    found = re.search("cannot import name '(\\w+)' from '(base|utils|parse_config)'", str(error))
    name = found[1] if found else "ConfigParser" if "'parse_config'" in str(error) else ""
    return f"\n{FORMER_IMPORTS[name]}" if isinstance(error, ImportError) and name in FORMER_IMPORTS else ""


def key_meant(key: str, known: Sequence[str]) -> str | None:
    """The key of a section that is called differently elsewhere; None if it is not one of those known."""
    former = FORMER_NAMES.get(key, "")
    return next((name for name in known if former.startswith(f'"{name}"')), None)
