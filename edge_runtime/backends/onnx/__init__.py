"""onnxruntime behind the seam: the portable gated graph, the static oracle and the kernel profile.

The only importer of onnxruntime and onnx. Their errors stop here.
"""
