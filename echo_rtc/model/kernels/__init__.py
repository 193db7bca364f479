"""Our own GPU kernels, written in Triton, each beside a plain PyTorch version of the same mathematics.

Every function here takes and returns tensors and runs the plain version wherever Triton or a CUDA device is missing,
so that callers have one path. ``narrow_attention`` alone is CUDA C++ and raises where it cannot run: it is one of
several kernels of which ``model/attention.py`` takes the fastest. Activations are (N, L, C): N images, L pixels, C
channels, channels innermost. Knows no networks.
"""
