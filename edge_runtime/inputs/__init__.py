"""Images and arrays to model inputs, by the manifest's preprocessing; data sets read from disk; the sample buffer.

A *frame* is a uint8 array [H, W, 3] in RGB of any size; an *image* here is a frame already at the model's input size.
One definition of resizing serves the camera loop, the command line and the builder: Pillow's bilinear filter with
antialiasing, the whole frame stretched to the model's height and width, then ``(pixel * scale - mean) / std``.
Everything stays in memory; nothing in this room writes.
"""

from edge_runtime.inputs.buffer import SampleBuffer
from edge_runtime.inputs.frames import (
    Frame,
    Tensor,
    check_finite,
    check_frame,
    check_labels,
    fit,
    normalise,
    preprocess,
    preprocess_all,
)
from edge_runtime.inputs.samples import (
    Listing,
    Samples,
    list_folder,
    load_folder,
    load_npz,
    load_samples,
    most_unreadable,
    read_image,
)

__all__ = [
    "Frame",
    "Listing",
    "SampleBuffer",
    "Samples",
    "Tensor",
    "check_finite",
    "check_frame",
    "check_labels",
    "fit",
    "list_folder",
    "load_folder",
    "load_npz",
    "load_samples",
    "most_unreadable",
    "normalise",
    "preprocess",
    "preprocess_all",
    "read_image",
]
