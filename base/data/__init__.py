"""From a data set to the batches of a step.

``BaseDataLoader`` (base/base_data_loader.py) describes a data set and gives ``Batches``; the training loop asks these
for ``StepBatches``. The way of a batch: a position in the data, the ranges of the batches that follow, the sample
indices of each, and what the source gives for them.

batches         ``Batches``: which samples make which batch, as a function of (seed, pass, position), and their loading
sources         a data set that gives whole batches: tensors in memory, arrays on disk
sample_source   any map-style Dataset, loaded sample by sample
orders          the order of the samples in a pass: shuffled, weighted, by length
stream          data that can only be read on
sample_random   random numbers for augmentation, as a function of (seed, pass, sample index)
workers         processes that load batches beside the training
images/         small colour images: folders, decoding, cache, augmentation

``ArrayFile`` (base/array_file.py) is an array on disk that takes the place of a tensor in a ``TensorSource``.
"""

from base.array_file import ArrayFile
from base.data.batches import Batches, BatchRange, MicroBatch, Position, StepBatches
from base.data.sample_random import SampleRandom
from base.data.sample_source import SampleSource
from base.data.sources import Source, TensorSource
from base.data.stream import StreamSource

__all__ = [
    "ArrayFile",
    "BatchRange",
    "Batches",
    "MicroBatch",
    "Position",
    "SampleRandom",
    "SampleSource",
    "Source",
    "StepBatches",
    "StreamSource",
    "TensorSource",
]
