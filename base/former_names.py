"""What trainers of Lightning and victoresque/pytorch-template define and use, and what a trainer has here."""

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
"""Methods of trainers that are called elsewhere, and never here."""

FORMER_ATTRIBUTES = {
    "config": "arguments of its constructor, from trainer.args",
    "current_epoch": "self.progress.epochs",
    "device": "self.runtime.device",
    "global_step": "self.progress.steps",
    "hparams": "arguments of its constructor, from trainer.args",
    "log_dict": "StepResult(..., log={...}) and the class attribute logs",
    "logger": "self.picture, self.text, and StepResult(..., log={...})",
    "manual_backward": "self.backward(loss)",
    "metric_ftns": '"metrics" in the config',
    "optimizers": "with self.optimizing(NAME), for each of several optimizers",
    "training": "self.model.training",
    "writer": "self.picture, self.text, and StepResult(..., log={...})",
}
"""Attributes of trainers elsewhere."""
