"""The floating-point types that models are stored and computed in."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # by name in artifacts
NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES.values())}  # of `Type` in native/kernels.h
