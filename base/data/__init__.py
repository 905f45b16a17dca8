"""From a data set to the batches of a step.

sources         a data set that gives whole batches: tensors in memory, arrays on disk, any map-style Dataset
batches         which samples make which batch, as a function of (seed, pass, position), and their loading
lazy_indices    orders too long to keep in memory
images/         small colour images: folders, decoding, cache, augmentation
"""

from base.data.batches import Batches
from base.data.sources import SampleRandom, SampleSource, Source, TensorSource

__all__ = ["Batches", "SampleRandom", "SampleSource", "Source", "TensorSource"]
