"""Values that do not fit together, and the exact message for each."""

from __future__ import annotations

import pytest

from configs.load import load_config
from tests.configs.config_files import MASKED, MODEL, message_of, without, write_configs


def test_evaluation_and_prediction_batches_need_not_divide(tmp_path):
    changes = {"mesh_shape": "x:4", "layout": "batch:x", "eval_batch_size": 3, "predict_batch_size": 1}
    assert load_config(write_configs(tmp_path, MODEL | changes)).evaluation.eval_batch_size == 3


CONFLICTS = {
    "beams that sample": (
        {"num_beams": 4, "top_p": 0.5},
        "top_p = 0.5: has no effect on beam search (num_beams = 4); leave one of them out",
    ),
    "more samples than beams": (
        {"num_beams": 4, "predict_batch_size": 5},
        "predict_batch_size = 5: is more than num_beams = 4; lower it, or raise num_beams",
    ),
    "a top_k above the vocabulary": (
        {"top_k": 129},
        "top_k = 129: is more than n_vocab = 128; lower it; 0 turns it off",
    ),
    "batches that end with another size": (
        {"batch_size_warmup": [[0, 2], [5, 3]], "train_batch_size": 4},
        "batch_size_warmup = [[0, 2], [5, 3]]: ends with 3, but train_batch_size = 4; "
        "add [STEP, 4] at its end, or change train_batch_size",
    ),
    "batches that were larger": (
        {"batch_size_warmup": [[0, 8], [5, 4]], "train_batch_size": 4},
        "batch_size_warmup = [[0, 8], [5, 4]]: exceeds train_batch_size = 4; lower its sizes",
    ),
    "a decay longer than what the warm-up leaves": (
        {"lr_decay": "wsd", "lr_decay_steps": 7, "warmup_steps": 4, "lr_decay_end": 10},
        "lr_decay_steps = 7: and warmup_steps = 4 are more than lr_decay_end = 10; "
        "lower one of the two; lr_decay_end is train_steps unless it is given",
    ),
    "recomputation in two ways": (
        {"recompute": "attention", "recompute_grad": True},
        'recompute = "attention": recompute_grad = true means block; keep one of the two',
    ),
    "adapters without a rank": (
        {"lora_targets": ["q"]},
        'lora_targets = ["q"]: has no effect without lora_rank; give lora_rank too, or leave it out',
    ),
    "adapters of a gate that there is not": (
        {"lora_rank": 4, "lora_targets": ["q", "c_gate"]},
        'lora_targets = ["q", "c_gate"]: names c_gate, which models with gated_mlp have, in layers without experts; '
        "use q, k, v, o, c_fc, c_proj",
    ),
    "adapters of experts": (
        {"lora_rank": 4, "lora_targets": ["c_fc"], "moe_layers": [0, 1]},
        'lora_targets = ["c_fc"]: names c_fc, which no layer has: experts are not adapted; use q, k, v, o',
    ),
    "adapters of no attention": (
        {"lora_rank": 4, "attention_types": [[["none"], 2]]},
        "lora_targets: names q, which no layer has; use c_fc, c_proj\n"
        "{path}: lora_targets: names v, which no layer has; use c_fc, c_proj",
    ),
    "adapters and muon": (
        {"lora_rank": 4, "opt_name": "muon"},
        'opt_name = "muon": updates the matrices that lora_rank freezes; give adamw',
    ),
    "adapters split as their inputs are": (
        {"lora_rank": 4, "mesh_shape": "x:2", "layout": "embd:x,lora_rank:x"},
        'layout = "embd:x,lora_rank:x": embd:x and lora_rank:x split the adapters at the residual stream twice over '
        "one axis; give one of them another axis, or leave it out",
    ),
    "heads that do not divide": (
        {"n_head": 5},
        "n_head = 5: does not divide n_embd = 64; choose n_head and n_embd so that n_embd / n_head is "
        "whole, or give head_dim",
    ),
    "heads in unequal groups": (
        {"n_head": 4, "n_kv_head": 3},
        "n_kv_head = 3: does not divide n_head = 4; choose them so that n_head / n_kv_head is whole",
    ),
    "groups that the axis does not divide": (
        {"n_kv_head": 1, "mesh_shape": "x:2", "layout": "heads:x,kv_heads:x"},
        'layout = "heads:x,kv_heads:x": kv_heads:x splits n_kv_head = 1 over 2 devices, which does not divide it; '
        "change n_kv_head, the size of x, or the rule",
    ),
    "more rotated features than a head has": (
        {"rotary_emb": True, "rotary_dim": 18},
        "rotary_dim = 18: is not an even number of at most 16, the features of a head; change it",
    ),
    "rotation without rotary embeddings": (
        {"rotary_style": "interleaved"},
        'rotary_style = "interleaved": has no effect without rotary_emb; set rotary_emb to true, or leave it out',
    ),
    "a bound of logits that linear attention lacks": (
        {"attention_softcap": 5.0, "attention_types": [[["linear"], 2]]},
        "attention_softcap = 5.0: acts in global and local layers, and attention_types has none; leave it out, or give "
        "such a layer",
    ),
    "heads that muP cannot make narrower": (
        {"mup_base_width": 18, "n_head": 4},
        "mup_base_width = 18: is not divisible by n_head = 4, and without head_dim narrower models have as many heads; "
        "give head_dim if they have fewer, or change one of the two",
    ),
    "an optimiser without a rule of muP": (
        {"mup_base_width": 32, "opt_name": "adafactor"},
        "mup_base_width = 32: has no rule for opt_name = adafactor, whose updates are relative to the weights; "
        "use adam, adamw, lion or muon",
    ),
    "two ways to scale the rate by the width": (
        {"mup_base_width": 32, "lr_decay": "noam"},
        'lr_decay = "noam": scales lr by n_embd, as mup_base_width does by its own rule; keep one of the two',
    ),
    "muP with linear attention": (
        {"mup_base_width": 32, "attention_types": [[["linear", "global"], 1]]},
        "mup_base_width = 32: has no rule for linear attention; leave it out, or use global or local attention",
    ),
    "two scales": (
        {"attention_scale": 0.5, "scale_attn_weights": True},
        "attention_scale = 0.5: scales what scale_attn_weights scales too; keep one of the two",
    ),
    "attention for too many layers": (
        {"attention_types": [[["global", "local"], 6]]},
        'attention_types = [[["global", "local"], 6]]: expands to 12 layers, but n_layer = 2; '
        "make it expand to 2, or set n_layer to 12",
    ),
    "rotary embeddings of an odd width": (
        {"rotary_emb": True, "n_embd": 12, "n_head": 4},
        "rotary_emb = true: needs an even number of features per head, but n_embd / n_head = 3; "
        "change n_head, n_embd or head_dim, or set it to false",
    ),
    "axes that do not cover the context": (
        {"axial_pos_emb": [3, 5]},
        "axial_pos_emb = [3, 5]: multiplies to 15, but n_ctx = 32; give two sizes whose product is n_ctx",
    ),
    "two kinds of positions": (
        {"axial_pos_emb": [4, 8], "rotary_emb": True},
        "axial_pos_emb = [4, 8]: cannot be combined with rotary_emb; keep one of the two",
    ),
    "two kinds of norms": (
        {"scalenorm": True, "rezero": True},
        "scalenorm = true: changes the norms that rezero removes; keep one of the two",
    ),
    "norms in other places than none": (
        {"norm_placement": "after", "rezero": True},
        'norm_placement = "after": changes the norms that rezero removes; keep one of the two',
    ),
    "parallel halves without norms": (
        {"parallel_residual": "one_norm", "rezero": True},
        'parallel_residual = "one_norm": changes the norms that rezero removes; keep one of the two',
    ),
    "one gain for all features of rmsnorm": (
        {"norm": "rmsnorm", "scalenorm": True},
        "scalenorm = true: is a form of layernorm, but norm = rmsnorm; keep one of the two",
    ),
    "an offset of layernorm's gain": (
        {"norm_unit_offset": True},
        "norm_unit_offset = true: acts on the gain of rmsnorm, but norm = layernorm; set norm to rmsnorm",
    ),
    "a kind of norm without norms": (
        {"norm": "rmsnorm", "rezero": True, "no_weight_tie": True},
        'norm = "rmsnorm": has no effect: rezero removes the norms of blocks, and there is no final norm; remove it',
    ),
    "norms after one norm": (
        {"norm_placement": "after", "parallel_residual": "one_norm"},
        'parallel_residual = "one_norm": counts the norms before attention and feed-forward, and norm_placement = '
        "after has none; set norm_placement to before or both",
    ),
    "macaron in parallel": (
        {"parallel_residual": "two_norms", "macaron": True},
        'parallel_residual = "two_norms": cannot be combined with macaron; keep one of the two',
    ),
    "a doubled residual in parallel": (
        {"parallel_residual": "two_norms", "none_doubles_residual": True},
        'parallel_residual = "two_norms": cannot be combined with none_doubles_residual; keep one of the two',
    ),
    "macaron with norms after": (
        {"norm_placement": "both", "macaron": True},
        'norm_placement = "both": says nothing of the first half of macaron, which has no norm; keep one of the two',
    ),
    "two gates": (
        {"gated_mlp": True, "mlp_glu": True},
        "gated_mlp = true: and mlp_glu are two forms of a gate; keep one of the two",
    ),
    "a cap of scores": (
        {"objective": "ranking", "logit_softcap": 30.0, "datasets": [], "no_dataset": True},
        'objective = "ranking": is ranking, and logit_softcap is about the likelihood of tokens; '
        "leave logit_softcap out",
    ),
    "a width that the axis does not divide": (
        {"n_inner": 100, "mesh_shape": "x:8", "layout": "intermediate_expanded:x"},
        'layout = "intermediate_expanded:x": intermediate_expanded:x splits n_inner = 100 over 8 devices, '
        "which does not divide it; change n_inner, the size of x, or the rule",
    ),
    "a task of texts for a masked model": (
        MASKED | {"eval_tasks": ["validation", "piqa"]},
        'eval_tasks = ["validation", "piqa"]: names piqa, and mlm_training = true gives no likelihood of a text; keep '
        "validation alone",
    ),
    "memory without global attention": (
        {"num_mem_kv": 4, "attention_types": [[["local"], 2]]},
        "num_mem_kv = 4: acts in global layers, and attention_types has none; set it to 0, or give a global layer",
    ),
    "experts beyond the last layer": (
        {"moe_layers": [1, 2]},
        "moe_layers = [1, 2]: names layer 2, but the last of 2 layers is 1; count layers from 0",
    ),
    "experts named twice for a layer": (
        {"moe_layers": [1, 1]},
        "moe_layers = [1, 1]: names a layer twice; name each once",
    ),
    "experts that the axis does not divide": (
        {"moe_layers": [1], "moe_params": {"moe_num_experts": 6}, "mesh_shape": "x:4", "layout": "experts:x"},
        'layout = "experts:x": experts:x splits moe_num_experts = 6 over 4 devices, which does not divide it; '
        "change moe_num_experts, the size of x, or the rule",
    ),
    "masked training without a mask": (
        {"mlm_training": True},
        "mlm_mask_id: is missing; give the id that replaces masked tokens",
    ),
    "a mask id outside the vocabulary": (
        MASKED | {"mlm_mask_id": 128},
        "mlm_mask_id = 128: is not below n_vocab = 128; give an id of the tokenizer",
    ),
    "a first id outside the vocabulary": (
        MASKED | {"mlm_cls_token_id": 128},
        "mlm_cls_token_id = 128: is not below n_vocab = 128; give an id of the tokenizer",
    ),
    "an ignored id outside the vocabulary": (
        MASKED | {"mlm_mask_ignore_ids": [1, 200]},
        "mlm_mask_ignore_ids = [1, 200]: holds 200, which is not below n_vocab = 128; give ids of the tokenizer",
    ),
    "a first id that is the mask": (
        MASKED | {"mlm_cls_token_id": 5},
        "mlm_cls_token_id = 5: is the same as mlm_mask_id; give another id",
    ),
    "a context that the first id fills": (
        MASKED | {"mlm_cls_token_id": 6, "n_ctx": 1},
        "mlm_cls_token_id = 6: fills the whole context of n_ctx = 1; raise n_ctx, or leave it out",
    ),
    "fractions of masked tokens above 1": (
        MASKED | {"mlm_same_token_prob": 0.6, "mlm_random_token_prob": 0.5},
        "mlm_random_token_prob = 0.5: exceeds 1 together with mlm_same_token_prob = 0.6; lower one of the two",
    ),
    "state to share without replicas": (
        {"mesh_shape": "x:4", "layout": "heads:x", "shard": "optimizer"},
        'shard = "optimizer": splits over the axis of batch, which layout leaves whole; add batch to layout, or set '
        "shard to off",
    ),
    "heads that the axis does not divide": (
        {"mesh_shape": "x:3", "layout": "heads:x"},
        'layout = "heads:x": heads:x splits n_head = 4 over 3 devices, which does not divide it; '
        "change n_head, the size of x, or the rule",
    ),
    "a feed-forward width that the axis does not divide": (
        {"mesh_shape": "x:512", "layout": "intermediate_expanded:x"},
        'layout = "intermediate_expanded:x": intermediate_expanded:x splits 4 n_embd = 256 over 512 devices, '
        "which does not divide it; change 4 n_embd, the size of x, or the rule",
    ),
    "a tensor split twice over one axis": (
        {"mesh_shape": "y:2", "layout": "vocab:y,embd:y"},
        'layout = "vocab:y,embd:y": vocab:y and embd:y split the token table wte twice over one axis; '
        "give one of them another axis, or leave it out",
    ),
    "attention split twice over one axis": (
        {"mesh_shape": "y:2", "layout": "sequence:y,memory_length:y"},
        'layout = "sequence:y,memory_length:y": sequence:y and memory_length:y split the attention weights twice '
        "over one axis; give one of them another axis, or leave it out",
    ),
    "an unknown axis": (
        {"mesh_shape": "x:2", "layout": "batch:y"},
        'layout = "batch:y": batch:y names an axis that mesh_shape lacks; use x, or add y to mesh_shape',
    ),
    "a layout without a mesh": (
        {"layout": "batch:x"},
        'layout = "batch:x": batch:x needs a mesh, but there is no mesh_shape; give one, such as "x:2"',
    ),
    "no datasets": (
        {"datasets": []},
        'datasets = []: names no dataset; give ids, such as ["pile"], or set no_dataset to true',
    ),
    "an eos id outside the vocabulary": (
        {"eos_id": 128},
        "eos_id = 128: is not below n_vocab = 128; give the id of the tokenizer",
    ),
    "a padding id outside the vocabulary": (
        {"padding_id": 129},
        "padding_id = 129: is more than n_vocab = 128; give the id of the tokenizer",
    ),
}


@pytest.mark.parametrize("change, expected", CONFLICTS.values(), ids=CONFLICTS.keys())
def test_a_conflict_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL | change)
    assert message_of(path) == f"{path}: {expected.replace('{path}', path)}"


def test_missing_datasets(tmp_path):
    path = write_configs(tmp_path, without(MODEL, "datasets"))
    expected = 'datasets: names no dataset; give ids, such as ["pile"], or set no_dataset to true'
    assert message_of(path) == f"{path}: {expected}"
