"""Compile every loss kernel for an H100, which needs no GPU: python tests/unit/kernel_compile.py

The interpreter runs programs that the compiler refuses: a type that changes in a loop, say.
Prints a line for each kernel. The argument types are those of contiguous bfloat16 logits.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scope_megatron.objective import triton_kernels as programs

TARGET = GPUTarget("cuda", 90, 32)
TEACHER = ("teacher", "mean", "teacher_top", "teacher_norm", "grad_divergence")  # for a divergence
CASES = [
    *((programs.reduce_rows, kind) for kind in ("logprob", "entropy", "reverse_kl", "forward_kl")),
    *((programs.gradient_blocks, kind) for kind in ("logprob", "reverse_kl", "forward_kl", "jsd")),
    (programs.mixture_rows, "jsd"),
]


def argument(name: str, dense: bool) -> str | int | None:
    """The type of an argument, or the value that it is specialised for."""
    if not dense and name in TEACHER:
        return None
    if name.endswith("column_stride"):
        return 1
    if name in ("logits", "teacher", "grad"):
        return "*bf16"
    if name in ("temperature", "teacher_temperature", "beta"):
        return "fp32"
    whole = name in ("start", "width", "columns", "blocks") or name.endswith("stride")
    return "*i64" if name == "targets" else "i32" if whole else "*fp32"


def build(program: triton.JITFunction, kind: str) -> str:
    dense = kind not in ("logprob", "entropy")
    constants = {"KIND": kind, "COLUMNS": 7 if dense else 4, "BLOCK": 2048}
    signature: dict[str, str] = {}
    values: dict[str, str | int | None] = {}
    for parameter in program.params:
        name = parameter.name
        given = constants[name] if parameter.is_constexpr else argument(name, dense)
        fixed = parameter.is_constexpr or not isinstance(given, str)
        signature[name] = "constexpr" if fixed else str(given)
        if fixed:
            values[name] = given
    compiled = triton.compile(ASTSource(program, signature, values), target=TARGET)
    return f"{program.__name__} {kind}: {len(compiled.asm['cubin'])} bytes"


if __name__ == "__main__":
    for program, kind in CASES:
        print(build(program, kind))
