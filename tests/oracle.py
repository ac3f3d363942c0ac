"""The cell and its backpropagation in NumPy float64, one sample and one step at a time. Imports nothing of mgu_jax.

It follows the equations of the papers term by term, with vectors and matrices only. Nothing is batched, moved out of a
loop or fused, so it shares no idea with the code that it judges. ``spec`` is any object with the attributes of a cell
(gate, reset, update, candidate, recurrence, activation, beta, layer_norm), and ``p`` any object with the fields in
NAMES.
"""

from types import SimpleNamespace

import numpy as np

NAMES = ("W_f", "U_f", "b_f", "W_h", "U_h", "b_h", "b_r", "g_f", "g_h")


def sigmoid(z):
    """The logistic function, without overflow for large |z|."""
    return 0.5 * (1 + np.tanh(0.5 * z))


def matrix(U):
    """U as a matrix; a diagonal recurrence is a dense one with a diagonal matrix."""
    return np.diag(U) if U.ndim == 1 else U


def normalised(s):
    """n = (s - mean)/std, and the matrix of its derivatives."""
    H = len(s)
    std = np.sqrt(np.mean((s - s.mean()) ** 2) + 1e-6)
    n = (s - s.mean()) / std
    return n, (np.eye(H) - np.ones((H, H)) / H - np.outer(n, n) / H) / std


def one_step(spec, p, h, x, alpha=None, mask=None):
    """h' [H], and everything that was computed on the way, for vectors h [H] and x [D].

    alpha [H] is how much of the update takes place, and mask [H] multiplies the state as the products see it.
    """
    alpha = np.ones_like(h) if alpha is None else alpha
    mask = np.ones_like(h) if mask is None else mask
    seen = mask * h
    z_f, n_f, n_h, jacobian_f, jacobian_h = np.zeros_like(h), None, None, np.eye(len(h)), np.eye(len(h))
    if "x" in spec.gate:
        z_f = z_f + p.W_f.T @ x
    if "h" in spec.gate:
        z_f = z_f + matrix(p.U_f).T @ seen
    if spec.layer_norm and spec.gate != "b":
        n_f, jacobian_f = normalised(z_f)
        z_f = p.g_f * n_f
    if "b" in spec.gate:
        z_f = z_f + p.b_f
    f = sigmoid(z_f)
    z_h = p.W_h.T @ x
    if "h" in spec.candidate:
        if spec.reset == "before":
            z_h = z_h + matrix(p.U_h).T @ (f * seen)
        elif spec.reset == "after":
            z_h = z_h + f * (matrix(p.U_h).T @ seen + p.b_r)
        else:
            z_h = z_h + matrix(p.U_h).T @ seen
    if spec.layer_norm:
        n_h, jacobian_h = normalised(z_h)
        z_h = p.g_h * n_h
    z_h = z_h + p.b_h
    c = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0), "identity": lambda z: z}[spec.activation](z_h)
    if spec.update == "f":
        written = sigmoid(z_f + spec.beta)
        new = (1 - f) * h + written * c
    else:
        written = 1 - sigmoid(z_f - spec.beta)
        new = f * h + written * c
    kept = SimpleNamespace(h=h, seen=seen, x=x, f=f, c=c, alpha=alpha, mask=mask, n_f=n_f, n_h=n_h, written=written)
    kept.jacobian_f, kept.jacobian_h = jacobian_f, jacobian_h
    return alpha * new + (1 - alpha) * h, kept


def one_step_backward(spec, p, kept, dh_next, grads):
    """(dh, dx) for dh_next [H], the cotangent of h'; adds the parameters' gradients to ``grads`` (name -> array)."""
    h, seen, x, f, c = kept.h, kept.seen, kept.x, kept.f, kept.c
    dh, dseen, dx = dh_next * (1 - kept.alpha), np.zeros_like(h), np.zeros_like(x)
    dnew = dh_next * kept.alpha
    dc, dwritten = dnew * kept.written, dnew * c
    if spec.update == "f":
        df, dh = -dnew * h, dh + dnew * (1 - f)
    else:
        df, dh = dnew * h, dh + dnew * f
    slope = {"tanh": 1 - c**2, "relu": (c > 0) * 1.0, "identity": np.ones_like(c)}[spec.activation]
    dz_h = dc * slope
    grads["b_h"] += dz_h
    if spec.layer_norm:
        grads["g_h"] += dz_h * kept.n_h
        dz_h = kept.jacobian_h.T @ (p.g_h * dz_h)
    dx = dx + p.W_h @ dz_h
    grads["W_h"] += np.outer(x, dz_h)
    if "h" in spec.candidate:
        U = matrix(p.U_h)
        if spec.reset == "before":
            dr = U @ dz_h
            df, dseen = df + dr * seen, dseen + dr * f
            add_recurrent(grads, "U_h", np.outer(f * seen, dz_h))
        elif spec.reset == "after":
            df = df + dz_h * (U.T @ seen + p.b_r)
            dseen = dseen + U @ (f * dz_h)
            add_recurrent(grads, "U_h", np.outer(seen, f * dz_h))
            grads["b_r"] += f * dz_h
        else:
            dseen = dseen + U @ dz_h
            add_recurrent(grads, "U_h", np.outer(seen, dz_h))
    through_written = dwritten * kept.written * (1 - kept.written)
    dz_f = df * f * (1 - f) + (through_written if spec.update == "f" else -through_written)
    if "b" in spec.gate:
        grads["b_f"] += dz_f
    if spec.layer_norm and spec.gate != "b":
        grads["g_f"] += dz_f * kept.n_f
        dz_f = kept.jacobian_f.T @ (p.g_f * dz_f)
    if "x" in spec.gate:
        dx = dx + p.W_f @ dz_f
        grads["W_f"] += np.outer(x, dz_f)
    if "h" in spec.gate:
        dseen = dseen + matrix(p.U_f) @ dz_f
        add_recurrent(grads, "U_f", np.outer(seen, dz_f))
    return dh + kept.mask * dseen, dx


def add_recurrent(grads, name, full):
    """Add the gradient of a recurrent weight, of which a diagonal recurrence has the diagonal alone."""
    grads[name] += np.diag(full) if grads[name].ndim == 1 else full


def order(T, length, reverse):
    """The time steps of a sequence of this length, in the order in which they run."""
    steps = range(T if length is None else length)
    return list(reversed(steps)) if reverse else list(steps)


def forward(spec, p, xs, h0, reverse=False, lengths=None, resets=None, reset_to=None, alpha=None, mask=None):
    """hs [T, B, H], h_last [B, H] and what ``backward`` needs; alpha is [T, B, H], mask [B, H]."""
    (T, B, _), H = xs.shape, h0.shape[1]
    hs, h_last, kept = np.zeros((T, B, H)), np.zeros((B, H)), {}
    for b in range(B):
        h, mask_b = h0[b], None if mask is None else mask[b]
        for t in order(T, None if lengths is None else lengths[b], reverse):
            if resets is not None and resets[t, b]:
                h = (h0 if reset_to is None else reset_to)[b]
            h, kept[t, b] = one_step(spec, p, h, xs[t, b], None if alpha is None else alpha[t, b], mask_b)
            hs[t, b] = h
        h_last[b] = h
    return hs, h_last, kept


def backward(spec, p, xs, h0, kept, dhs, dh_last, reverse=False, lengths=None, resets=None, reset_to=None):
    """The gradients of sum(dhs*hs) + sum(dh_last*h_last): name -> array, for the parameters, xs, h0 and reset_to."""
    T, B, _ = xs.shape
    grads = {name: np.zeros_like(value) for name in NAMES if (value := getattr(p, name)) is not None}
    grads |= {"xs": np.zeros_like(xs), "h0": np.zeros_like(h0)}
    entered = "h0" if reset_to is None else "reset_to"
    if reset_to is not None:
        grads["reset_to"] = np.zeros_like(reset_to)
    for b in range(B):
        dh = dh_last[b]
        for t in reversed(order(T, None if lengths is None else lengths[b], reverse)):
            dh, dx = one_step_backward(spec, p, kept[t, b], dh + dhs[t, b], grads)
            grads["xs"][t, b] += dx
            if resets is not None and resets[t, b]:
                grads[entered][b] += dh
                dh = np.zeros_like(dh)
        grads["h0"][b] += dh
    return grads
