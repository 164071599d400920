"""Independent NumPy float64 references."""

import numpy as np


def contrastive_loss(left, right, scale, ids, place=None, spread_out_weight=0.0, margin=0.0):
    """The loss as the paper writes it, in float64: mean of the two softmax cross-entropies, plus spread-out of each pair ID's first pair."""
    left, right, ids = np.asarray(left, np.float64), np.asarray(right, np.float64), [np.asarray(x) for x in ids]
    size = len(left)
    logits = scale * (left @ right.T)
    positive = np.diag(logits) - scale * margin
    off = np.all([x[:, None] != x[None, :] for x in ids], axis=0)
    total = 0.0
    for view in (logits, logits.T):
        for i in range(size):
            total += np.log1p(np.exp(view[i][off[i]] - positive[i]).sum()) / size
    spread = 0.0
    if spread_out_weight:
        first = [i for i in range(size) if all(place[i] <= place[j] for j in range(size) if ids[0][j] == ids[0][i])]
        different = ~np.eye(len(first), dtype=bool)
        for x in (left[first], right[first]):
            spread += ((x @ x.T) ** 2)[different].sum() / max(1, len(first) * (len(first) - 1))
    return 0.5 * total + spread_out_weight * spread


def contrastive_gradients(left, right, scale, ids, margin=0.0):
    """Gradients of the softmax part with respect to left, right and the scale, float64, from the probabilities of the negatives."""
    left, right, ids = np.asarray(left, np.float64), np.asarray(right, np.float64), [np.asarray(x) for x in ids]
    size = len(left)
    similarity = left @ right.T
    positive = np.diag(similarity) - margin
    off = np.all([x[:, None] != x[None, :] for x in ids], axis=0)
    by_logit, by_scale = np.zeros((size, size)), 0.0
    for axis in (1, 0):
        above = similarity - np.expand_dims(positive, axis)
        odds = np.where(off, np.exp(scale * above), 0.0)
        probability = odds / (1 + odds.sum(axis, keepdims=True))
        by_logit += probability - np.diag(probability.sum(axis))
        by_scale += (probability * above).sum()
    by_logit, by_scale = by_logit / (2 * size), by_scale / (2 * size)
    return scale * by_logit @ right, scale * by_logit.T @ left, by_scale


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


def tower_states(params, tokens, config):
    """One unpadded sequence through the decoder stack, float64, from the equations of the models' papers.

    Returns what the embedding and each layer give, [layers + 1, L, D], and the final hidden state [L, D].
    """
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    length = len(tokens)

    def norm(x, scale):
        scale = 1.0 + scale if config.norm_plus_one else scale
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def rope(x, base, factor):
        half = config.head_dim // 2
        angle = np.arange(length)[:, None] / factor * base ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)

    units = params.get("embedding.units_AD", np.zeros((0, config.width)))
    x = np.stack([params["embedding.text_VD"][t] if t < config.text_size else units[t - config.text_size] for t in tokens])
    x = x * (np.sqrt(config.width) if config.scale_embedding else 1.0)
    states, places = [x], np.arange(length)
    for layer in range(config.layers):
        at = {name.removeprefix("blocks."): value[layer] for name, value in params.items() if name.startswith("blocks.")}
        is_global = config.window == 0 or (layer + 1) % config.global_every == 0
        h = norm(x, at["pre_attention_norm.scale_D"])
        q, k, v = ((h @ at[f"attention.{n}.weight_DF"]).reshape(length, -1, config.head_dim) for n in "qkv")
        if config.qk_norm:
            q, k = norm(q, at["attention.q_norm.scale_D"]), norm(k, at["attention.k_norm.scale_D"])
        turn = (config.rope_base, config.rope_factor) if is_global else (config.rope_local_base, 1.0)
        q, k = rope(q, *turn), rope(k, *turn)
        out = np.zeros((length, config.heads, config.head_dim))
        hidden = np.zeros((length, length), bool)
        if config.causal:
            hidden |= places[:, None] < places[None, :]
        if not is_global:
            hidden |= np.abs(places[:, None] - places[None, :]) >= config.window
        for head in range(config.heads):
            group = head // (config.heads // config.kv_heads)
            logits = q[:, head] @ k[:, group].T / np.sqrt(config.query_scale or config.head_dim)
            if config.softcap:
                logits = config.softcap * np.tanh(logits / config.softcap)
            logits[hidden] = -np.inf
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        added = out.reshape(length, -1) @ at["attention.o.weight_DF"]
        x = x + (norm(added, at["post_attention_norm.scale_D"]) if config.post_norms else added)
        h = norm(x, at["pre_mlp_norm.scale_D"])
        gate = h @ at["mlp.gate.weight_DF"]
        if config.activation == "gelu":
            gate = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1.0 + np.exp(-gate))
        added = (gate * (h @ at["mlp.up.weight_DF"])) @ at["mlp.down.weight_DF"]
        x = x + (norm(added, at["post_mlp_norm.scale_D"]) if config.post_norms else added)
        states.append(x)
    return np.stack(states), norm(x, params["final_norm.scale_D"])


def tower(params, tokens, config):
    """The embedding of one unpadded sequence, float64 [E]."""
    final = tower_states(params, tokens, config)[1]
    pooled = final.mean(0) if config.pooling == "mean" else final[-1]
    for number in range(len(config.dense)):
        pooled = pooled @ np.asarray(params[f"dense.{number}.kernel_DE"], np.float64)
    return pooled / np.linalg.norm(pooled)
