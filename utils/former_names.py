"""Names used in victoresque/pytorch-template, Lightning and torch.nn.functional, and their equivalents here."""

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
    "MnistModel": '"LeNet"',
    "MnistDataLoader": '"CIFAR10Loader", or a file of your own in data_loader/',
}

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
