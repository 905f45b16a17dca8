"""Names used in victoresque/pytorch-template and torch.nn.functional, and their equivalents here."""

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
