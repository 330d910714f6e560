"""What a network is trained on: folders of images, .npz files, any map-style Dataset, any DataLoader; no torchvision.

`ImageSet` and `ImageFolder` hold pixels and know the network's normalisation; a Dataset of the user gives tensors as
the network takes them. `batches` makes batch sources of all of them: the same numbers give the same batches, and any
batch can be reached without the ones before it. `disk` opens what a path names.
"""

from builder.data.augment import Augmentation
from builder.data.batches import ImageBatches, Source, source_of
from builder.data.datasets import DatasetBatches, LoaderBatches
from builder.data.disk import DataFolder, open_data
from builder.data.folder import ImageFolder
from builder.data.images import ImageSet, Pixels

__all__ = [
    "Augmentation",
    "DataFolder",
    "DatasetBatches",
    "ImageBatches",
    "ImageFolder",
    "ImageSet",
    "LoaderBatches",
    "Pixels",
    "Source",
    "open_data",
    "source_of",
]
