"""The hot loops as Triton kernels for GPUs; imported only where chosen, and tested under Triton's interpreter."""
