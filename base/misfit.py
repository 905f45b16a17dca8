"""What to say when the parts of a config do not fit each other."""

from typing import Any

from base.data import describe_batch
from utils.errors import UserError
from utils.registry import user_frame

MISFITS = (RuntimeError, ValueError, TypeError, IndexError)


def misfit(error: Exception, batch: Any) -> UserError:
    """What goes wrong with the very first batch is most often a config whose parts do not fit each other."""
    return UserError(
        f"the first batch ({describe_batch(batch)}) does not go through model, loss and metrics: {error}\n"
        f"{user_frame(error)}\nDo the shapes of data_loader, model and loss in the config fit each other?"
    )
