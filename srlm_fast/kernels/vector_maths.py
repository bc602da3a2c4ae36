"""PyTorch's vector maths on a CPU (cos, exp, log, …) made ready before threads share it.

MKL looks up the kind of processor at the first such call of a process. In version 2024.2, which
torch 2.13 holds, a provisional answer stands for a moment where all threads read it: where the
first call runs on several, one may find it and take kernels of half the digits for its share
(pytorch/pytorch#188792). So the first call is made here, on import, by one thread.
"""

import torch

torch.ones(1, dtype=torch.float32, device="cpu").cos()
