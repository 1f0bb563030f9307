"""CPU kernels in C++ behind a plain C interface, compiled for this very processor at first use."""
