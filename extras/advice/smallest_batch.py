"""Tries the last batch of an epoch before the first step."""

from torch import nn

from base.base_trainer import BaseTrainer
from base.data.batches import BatchRange
from extras.advice.known_errors import ONE_SAMPLE, one_sample_error
from extras.untouched import untouched

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_smallest_batch(trainer: BaseTrainer) -> None:
    """Raise UserError before the first step if the last training batch is a single sample, which BatchNorm rejects.

    Skipped with several processes, where no process can run a forward pass alone; the step itself then fails.
    """
    batches, model = trainer.training.batches, trainer.experiment.model
    size = batches.last_batch_size()
    norms = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    if size != 1 or batches.batch_size == 1 or not norms or trainer.runtime.process_group.world_size > 1:
        return
    stop = batches.samples_per_pass
    with untouched(trainer, "smallest batch"):
        [micro_batch] = batches.load([BatchRange(0, stop - 1, stop)])
        model.train()
        try:
            trainer.eval_step(trainer.runtime.to_device(micro_batch.data))
        except ValueError as error:
            if ONE_SAMPLE in str(error):
                raise one_sample_error(error, samples=stop, batch_size=batches.batch_size) from error
        except Exception:
            pass  # the first batch reports any other mistake
