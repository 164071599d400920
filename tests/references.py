"""Independent NumPy float64 references."""

import numpy as np


def contrastive_loss(left, right, scale, pair_id, spread_out_weight=0.0):
    """The loss as the paper writes it, in float64: mean of the two softmax cross-entropies, plus spread-out."""
    left, right, pair_id = np.asarray(left, np.float64), np.asarray(right, np.float64), np.asarray(pair_id)
    size = len(left)
    logits = scale * left @ right.T
    off = pair_id[:, None] != pair_id[None, :]
    total = 0.0
    for view in (logits, logits.T):
        for i in range(size):
            others = view[i][off[i]]
            total += np.log1p(np.exp(others - view[i, i]).sum()) / size
    spread = sum(((x @ x.T) ** 2)[off].sum() / (size * (size - 1)) for x in (left, right))
    return 0.5 * total + spread_out_weight * spread


def numeric_gradient(function, x, epsilon=1e-6):
    """Central differences in float64."""
    x = np.array(x, np.float64)
    out = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[place] += epsilon
        down[place] -= epsilon
        out[place] = (function(up) - function(down)) / (2 * epsilon)
    return out


def tower(params, tokens, config):
    """One unpadded sequence through the tower, float64 [D], from the equations of Gemma 3."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1.0 + params[f"{name}.scale_D"])

    def rope(x):
        half = config.head_dim // 2
        angle = np.arange(len(x))[:, None] * config.rope_base ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)

    x = params["embedding.table_VD"][tokens] * np.sqrt(config.width)
    length = len(tokens)
    for layer in range(config.layers):
        at = f"blocks.{layer}"
        h = norm(x, f"{at}.pre_attention_norm")
        q = (h @ params[f"{at}.attention.q_DF"]).reshape(length, config.heads, config.head_dim)
        k = (h @ params[f"{at}.attention.k_DF"]).reshape(length, config.kv_heads, config.head_dim)
        v = (h @ params[f"{at}.attention.v_DF"]).reshape(length, config.kv_heads, config.head_dim)
        q, k = rope(norm(q, f"{at}.attention.q_norm")), rope(norm(k, f"{at}.attention.k_norm"))
        out = np.zeros((length, config.heads, config.head_dim))
        for head in range(config.heads):
            group = head // (config.heads // config.kv_heads)
            logits = q[:, head] @ k[:, group].T / np.sqrt(config.head_dim)
            if config.causal:
                logits[np.triu_indices(length, 1)] = -np.inf
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        x = x + norm(out.reshape(length, -1) @ params[f"{at}.attention.o_FD"], f"{at}.post_attention_norm")
        h = norm(x, f"{at}.pre_mlp_norm")
        gate = h @ params[f"{at}.mlp.gate_DM"]
        gelu = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
        x = x + norm((gelu * (h @ params[f"{at}.mlp.up_DM"])) @ params[f"{at}.mlp.down_MD"], f"{at}.post_mlp_norm")
    pooled = norm(x, "final_norm").mean(0)
    return pooled / np.linalg.norm(pooled)
