"""What methods compute to make a plan: scores, selection, clusters and orders, each in torch and as a Triton kernel.

Every module holds the public operations and, beside a fast path, an obvious ``..._reference`` in torch. On CUDA and
ROCm devices (and under ``TRITON_INTERPRET=1``) operations run as Triton kernels, elsewhere in torch; see `dispatch`.
States are ``[batch, tokens, heads, head_dim]``; scores and masses fp32 ``[batch * heads, query tiles, key blocks]``.
Nothing on the device's path waits for the device.
"""
