"""From a data set to the batches of a step.

``BaseDataLoader`` (base/base_data_loader.py) describes a data set and creates ``Batches``, from which the training loop
gets ``StepBatches``. A batch goes from a position in the data to the ranges of the following batches, the sample
indices of each range, and the source's data for them.

batches         ``Batches``: which samples make up which batch, by (seed, pass, position), and loading them
sources         a data set that returns whole batches: tensors in memory, arrays on disk
sample_source   any map-style Dataset, loaded sample by sample
seeding         which generators a data set draws from, and seeding those
own_generators  the generators that a data set keeps for itself
split           which samples are held out for validation
orders          the order of samples in a pass: shuffled, weighted, by length
stream          data that can only be read sequentially
sample_random   random numbers for augmentation, as a function of (seed, pass, sample index)
collate         samples into batches, and how worker processes send them
workers         processes that load batches in the background
errors          errors in a data set's code, with the sample that causes them
pictures        pictures of model inputs, checked
device_cache    data in memory kept on the training device
images/         small colour images: folders, decoding, cache, augmentation

``ArrayFile`` (base/array_file.py) is an array on disk that replaces a tensor in a ``TensorSource``.
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
