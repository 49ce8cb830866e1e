"""One step of Adam or of gradient descent with momentum, sixteen float32 parameters at a time.

Adam is Kingma and Ba's (ICLR 2015) with the epsilon inside the root: w -= a m rsqrt(v + e^2). The root comes from a
Newton iteration on an integer first guess, because the hardware's approximations differ between CPUs and its exact
root and division are ten times slower. State below 2^-60 becomes 0.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.activation import flush
from gossipdbn.kernels.memory import loadf, storef
from gossipdbn.kernels.tiers import inline
from gossipdbn.kernels.vectors import bits, fadd, fma, fmul, from_bits, fsub, i_less, iand, ior, isub, shr, vf, vi

f4 = np.float32
RATE, MOMENTUM, DECAY, L1, POWER1, POWER2, ADAM = range(7)
"""Places in the options array (float32): POWER1 and POWER2 are beta^t of Adam; ADAM is 1 for Adam, 0 for momentum."""
BETA1, BETA2 = f4(0.9), f4(0.999)
_REST1, _REST2 = f4(0.1), f4(0.001)
_EPS2 = f4(1e-16)
_HALF, _THREE_HALVES = f4(0.5), f4(1.5)


@inline
def rsqrt(x):
    """1 / sqrt(x) to about 1e-7, x >= 1e-17."""
    y = from_bits(isub(vi(0x5F3759DF), shr(bits(x), 1)))
    half = fmul(x, vf(_HALF))
    for _ in range(3):
        y = fmul(y, fsub(vf(_THREE_HALVES), fmul(half, fmul(y, y))))
    return y


@inline
def sign(w):
    """-1, 0 or 1 (a zero of either sign gives 0)."""
    one = ior(iand(bits(w), vi(-0x80000000)), bits(vf(f4(1))))
    zero = i_less(iand(bits(w), vi(0x7FFFFFFF)), vi(1), vi(-1))
    return from_bits(iand(one, isub(vi(-1), zero)))


@inline
def step(w_at, m_at, v_at, g, rate, eps2, options, decayed):
    """Move the parameters at ``w_at`` against the gradient ``g``; ``decayed``: L2 and L1 apply (not to biases)."""
    w = loadf(w_at)
    g = flush(g)  # the square of a smaller one would be denormal, which costs some CPUs a hundred cycles each
    if decayed:
        if options[DECAY] != f4(0):
            g = fma(w, vf(options[DECAY]), g)
        if options[L1] != f4(0):
            g = fma(sign(w), vf(options[L1]), g)
    if options[ADAM] != f4(0):
        m = flush(fma(vf(BETA1), loadf(m_at), fmul(vf(_REST1), g)))
        v = flush(fma(vf(BETA2), loadf(v_at), fmul(vf(_REST2), fmul(g, g))))
        storef(m_at, m)
        storef(v_at, v)
        storef(w_at, fsub(w, fmul(fmul(vf(rate), m), rsqrt(fadd(v, vf(eps2))))))
    else:
        m = flush(fma(vf(options[MOMENTUM]), loadf(m_at), g))
        storef(m_at, m)
        storef(w_at, fsub(w, fmul(vf(rate), m)))


@inline
def rate_and_eps2(options):
    """The rate of this step with Adam's bias correction, and the matching epsilon squared; advances the powers."""
    rate, eps2 = options[RATE], f4(0)
    if options[ADAM] != f4(0):
        options[POWER1] = np.float32(options[POWER1] * BETA1) if options[POWER1] > f4(1e-12) else f4(0)
        options[POWER2] = np.float32(options[POWER2] * BETA2) if options[POWER2] > f4(1e-12) else f4(0)
        left = f4(f4(1) - options[POWER2])
        rate = f4(f4(rate * np.sqrt(left)) / f4(f4(1) - options[POWER1]))
        eps2 = f4(_EPS2 * left)
    return rate, eps2
