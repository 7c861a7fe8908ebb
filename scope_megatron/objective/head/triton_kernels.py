"""The Triton programs behind ``kernels.py``; importing this module needs Triton.

Each row of logits is read once, in blocks of BLOCK columns, whatever its type, and computed with in
float32. KIND is what the row is reduced to: logprob, entropy, reverse_kl, forward_kl or jsd.

While a row is reduced, its sums are relative to the largest logits met so far, m of the student and
mt of the teacher. With x = (z - m) / T and y = (zt - mt) / Tt, the sums are

    S = sum e^x    St = sum e^y    A = sum e^x (x - y)  (reverse), e^y (y - x)  (forward), e^x x

When a block moves m and mt, every earlier x becomes x + dx and every y becomes y + dy, where
dx = (m - m') / T and dy = (mt - mt') / Tt are at most zero, so that (reverse)

    S' = e^dx S    St' = e^dy St    A' = e^dx A + S' (dx - dy)

A number that a mass of zero meets must be finite: differences stop at ``_LOW``, as in
``vocab.shift``. Logits below ``_FLOOR`` forbid their token, as -inf does.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOW = tl.constexpr(-1.8446743e19)  # -sqrt(largest float32): e^_LOW is 0, and products are finite
_FLOOR = tl.constexpr(-1e30)  # the maximum of a row before a logit that counts
_FLOAT32_MIN = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _shift(z, top, inverse_temperature):
    """(z - top) / temperature; NaN stays NaN, which tl.maximum would not promise."""
    x = (z - top) * inverse_temperature
    return tl.where(x < _LOW, _LOW, x)


@triton.jit
def _step(top, new_top, inverse_temperature):
    """What a new maximum adds to the shifted logits so far; nothing before the first of them."""
    return tl.where(top == _FLOOR, 0.0, _shift(top, new_top, inverse_temperature))


@triton.jit
def _log_mixture(log_p, log_q, beta):
    """log(beta q + (1 - beta) p)."""
    a, b = log_p + tl.log(1.0 - beta), log_q + tl.log(beta)
    high = tl.where(a > b, a, b)
    return high + tl.log(1.0 + tl.exp(-tl.abs(a - b)))


@triton.jit
def _load(row, column, stride, end, other: tl.constexpr):
    """A row's columns below ``end`` in float32, ``other`` for the rest."""
    values = tl.load(row + column.to(tl.int64) * stride, mask=column < end, other=other)
    return values.to(tl.float32)


@triton.jit
def _store_at(out, row, column, stride, width):
    """A row's entry in a column of this shard, else 0."""
    owned = (column >= 0) & (column < width)
    tl.store(out, tl.load(row + column * stride, mask=owned, other=0.0))


@triton.jit
def _store_top(out, top):
    tl.store(out, tl.where(top == _FLOOR, _FLOAT32_MIN, top))


@triton.jit(do_not_specialize=["start"])
def reduce_rows(
    logits,
    teacher,  # read for a divergence only
    targets,  # [T] tokens, or None
    out,  # [T, COLUMNS] float32, as vocab._reduce gives it
    row_stride, column_stride, teacher_row_stride, teacher_column_stride,
    start, width, temperature, teacher_temperature,
    KIND: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row."""
    DENSE: tl.constexpr = KIND != "logprob" and KIND != "entropy"
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    if DENSE:
        teacher += row * teacher_row_stride
    scale, teacher_scale = 1.0 / temperature, 1.0 / teacher_temperature
    top, norm = tl.full((), _FLOOR, tl.float32), tl.full((), 0.0, tl.float32)
    teacher_top, teacher_norm, mean = top, norm, norm
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = _load(logits, column, column_stride, width, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        x = _shift(z, new_top, scale)
        mass = tl.exp(x)
        dx = _step(top, new_top, scale)
        shrink = tl.exp(dx)
        norm *= shrink
        if KIND == "entropy":
            mean = shrink * mean + norm * dx + tl.sum(mass * x, 0)
        if DENSE:
            zt = _load(teacher, column, teacher_column_stride, width, -float("inf"))
            new_teacher_top = tl.maximum(teacher_top, tl.max(zt, 0))
            y = _shift(zt, new_teacher_top, teacher_scale)
            teacher_mass = tl.exp(y)
            dy = _step(teacher_top, new_teacher_top, teacher_scale)
            teacher_shrink = tl.exp(dy)
            teacher_norm *= teacher_shrink
            if KIND == "reverse_kl":
                mean = shrink * mean + norm * (dx - dy) + tl.sum(mass * (x - y), 0)
            if KIND == "forward_kl":
                mean = teacher_shrink * mean + teacher_norm * (dy - dx)
                mean += tl.sum(teacher_mass * (y - x), 0)
            teacher_norm += tl.sum(teacher_mass, 0)
            teacher_top = new_teacher_top
        norm += tl.sum(mass, 0)
        top = new_top
    out += row * COLUMNS
    _store_top(out, top)
    tl.store(out + 1, norm)
    if KIND != "logprob":
        tl.store(out + 3, mean)
    if DENSE:
        _store_top(out + 4, teacher_top)
        tl.store(out + 5, teacher_norm)
    if targets is not None:
        column = tl.load(targets + row).to(tl.int64) - start
        _store_at(out + 2, logits, column, column_stride, width)
        if DENSE:
            _store_at(out + 6, teacher, column, teacher_column_stride, width)


@triton.jit
def mixture_rows(
    logits,
    teacher,
    top,  # [T] float32 each, of the whole vocabulary
    norm,
    teacher_top,
    teacher_norm,
    out,  # [T, 2] float32, as vocab.local_mixture gives it
    row_stride, column_stride, teacher_row_stride, teacher_column_stride,
    width, temperature, teacher_temperature, beta,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    teacher += row * teacher_row_stride
    m, log_norm = tl.load(top + row), tl.log(tl.load(norm + row))
    mt, teacher_log_norm = tl.load(teacher_top + row), tl.log(tl.load(teacher_norm + row))
    scale, teacher_scale = 1.0 / temperature, 1.0 / teacher_temperature
    student_kl = tl.full((), 0.0, tl.float32)
    teacher_kl = tl.full((), 0.0, tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = _load(logits, column, column_stride, width, -float("inf"))
        zt = _load(teacher, column, teacher_column_stride, width, -float("inf"))
        log_p = _shift(z, m, scale) - log_norm
        log_q = _shift(zt, mt, teacher_scale) - teacher_log_norm
        log_m = _log_mixture(log_p, log_q, beta)
        student_kl += tl.sum(tl.exp(log_p) * (log_p - log_m), 0)
        teacher_kl += tl.sum(tl.exp(log_q) * (log_q - log_m), 0)
    tl.store(out + row * 2, student_kl)
    tl.store(out + row * 2 + 1, teacher_kl)


@triton.jit(do_not_specialize=["start"])
def gradient_blocks(
    logits,
    teacher,  # None for logprob
    targets,  # [T] tokens, or None
    grad,  # [T, W] or the logits themselves
    top,  # [T] float32 each, of the whole vocabulary; those of the teacher None for logprob
    norm,
    mean,
    teacher_top,
    teacher_norm,
    grad_logprob,  # [T] float32 each, or None
    grad_divergence,
    row_stride, column_stride, teacher_row_stride, teacher_column_stride,
    grad_row_stride, grad_column_stride,
    blocks, start, width, columns, temperature, teacher_temperature, beta,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and block of columns; logprob: no divergence has a gradient."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    scale = 1.0 / temperature
    z = _load(logits + row * row_stride, column, column_stride, width, 0.0)
    x = _shift(z, tl.load(top + row), scale)
    row_norm = tl.load(norm + row)
    p = tl.exp(x) / row_norm
    gl = 0.0
    if grad_logprob is not None:
        gl = tl.load(grad_logprob + row) * scale
    if KIND == "logprob":
        dz = -gl * p
    else:
        gd = tl.load(grad_divergence + row) * scale
        scored = gd != 0.0  # else the teacher's logits are not read: they may be NaN
        end = tl.where(scored, width, 0)
        zt = _load(teacher + row * teacher_row_stride, column, teacher_column_stride, end, 0.0)
        y = _shift(zt, tl.load(teacher_top + row), 1.0 / teacher_temperature)
        row_teacher_norm = tl.load(teacher_norm + row)
        if KIND == "forward_kl":
            q = tl.where(scored, tl.exp(y) / row_teacher_norm, 0.0)
            dz = p * (gd - gl) - q * gd
        else:
            slope = x - y
            if KIND == "jsd":
                log_p, log_q = x - tl.log(row_norm), y - tl.log(row_teacher_norm)
                slope = log_p - _log_mixture(log_p, log_q, beta)
                gd *= 1.0 - beta
            slope = tl.where(scored, slope - tl.load(mean + row), 0.0)
            dz = p * (slope * gd - gl)
    if targets is not None:
        # far from every column where another rank holds the target
        dz += tl.where(column == tl.load(targets + row).to(tl.int64) - start, gl, 0.0)
    dz = tl.where(column < width, dz, 0.0).to(grad.dtype.element_ty)
    place = grad + row * grad_row_stride + column.to(tl.int64) * grad_column_stride
    tl.store(place, dz, mask=column < columns)
