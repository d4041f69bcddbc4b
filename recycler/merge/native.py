"""An optional kernel for the one loop that a live engine waits for: a weighted sum of bfloat16 tensors at the speed of memory.

Torch needs a conversion and an addition for each member, several passes over the cache; 40 lines of C need one. They are
compiled once by the machine's own `cc` into a cache folder, and used when that works; the numbers are the same bit for
bit either way (the payload of a nan excepted). `RECYCLER_NATIVE=0` turns it off.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include <math.h>
#define LANES 64
#define AHEAD 256

static inline float widen(uint16_t x) { uint32_t b = (uint32_t)x << 16; float f; memcpy(&f, &b, 4); return f; }

static inline uint16_t narrow(float f) {
    uint32_t b; memcpy(&b, &f, 4);
    uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return (b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (uint16_t)rounded;
}

/* out[i] = round_to_bfloat16(sum_k w[k] * in[k][i] / divisor): float32, fused, in the order of k; nearest even; nan is 0x7fc0.
   64 elements at a time stay in registers, and each input is read as one straight stream. */
void weighted_sum_bf16(const uint16_t *const *in, const float *w, int64_t num, uint16_t *out, int64_t n, float divisor) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        float acc[LANES];
        for (int j = 0; j < LANES; j++) acc[j] = widen(in[0][i + j]) * w[0];
        for (int64_t k = 1; k < num; k++) {
            const uint16_t *x = in[k] + i;
            float weight = w[k];
            __builtin_prefetch(x + AHEAD, 0, 0);
            __builtin_prefetch(x + AHEAD + 32, 0, 0);
            for (int j = 0; j < LANES; j++) acc[j] = fmaf(widen(x[j]), weight, acc[j]);
        }
        if (divisor != 1.0f) for (int j = 0; j < LANES; j++) acc[j] /= divisor;
        for (int j = 0; j < LANES; j++) out[i + j] = narrow(acc[j]);
    }
    for (; i < n; i++) {
        float acc = widen(in[0][i]) * w[0];
        for (int64_t k = 1; k < num; k++) acc = fmaf(widen(in[k][i]), w[k], acc);
        out[i] = narrow(divisor != 1.0f ? acc / divisor : acc);
    }
}
"""
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")


def weighted_sum_bf16(tensors: Sequence[Tensor], weights: Sequence[float], out: Tensor, divisor: float) -> bool:
    """Fill `out` and return True; False when this machine or these tensors are not for the kernel (CPU, bfloat16, contiguous)."""
    if not all(tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in (*tensors, out)):
        return False
    kernel = _kernel()
    if kernel is None:
        return False
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    factors = (ctypes.c_float * len(weights))(*weights)
    kernel(pointers, factors, len(tensors), out.data_ptr(), out.numel(), divisor)
    return True


@cache
def _kernel():  # noqa: ANN202  a ctypes function
    if os.environ.get("RECYCLER_NATIVE", "1") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError):
        return None
    function = library.weighted_sum_bf16
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float]
    function.restype = None
    return function


def _compiled() -> Path:
    """The shared library, built on first use. Raises OSError or SubprocessError where there is no compiler or no place for it."""
    name = hashlib.sha256("\x1f".join((SOURCE, *FLAGS, _cpu())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recycler"
    target = folder / f"merge-{name}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            built = Path(aside) / target.name
            subprocess.run(["cc", *FLAGS, "-x", "c", "-", "-o", str(built), "-lm"], input=SOURCE, text=True, check=True, capture_output=True, timeout=60)
            built.rename(target)
    return target


def _cpu() -> str:
    """What -march=native depends on, so that a home folder shared by several machines holds one library for each kind."""
    try:
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""
