"""Triton's interpreter, which runs the kernels on the CPU unless there is a GPU; import it before the kernels.

Two faults of it are mended here. Version 3.8 converts to bfloat16 by cutting off digits instead of rounding, and
multiplies the bits of bfloat16 matrices instead of their numbers. Version 3.6, of torch 2.11, reads an integer from an
array of one element, which NumPy 2.4 refuses.
"""

import os
from typing import Any

import numpy as np
import torch


def interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.language import standard
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
    from triton.runtime.jit import JITFunction

    for name, function in list(vars(standard).items()):  # Triton may have been imported before
        if isinstance(function, JITFunction):
            for module in (standard, tl):
                setattr(module, name, InterpretedFunction(function.fn))
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def exact_cast(self: Any, src: Any, to: Any) -> Any:
        kinds = (src.dtype.scalar, to.scalar)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(src.data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(src.data).view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
            return TensorHandle(rounded.astype(np.uint16), tl.bfloat16)
        return cast(self, src, to)

    def exact_dot(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        a, b = (TensorHandle(widened(t.data), tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(self, a, b, total, *options)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = exact_cast, exact_dot
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_with_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_with_index


def widened(bfloat16: np.ndarray) -> np.ndarray:
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


if not torch.cuda.is_available():
    interpret()
