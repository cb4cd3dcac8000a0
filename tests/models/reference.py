"""Reference implementation of GPT-Neo's model, loss and Adam step, in NumPy and float64.

Shape legend: B batch, S sequence, M memory_length, H heads, D features_per_head, E embd, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from configs.schema import ModelConfig
from tests.models import reference_attention, reference_moe
from tests.models.reference_activations import ACTIVATIONS

Values = Mapping[str, np.ndarray]


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """Normalises the last dimension."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * gain + bias


def rms_norm(x: np.ndarray, gain: np.ndarray | float, epsilon: float = 1e-5, n_dims: int = 1) -> np.ndarray:
    """Divides by the root mean square of the last `n_dims` dimensions."""
    axes = tuple(range(-n_dims, 0))
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon) * gain


def attention_weights(queries: np.ndarray, keys: np.ndarray, radius: int | None) -> np.ndarray:
    """[B, S, H, D], [B, M, H, D] -> [B, H, S, M]; position p sees 0 ... p, or the last `radius` of them."""
    ages = np.arange(queries.shape[1])[:, None] - np.arange(keys.shape[1])
    visible = (ages >= 0) & (ages < (radius or np.inf))
    logits = np.where(visible, np.einsum("bshd,bmhd->bhsm", queries, keys), -np.inf)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    radius: int | None,
    dropout_factor: np.ndarray | float = 1.0,
) -> np.ndarray:
    """[B, S, H, D], [B, M, H, D] twice -> [B, S, H, D]; no scale of the logits."""
    return np.einsum("bhsm,bmhd->bshd", attention_weights(queries, keys, radius) * dropout_factor, values)


def attention_gradient(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    d_outputs: np.ndarray,
    radius: int | None,
    dropout_factor: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of queries, keys and values from the gradient of the outputs."""
    weights = attention_weights(queries, keys, radius)
    d_values = np.einsum("bhsm,bshd->bmhd", weights * dropout_factor, d_outputs)
    d_weights = np.einsum("bshd,bmhd->bhsm", d_outputs, values) * dropout_factor
    d_logits = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
    return np.einsum("bhsm,bmhd->bshd", d_logits, keys), np.einsum("bhsm,bshd->bmhd", d_logits, queries), d_values


def visible(model: ModelConfig, layer: int, length: int) -> np.ndarray:
    """[S, M]: which positions a layer's positions see."""
    ages = np.arange(length)[:, None] - np.arange(length)
    radius = model.local_attention_radius if model.attention_types[layer] == "local" else length
    return (ages >= 0) & (ages < radius) if model.is_causal else np.abs(ages) < radius


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def softmax_attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, visible: np.ndarray, softcap: float | None = None
) -> np.ndarray:
    """[B, S, H, D], [B, M, H, D] twice, bool [S, M] -> [B, S, H, D]."""
    logits = np.einsum("bshd,bmhd->bhsm", queries, keys)
    logits = np.where(visible, np.tanh(logits / softcap) * softcap if softcap else logits, -np.inf)
    return np.einsum("bhsm,bmhd->bshd", softmax(logits), values)


def linear_attention(model: ModelConfig, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The queries' softmax weighs features; one sum normalises them all, or each has its own."""
    if not model.is_causal:
        return np.einsum("bshd,bmhd,bmhe->bshe", softmax(queries), softmax(keys, 1), values)
    features = np.exp(keys)
    totals = softmax(queries) * (features.cumsum(1) + 1e-6)
    contexts = np.einsum("bshd,bshe->bshde", features, values).cumsum(1)
    if model.linear_attention_normalization == "feature":
        return np.einsum("bshd,bshde->bshe", softmax(queries) ** 2 / totals, contexts)
    return np.einsum("bshd,bshde->bshe", softmax(queries), contexts) / totals.sum(-1, keepdims=True)


def rotated(model: ModelConfig, x: np.ndarray) -> np.ndarray:
    """[B, S, H, D]: pairs of features as complex numbers, turned by position * frequency."""
    frequencies, gain = reference_attention.rotary_frequencies(model)
    turns = gain * np.exp(1j * np.arange(x.shape[1])[:, None] * frequencies)[:, None]
    width, y = 2 * len(frequencies), x.copy()
    first, second = (
        np.arange(width).reshape(2, -1) if model.rotary_style == "half" else np.arange(width).reshape(-1, 2).T
    )
    turned = (x[..., first] + 1j * x[..., second]) * turns
    y[..., first], y[..., second] = turned.real, turned.imag
    return y


def _kernel(model: ModelConfig, values: Values, name: str) -> np.ndarray:
    """A kernel with its adapter, if it has one."""
    kernel, down = values[name], values.get(f"{name}/lora_a")
    return kernel if down is None else kernel + model.lora_alpha / model.lora_rank * down @ values[f"{name}/lora_b"]


def _attention_layer(model: ModelConfig, values: Values, x: np.ndarray, layer: int, scope: str) -> np.ndarray:
    def projected(name: str) -> np.ndarray:
        bias = values[f"{scope}/attn/{name}_bias"] if model.qkv_bias else 0.0
        y = x @ _kernel(model, values, f"{scope}/attn/{name}") + bias
        by_head = (*x.shape[:2], -1, model.features_per_head)
        if name == "v" or model.qk_norm == "off":
            return y.reshape(by_head)
        gain = values[f"{scope}/attn/{name}_norm/g"] + model.norm_unit_offset
        if model.qk_norm == "projection":
            return rms_norm(y, gain, model.norm_epsilon).reshape(by_head)
        return rms_norm(y.reshape(by_head), gain, model.norm_epsilon)

    queries, keys, vectors = map(projected, "qkv")
    width = model.features_per_head
    base_width = model.mup_base_width // model.n_head if model.mup_base_width and not model.head_dim else width
    if model.attention_scale is not None:
        queries = queries * model.attention_scale
    elif model.scale_attn_weights:
        queries = queries / math.sqrt(base_width)
    queries = queries * base_width / width
    if model.rotary_emb:
        queries, keys = rotated(model, queries), rotated(model, keys)
    seen = visible(model, layer, x.shape[1])
    if model.num_mem_kv and model.attention_types[layer] == "global":
        learned = [values[f"{scope}/attn/attention/mem_{name}"] for name in "kv"]
        learned = [np.broadcast_to(memory, (len(x), *memory.shape)) for memory in learned]
        keys, vectors = (np.concatenate(pair, 1) for pair in zip(learned, (keys, vectors), strict=True))
        seen = np.pad(seen, [(0, 0), (model.num_mem_kv, 0)], constant_values=True)
    of_each_head = np.arange(model.n_head) * keys.shape[2] // model.n_head
    keys, vectors = keys[:, :, of_each_head], vectors[:, :, of_each_head]
    if model.attention_types[layer] == "linear":
        attended = linear_attention(model, queries, keys, vectors)
    else:
        attended = softmax_attention(queries, keys, vectors, seen, model.attention_softcap)
    y = attended.reshape(*x.shape[:2], -1) @ _kernel(model, values, f"{scope}/attn/o")
    return y + values[f"{scope}/attn/compute_output_bias/o_b"] if model.attn_output_bias else y


def _feed_forward(model: ModelConfig, values: Values, x: np.ndarray, scope: str) -> np.ndarray:
    main, activation = f"{scope}/conv1d_main", activation_of(model.activation_function, values, scope)

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        y = x @ _kernel(model, values, f"{main}/{name}/kernel")
        return y + values[f"{main}/{name}/bias"] if model.mlp_bias else y

    hidden = dense(x, "c_fc")
    if model.gated_mlp:
        hidden = activation(dense(x, "c_gate")) * hidden
    elif model.mlp_glu:
        kept, gate = np.split(hidden, 2, -1)
        hidden = kept * activation(gate)
    else:
        hidden = activation(hidden)
    return dense(hidden, "c_proj")


def activation_of(name: str, values: Values, scope: str) -> Callable[[np.ndarray], np.ndarray]:
    """The activation with the parameters that the model has learned."""
    prefix = f"{scope}/activation/"
    parameters = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return lambda x: ACTIVATIONS[name](x, **parameters)


def _norm(model: ModelConfig, values: Values, x: np.ndarray, scope: str) -> np.ndarray:
    gain = values[f"{scope}/g"]
    if model.norm == "rmsnorm":
        return rms_norm(x, 1.0 + gain if model.norm_unit_offset else gain, model.norm_epsilon)
    return layer_norm(x, gain, 0.0 if gain.ndim == 0 else values[f"{scope}/b"], model.norm_epsilon)


def _before(model: ModelConfig, values: Values, x: np.ndarray, scope: str) -> np.ndarray:
    """The input of a half of a block."""
    return x if model.rezero or model.norm_placement == "after" else _norm(model, values, x, scope)


def _added(model: ModelConfig, values: Values, y: np.ndarray, scope: str, number: int) -> np.ndarray:
    """What the output of a half of a block adds to the residual stream."""
    if model.rezero:
        return y * values[f"{scope}/norm_rezero_{number}/g"]
    return y if model.norm_placement == "before" else _norm(model, values, y, f"{scope}/norm_{number}_post")


def _positions(model: ModelConfig, values: Values, length: int) -> np.ndarray | float:
    if model.rotary_emb:
        return 0.0
    if model.axial_pos_emb:
        first, second = values["gpt2/axial_wpe_1"], values["gpt2/axial_wpe_2"]
        return ((first[:, None] + second) / 2).reshape(-1, model.n_embd)[:length]
    return values["gpt2/wpe"][:length]


def _mixture(
    model: ModelConfig, values: Values, x: np.ndarray, scope: str, capacity_factor: float
) -> tuple[np.ndarray, float]:
    """Outputs and auxiliary loss; every second choice counts, and experts use ReLU."""
    moe = model.moe_params
    names = ("top_2_gating", "wi", "wo")
    weights = reference_moe.Weights(*(values[f"{scope}/{name}/kernel"] for name in names))
    group_size = min(moe.moe_group_size, model.n_ctx)
    n_choices = int(moe.moe_gating[-1])
    capacity = max(moe.moe_min_expert_capacity, int(group_size * n_choices * capacity_factor / moe.moe_num_experts))
    rule = reference_moe.Rule(n_choices, group_size, min(group_size, capacity))
    aux_loss = reference_moe.aux_loss(x, weights, moe.moe_loss_coef, moe.moe_z_loss)
    return reference_moe.mixture(x, weights, rule)[0], aux_loss


def hidden(model: ModelConfig, values: Values, tokens: np.ndarray, capacity_factor: float) -> tuple[np.ndarray, float]:
    """Tokens [B, S] -> output of the last block [B, S, E], and the experts' auxiliary loss; without dropout."""
    aux_loss = 0.0
    share = 0.5 if model.macaron else 1.0
    x = values["gpt2/wte"][tokens] * (model.embedding_scale or 1.0) + _positions(model, values, tokens.shape[1])
    for layer, kind in enumerate(model.attention_types):
        scope = "gpt2/" if model.share_parameters else f"gpt2/h{layer}"
        if model.macaron:
            x = x + share * _feed_forward(model, values, x, f"{scope}/mlp_macaron")
        block_input = x
        if kind != "none":
            attended = _attention_layer(model, values, _before(model, values, x, f"{scope}/norm_1"), layer, scope)
            x = x + _added(model, values, attended, scope, 1)
        elif model.none_doubles_residual:
            x = x + (x * values[f"{scope}/norm_rezero_1/g"] if model.rezero else x)
        if model.parallel_residual == "one_norm":
            normed = _before(model, values, block_input, f"{scope}/norm_1")
        else:
            source = block_input if model.parallel_residual == "two_norms" else x
            normed = _before(model, values, source, f"{scope}/norm_2")
        if layer in model.moe_layers:
            fed, loss = _mixture(model, values, normed, scope, capacity_factor)
            aux_loss += loss
        else:
            fed = _feed_forward(model, values, normed, f"{scope}/mlp")
        x = x + _added(model, values, share * fed, scope, 2)
    return x, aux_loss


def logits(model: ModelConfig, values: Values, tokens: np.ndarray) -> np.ndarray:
    """Tokens [B, S] -> logits [B, S, V], without dropout, as in evaluation."""
    return _output(model, values, hidden(model, values, tokens, model.moe_params.moe_capacity_factor_eval)[0])


def _output(model: ModelConfig, values: Values, x: np.ndarray) -> np.ndarray:
    scope = "gpt2/wte_final_linear/conv1d_main/linear_out"
    if not model.no_weight_tie if model.final_norm is None else model.final_norm:
        x = _norm(model, values, x, "gpt2/ln_f")
    if model.mup_base_width:
        x = x * model.mup_base_width / model.n_embd
    logits = x @ (values[f"{scope}/kernel"] if model.no_weight_tie else values["gpt2/wte"].T)
    if model.no_weight_tie if model.head_bias is None else model.head_bias:
        logits = logits + values[f"{scope}/bias"]
    return model.logit_softcap * np.tanh(logits / model.logit_softcap) if model.logit_softcap else logits


def losses(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, S, V], [B, S] -> cross-entropy and log_z of each token, [B, S]."""
    largest = logits.max(-1)
    log_z = largest + np.log(np.exp(logits - largest[..., None]).sum(-1))
    return log_z - np.take_along_axis(logits, labels[..., None], -1)[..., 0], log_z


def training_loss(model: ModelConfig, values: Values, tokens: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy, plus the z-loss and the auxiliary losses of the experts."""
    x, aux_loss = hidden(model, values, tokens, model.moe_params.moe_capacity_factor_train)
    cross_entropy, log_z = losses(_output(model, values, x), labels)
    return cross_entropy.mean() + model.z_loss * (log_z**2).mean() + aux_loss


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Muon's approximate orthogonalisation [rows, columns]: five times X = a X + (b A + c A^2) X with A = X X^T."""
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def adam_step(
    value: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    gradient: np.ndarray,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No bias correction, epsilon outside the root, decay times the rate."""
    m = beta1 * m + (1.0 - beta1) * gradient
    v = beta2 * v + (1.0 - beta2) * gradient**2
    return value - lr * (m / (np.sqrt(v) + epsilon) + decay * value), m, v
