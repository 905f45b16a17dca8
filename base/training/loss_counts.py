"""A warning where losses by name are averaged over different numbers, so that no weight of a micro-batch is exact."""

from base.training.trainer_interface import TrainerInterface

ROUNDING = 1e-5
"""Relative, of counts such as sums of class weights."""


def check_counts(trainer: TrainerInterface) -> None:
    """Warn once if the gradients of losses by name are not those of one large batch.

    The gradient of their sum gets one weight per micro-batch. This is wrong for some of the losses if the micro-batch
    has a larger share of one loss's count than of another's. All processes must call this before the metrics are read.
    """
    losses, process_group = getattr(trainer.experiment.criterion, "losses", {}), trainer.runtime.process_group
    divided = trainer.settings.accumulate_steps > 1 or process_group.world_size > 1
    if not divided or len(losses) < 2 or trainer.experiment.sum_loss or trainer.warned_of_counts:
        return
    counts = [trainer.train_metrics.means[name].pending_weights() for name in losses]  # of each micro-batch
    totals = process_group.all_reduce_sum([sum(each) for each in counts])
    shares = [[count / total for count in each] for each, total in zip(counts, totals, strict=True) if total]
    differs = any(min(each) < (1 - ROUNDING) * max(each) for each in zip(*shares, strict=False))
    trainer.warned_of_counts = process_group.all_reduce_sum([differs])[0] > 0
    if trainer.warned_of_counts:
        trainer.experiment.console.warn(
            f"the losses {', '.join(losses)} are averaged over different numbers of targets, in proportions that "
            "differ between micro-batches: their gradients are not exactly those of one large batch. They are with "
            'one micro-batch per step in one process, with reduction "sum" in all these losses, or with a single loss '
            "that counts for all terms (docs/training.md: Several losses)"
        )
