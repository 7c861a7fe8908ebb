"""Compile every loss kernel for an H100, which needs no GPU: python tests/unit/kernel_compile.py

The interpreter runs programs that the compiler refuses: a type that changes in a loop, say.
Prints a line for each kernel. The argument types are those of contiguous bfloat16 logits, but for
what a case changes: Triton compiles anew for a missing argument and for an integer that is 1.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scope_megatron.objective.head import triton_kernels as programs

TARGET = GPUTarget("cuda", 90, 32)
TEACHER = ("teacher", "mean", "teacher_top", "teacher_norm", "grad_divergence")  # for a divergence
REDUCE, GRADIENT, MIXTURE = programs.reduce_rows, programs.gradient_blocks, programs.mixture_rows
NARROW = dict.fromkeys(("width", "columns", "blocks", "row_stride", "teacher_row_stride"), 1)
ALONE = {"targets": None, "grad_logprob": None}
FLOAT32 = {"logits": "*fp32", "grad": "*fp32"}
CASES: list[tuple[triton.JITFunction, str, dict[str, str | int | None]]] = [
    *((REDUCE, kind, {}) for kind in ("logprob", "entropy", "reverse_kl", "forward_kl")),
    *((GRADIENT, kind, {}) for kind in ("logprob", "reverse_kl", "forward_kl", "jsd")),
    (MIXTURE, "jsd", {}),
    *((program, "reverse_kl", NARROW) for program in (REDUCE, GRADIENT)),
    *((program, "reverse_kl", ALONE) for program in (REDUCE, GRADIENT)),
    *((program, "reverse_kl", FLOAT32) for program in (REDUCE, GRADIENT)),
    (MIXTURE, "jsd", NARROW),
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


def build(program: triton.JITFunction, kind: str, changes: dict[str, str | int | None]) -> str:
    dense = kind not in ("logprob", "entropy")
    constants = {"KIND": kind, "COLUMNS": 7 if dense else 4, "BLOCK": 2048}
    signature: dict[str, str] = {}
    values: dict[str, str | int | None] = {}
    for parameter in program.params:
        name = parameter.name
        given = constants[name] if parameter.is_constexpr else argument(name, dense)
        given = changes.get(name, given)
        fixed = parameter.is_constexpr or not isinstance(given, str)
        signature[name] = "constexpr" if fixed else str(given)
        if fixed:
            values[name] = given
    source = ASTSource(program, signature, values)
    compiled = triton.compile(source, target=TARGET, options={"enable_fp_fusion": False})
    return f"{program.__name__} {kind} {changes}: {len(compiled.asm['cubin'])} bytes"


if __name__ == "__main__":
    for case in CASES:
        print(build(*case))
