"""The bundle: the one file that crosses from the builder to the device. This package reads it and writes it.

A bundle is a directory of three files; a `.nnf` file is the same three files as one uncompressed zip.

==============  ============================================================================================
file            content
==============  ============================================================================================
manifest.json   what the model is (`Manifest`), with the size and sha256 of the other two and its own digest
model.onnx      the gated graph; small tensors inside, the others by offset and length in weights.bin
weights.bin     raw little-endian tensors; may be empty
==============  ============================================================================================

A reader MUST refuse: a missing or an unlisted file, a wrong size or sha256, another major version, a link or special
file, a zip that is compressed, encrypted, overlapping, padded or 64-bit, more than 512 MiB, a manifest of more than
1 MiB or nested more than 16 deep, one that is not canonical JSON (sorted keys, no spaces, ASCII, finite numbers, no key
twice), and an unknown key unless the minor version is newer than the reader's. All faults are reported together.

The graph inside is judged by `edge_runtime.backends`; nothing here imports onnx or a runtime, and nothing is unpickled.
"""

from edge_runtime.bundle.bundle import Bundle, write_bundle
from edge_runtime.bundle.manifest import Manifest, Preprocessing, Provenance, Task, TensorSpec

__all__ = ["Bundle", "Manifest", "Preprocessing", "Provenance", "Task", "TensorSpec", "write_bundle"]
