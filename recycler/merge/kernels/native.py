"""An optional C kernel: a weighted sum of bfloat16 tensors at the speed of memory.

It is the one loop that a live engine waits for. Torch needs a conversion and an addition for each
member, several passes over the cache; some lines of C need one. They are compiled once by the
machine's own `cc` into a cache folder, and used when that works; the numbers are the same bit for
bit either way (the payload of a nan excepted). `RECYCLER_NATIVE=0` turns it off.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include <math.h>
#if defined(__x86_64__) && !defined(__FMA__)
#error without fused instructions torch is faster
#endif
#ifdef __SSE2__
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define LANES (WIDTH / 4)
#define VECTORS 2
#define STEP (2 * LANES * VECTORS)
#define PAST_THE_CACHE (1 << 19)
typedef float floats __attribute__((vector_size(WIDTH)));
typedef uint32_t words __attribute__((vector_size(WIDTH)));

static inline floats fused(floats x, float weight, floats sum) {
    floats w = weight - (floats){0};
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)x, (__m512)w, (__m512)sum);
#elif defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)x, (__m256)w, (__m256)sum);
#else
    for (int j = 0; j < LANES; j++) sum[j] = fmaf(x[j], w[j], sum[j]);
    return sum;
#endif
}

/* to bfloat16, nearest even, in the upper half of each word; nan is 0x7fc0 */
static inline words rounded(floats f) {
    words b = (words)f;
    words nan = (words)((b & 0x7fffffffu) > 0x7f800000u);
    return (nan & 0x7fc00000u) | (~nan & (b + 0x7fffu + ((b >> 16) & 1u)));
}

static inline void store(uint16_t *out, words x, int stream) {
#if defined(__AVX512F__)
    if (stream) { _mm512_stream_si512((__m512i *)out, (__m512i)x); return; }
#elif defined(__AVX__)
    if (stream) { _mm256_stream_si256((__m256i *)out, (__m256i)x); return; }
#endif
    memcpy(out, &x, WIDTH);
}

static inline float widen(uint16_t x) {
    uint32_t b = (uint32_t)x << 16;
    float f;
    memcpy(&f, &b, 4);
    return f;
}

static uint16_t one(
    const uint16_t *const *in, const float *w, int64_t num, int64_t i, float divisor
) {
    float acc = widen(in[0][i]) * w[0];
    for (int64_t k = 1; k < num; k++) acc = fmaf(widen(in[k][i]), w[k], acc);
    return (uint16_t)(rounded((floats){divisor != 1.0f ? acc / divisor : acc})[0] >> 16);
}

/* out[i] = round_to_bfloat16(sum_k w[k] * in[k][i] / divisor): float32, fused, in the order of k.
   A word of memory holds two numbers: its upper half is a float32 when the lower is cleared, its
   lower half when it is shifted up. Large outputs are streamed past the cache, which saves reading
   them first. */
void weighted_sum_bf16(
    const uint16_t *const *in, const float *w, int64_t num, uint16_t *out, int64_t n, float divisor
) {
    int64_t i = 0;
    int stream = n >= PAST_THE_CACHE;
    for (; i < n && (uintptr_t)(out + i) % WIDTH; i++) out[i] = one(in, w, num, i, divisor);
    for (; i + STEP <= n; i += STEP) {
        floats even[VECTORS], odd[VECTORS];
        words x;
        for (int j = 0; j < VECTORS; j++) {
            memcpy(&x, in[0] + i + 2 * LANES * j, WIDTH);
            even[j] = (floats)(x << 16) * w[0];
            odd[j] = (floats)(x & 0xffff0000u) * w[0];
        }
        for (int64_t k = 1; k < num; k++)
            for (int j = 0; j < VECTORS; j++) {
                memcpy(&x, in[k] + i + 2 * LANES * j, WIDTH);
                even[j] = fused((floats)(x << 16), w[k], even[j]);
                odd[j] = fused((floats)(x & 0xffff0000u), w[k], odd[j]);
            }
        for (int j = 0; j < VECTORS; j++) {
            if (divisor != 1.0f) { even[j] /= divisor; odd[j] /= divisor; }
            words both = (rounded(even[j]) >> 16) | (rounded(odd[j]) & 0xffff0000u);
            store(out + i + 2 * LANES * j, both, stream);
        }
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
    for (; i < n; i++) out[i] = one(in, w, num, i, divisor);
}
"""
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")


def weighted_sum_bf16(
    tensors: Sequence[Tensor], weights: Sequence[float], out: Tensor, divisor: float
) -> bool:
    """Fill `out` and return True; False when the kernel cannot be used.

    It needs a compiler, and contiguous bfloat16 tensors on a CPU.
    """
    for tensor in (*tensors, out):
        on_cpu = tensor.device.type == "cpu"
        if tensor.dtype != torch.bfloat16 or not on_cpu or not tensor.is_contiguous():
            return False
    kernel = _kernel()
    if kernel is None:
        return False
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    factors = (ctypes.c_float * len(weights))(*weights)
    kernel(pointers, factors, len(tensors), out.data_ptr(), out.numel(), divisor)
    return True


@cache
def _kernel() -> Callable[..., None] | None:
    """The compiled function; None where it is turned off or cannot be built."""
    if os.environ.get("RECYCLER_NATIVE", "1") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError):
        return None
    function = library.weighted_sum_bf16
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_float,
    ]
    function.restype = None
    return function


def _compiled() -> Path:
    """The shared library, built on first use.

    Raises OSError or SubprocessError where there is no compiler or no place for it.
    """
    name = hashlib.sha256("\x1f".join((SOURCE, *FLAGS, _cpu())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recycler"
    target = folder / f"merge-{name}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            built = Path(aside) / target.name
            subprocess.run(
                ["cc", *FLAGS, "-x", "c", "-", "-o", str(built), "-lm"],
                input=SOURCE,
                text=True,
                check=True,
                capture_output=True,
                timeout=60,
            )
            built.rename(target)
    return target


def _cpu() -> str:
    """The CPU's features, which -march=native depends on; "" where they are not known.

    A home folder shared by several machines then holds one library for each kind.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
