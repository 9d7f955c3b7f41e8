"""A pre-LayerNorm decoder in float64 NumPy: what int8pass.experiments.language_model is held to."""

import numpy as np

EPSILON = 1e-5  # torch.nn.LayerNorm's


def logits(state, tokens, size):
    """state: name -> float64 array; tokens: int[B, S]. Result: float64[B, S, 256]."""
    hidden = state["embedding.weight"][tokens] + state["positions.weight"][: tokens.shape[1]]
    for layer in range(size.depth):
        hidden = _layer(state, f"layers.{layer}.", hidden, size.heads)
    return _norm(state, "final_norm", hidden) @ state["embedding.weight"].T


def _layer(state, prefix, hidden, heads):
    normed = _norm(state, f"{prefix}attention_norm", hidden)
    q, k, v = (_by_head(_linear(state, prefix + name, normed), heads) for name in "qkv")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    attended = (weights / weights.sum(-1, keepdims=True)) @ v
    hidden = hidden + _linear(state, f"{prefix}out", attended.swapaxes(1, 2).reshape(hidden.shape))
    inner = np.maximum(_linear(state, f"{prefix}fc1", _norm(state, f"{prefix}feedforward_norm", hidden)), 0)
    return hidden + _linear(state, f"{prefix}fc2", inner)


def _by_head(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state, name, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]
