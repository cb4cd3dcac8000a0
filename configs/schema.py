"""The typed settings of a run: one frozen dataclass field a key, with its kind, default, unit and meaning.

The keys are GPT-Neo's flat JSON keys. What one value may be is in `kinds.py`; how files become settings and what
values must satisfy together is in `load.py` and `cross_checks.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from configs.errors import ValueIssue
from configs.kinds import (
    ATTENTION,
    ATTENTION_TYPES,
    AXIAL,
    EVAL_TASKS,
    FLAG,
    LAYOUT,
    MESH_SHAPE,
    NON_NEGATIVE,
    PATH,
    PENALTY,
    PENALTY_FACTOR,
    POSITIVE,
    POSITIVE_FLOAT32,
    POWER,
    SHARE,
    SHARE_OR_ALL,
    STOPS,
    SWITCH,
    TEXT,
    TEXTS,
    TOP_P,
    Kind,
    integer,
    integers,
    one_of,
    optional,
    parse_part,
    unless_off,
)
from configs.layout import Layout, MeshShape

ACTIVATIONS = (
    "gelu",
    "relu",
    "sigmoid",
    "tanh",
    "selu",
    "elu",
    "abs",
    "sin",
    "cos",
    "sign",
    "silu",
    "softplus",
    "lrelu001",
    "lrelu020",
    "id",
    "triangle_relax",
    "square_relax",
    "spike",
    "spike2",
    "tanhshrink",
    "softsign",
    "softmax",
    "logsoftmax",
    "bipolarsigmoid",
    "rrelu",
    "elish",
    "arcsinh",
    "aria",
    "prelu",
    "parcsinh",
    "psoftplus",
    "proottanh",
    "maxsig",
    "cosid",
    "minsin",
    "maxtanh",
    "mish",
    "tanhexp",
    "lisht",
    "seagull",
    "snake",
    "roottanh",
    "softplusmone",
)
PRECISIONS = ("float32", "bfloat16")
LR_DECAYS = ("linear", "cosine")
OPTIMIZERS = ("adam", "adamw", "adafactor")
MOE_GATINGS = ("top_1", "top_2")
SECOND_POLICIES_TRAIN = ("all", "none", "threshold", "random")
SECOND_POLICIES_EVAL = ("all", "none", "threshold")
INPUT_FNS = ("sequential_input", "generic_text")
PROMPT_OVERFLOWS = ("left", "refuse")
DATATYPES = ("chunks", "documents_fixed", "documents_random")

ALIASES = {"activation_fn": "activation_function", "n_positions": "n_ctx"}

# Shorter names of three settings of prediction, as flags and in files of prompts.
PREDICTION_FLAGS = {"seed": "predict_seed", "n_samples": "predict_batch_size", "max_new_tokens": "predict_max_steps"}

DATASET_INERT_KEYS = {"lambada_tokens_path": "acts with the evaluation task lambada only"}

MAX_SEED = 2**31 - 1


def setting(kind: Kind, doc: str, *, unit: str = "", default: Any = MISSING, default_text: str = "") -> Any:
    """Declares one key; `default_text` names a default that depends on other keys and is filled in on loading."""
    metadata = {"kind": kind, "doc": doc, "unit": unit, "default_text": default_text}
    return dataclasses.field(default=default, metadata=metadata)


def keys_of(config_class: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a config class that are keys of its JSON file, by name."""
    return {field.name: field for field in dataclasses.fields(config_class) if "kind" in field.metadata}


def is_required(field: dataclasses.Field) -> bool:
    """Says whether a file must give this key."""
    return field.default is MISSING and not field.metadata["default_text"]


# Mixture of experts: GPT-Neo keeps its settings in a JSON object of their own.


@dataclass(frozen=True, kw_only=True)
class MoeParams:
    """The mixture-of-experts layers: the members of the key `moe_params`."""

    moe_num_experts: int = setting(integer(2), "Experts of a layer.", unit="experts", default=16)
    moe_hidden_size: int = setting(integer(1), "Width of an expert's hidden layer.", unit="features", default=4096)
    moe_gating: str = setting(one_of(MOE_GATINGS), "How many experts a token asks for: one or two.", default="top_2")
    moe_group_size: int = setting(
        integer(1), "Tokens of a row that share the experts' room; n_ctx at most.", unit="tokens", default=1024
    )
    moe_capacity_factor_train: float = setting(
        POSITIVE,
        "Room of an expert in training, over its equal share of the choices of a group's tokens.",
        default=1.25,
    )
    moe_capacity_factor_eval: float = setting(
        POSITIVE, "Room of an expert in evaluation and generation, likewise.", default=2.0
    )
    moe_min_expert_capacity: int = setting(integer(1), "Least room of an expert.", unit="tokens", default=1)
    moe_loss_coef: float = setting(NON_NEGATIVE, "Weight of the loss that balances the experts' load.", default=1e-2)
    moe_z_loss: float = setting(NON_NEGATIVE, "Weight of the squared log-partition of the router.", default=1e-3)
    moe_second_policy_train: str = setting(
        one_of(SECOND_POLICIES_TRAIN),
        "Which second choices count in training: all, none, those whose gate exceeds the threshold, or each with "
        "probability gate / threshold (random).",
        default="random",
    )
    moe_second_policy_eval: str = setting(
        one_of(SECOND_POLICIES_EVAL), "Which second choices count in evaluation and generation.", default="all"
    )
    moe_second_threshold_train: float = setting(SHARE, "The threshold in training.", default=0.2)
    moe_second_threshold_eval: float = setting(SHARE, "The threshold in evaluation and generation.", default=0.2)
    moe_dropout_rate: float = setting(
        SHARE, "Dropout of what the experts add to the residual, in training.", unit="probability", default=0.0
    )


def _parse_moe_params(value: Any) -> MoeParams:
    if value is not None and not isinstance(value, dict):
        raise ValueIssue("is not an object", 'write it as {"moe_num_experts": 8}')
    known, parsed = keys_of(MoeParams), {}
    for key, member in (value or {}).items():
        if key not in known:
            raise ValueIssue(f"has the unknown member {key}", f"use {', '.join(known)}")
        parsed[key] = parse_part(key, known[key].metadata["kind"], member)
    return MoeParams(**parsed)


MOE_PARAMS = Kind("an object, see below; null: all defaults", _parse_moe_params, lambda params: written_keys(params))

# The settings.


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: its dimensions and the variants of its layers."""

    n_head: int = setting(integer(1), "Attention heads of a layer; divides n_embd.", unit="heads")
    n_embd: int = setting(integer(1), "Width of the residual stream.", unit="features")
    n_layer: int = setting(integer(1), "Blocks of attention and feed-forward.", unit="layers")
    n_ctx: int = setting(integer(1), "Length of the context; a training example holds one more.", unit="tokens")
    n_vocab: int = setting(integer(2), "Rows of the token table; at least the n_vocab of every dataset.", unit="tokens")
    attention_types: tuple[str, ...] = setting(
        ATTENTION,
        f"Attention of each layer: {', '.join(f'{name} ({seen})' for name, seen in ATTENTION_TYPES.items())}. The "
        "expansion has n_layer members.",
        default=(),
        default_text="global in every layer",
    )
    local_attention_radius: int = setting(
        integer(1), "Local attention at position p sees (p - radius, p].", unit="tokens", default=256
    )
    activation_function: str = setting(
        one_of(ACTIVATIONS),
        "Activation of the feed-forward layers; gelu is the tanh approximation.",
        default="gelu",
    )
    rotary_emb: bool = setting(
        SWITCH, "Rotates queries and keys by their positions, in place of position embeddings.", default=False
    )
    axial_pos_emb: tuple[int, int] | None = setting(
        unless_off(AXIAL, None),
        "Sizes of two smaller position tables; position p has the mean of rows p // second and p % second.",
        default=None,
    )
    num_mem_kv: int = setting(
        unless_off(integer(0), 0),
        "Learned keys and values that every position of a global layer sees.",
        unit="keys",
        default=0,
    )
    qkv_bias: bool = setting(SWITCH, "Biases of queries, keys and values, as in GPT-2.", default=False)
    scale_attn_weights: bool = setting(
        SWITCH,
        "Divides attention logits by sqrt(n_embd / n_head), as in GPT-2; GPT-Neo has it in its first weights instead.",
        default=False,
    )
    mlp_glu: bool = setting(
        SWITCH,
        "Gated feed-forward layers: one half of 8 n_embd features times the activation of the other.",
        default=False,
    )
    macaron: bool = setting(
        SWITCH, "Half of a feed-forward layer before attention and half of one after it.", default=False
    )
    scalenorm: bool = setting(SWITCH, "Norms of blocks have one gain for all features, and no bias.", default=False)
    rezero: bool = setting(
        SWITCH, "Blocks have no norms; what they add is multiplied by a gain that begins at 0.", default=False
    )
    share_parameters: bool = setting(SWITCH, "All layers share one block's variables.", default=False)
    no_weight_tie: bool = setting(
        SWITCH,
        "An output layer of its own in place of the token table, and, as in GPT-Neo, no final norm.",
        default=False,
    )
    moe_layers: tuple[int, ...] = setting(
        unless_off(integers(integer(0), "[1, 3, 5]"), ()),
        "Layers, counted from 0, whose feed-forward layer is a mixture of experts.",
        default=(),
    )
    moe_params: MoeParams = setting(MOE_PARAMS, "The mixture of experts.", default=MoeParams())
    moe_activation: str = setting(one_of(ACTIVATIONS), "Activation of the experts.", default="relu")
    mlm_training: bool = setting(
        SWITCH,
        "Trains on masked tokens, which are seen from both sides, in place of the next token; such a model writes no "
        "text.",
        default=False,
    )
    entmax_loss: bool = setting(
        SWITCH, "Trains with the entmax loss (alpha 1.3) in place of cross-entropy and z_loss.", default=False
    )
    embed_dropout: float = setting(
        SHARE, "Dropout of token and of position embeddings.", unit="probability", default=0.0
    )
    res_dropout: float = setting(
        SHARE, "Dropout of what attention and feed-forward add to the residual.", unit="probability", default=0.0
    )
    attn_dropout: float = setting(SHARE, "Dropout of attention weights.", unit="probability", default=0.0)
    scale_by_depth: bool = setting(FLAG, "Divides the initial c_proj kernels by sqrt(n_layer).", default=False)
    scale_by_in: bool = setting(FLAG, "Divides the initial dense kernels by sqrt(fan-in).", default=False)
    precision: str = setting(
        one_of(PRECISIONS), "Type of the activations; the variables stay float32.", default="float32"
    )
    recompute_grad: bool = setting(
        FLAG, "Computes each block again in the backward pass, to save memory.", default=False
    )
    z_loss: float = setting(
        NON_NEGATIVE, "Weight of the squared log-partition that is added to the training loss.", default=1e-4
    )

    def __post_init__(self) -> None:
        """Fills in the attention of every layer when none is given."""
        if not self.attention_types:
            object.__setattr__(self, "attention_types", ("global",) * self.n_layer)

    @property
    def is_causal(self) -> bool:
        """Whether a position sees no later one."""
        return not self.mlm_training

    @property
    def features_per_head(self) -> int:
        """Width of one attention head, in features."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimiser, its schedule, and the size of a step."""

    train_batch_size: int = setting(integer(1), "Examples of a training step, over all devices.", unit="examples")
    train_steps: int = setting(integer(1), "Step at which training ends.", unit="steps")
    lr: float = setting(POSITIVE, "Highest learning rate, reached at the end of the warm-up.", default=6e-4)
    lr_decay: str | None = setting(
        optional(one_of(LR_DECAYS)), "Shape of the decay to a tenth of lr; null: constant.", default=None
    )
    lr_decay_end: int | None = setting(
        optional(integer(1)),
        "Step at which the decay ends; the rate stays there afterwards.",
        unit="steps",
        default=None,
        default_text="`train_steps`",
    )
    warmup_steps: int = setting(integer(0), "Steps over which the rate grows linearly from 0.", unit="steps", default=0)
    opt_name: str = setting(
        one_of(OPTIMIZERS),
        "The optimiser: adam is GPT-Neo's, without bias correction; adamw has it; adafactor keeps factored second "
        "moments.",
        default="adam",
    )
    beta1: float = setting(SHARE, "Decay of the mean of gradients; with adafactor 0 saves its memory.", default=0.9)
    beta2: float = setting(SHARE, "Adam: decay of the mean of squared gradients.", default=0.95)
    epsilon: float = setting(POSITIVE_FLOAT32, "Adam: added to the root of the second moment.", default=1e-8)
    ada_epsilon1: float = setting(POSITIVE_FLOAT32, "Adafactor: added to squared gradients.", default=1e-30)
    ada_epsilon2: float = setting(POSITIVE_FLOAT32, "Adafactor: least scale of a variable.", default=1e-3)
    ada_decay_rate: float | None = setting(
        optional(SHARE),
        "Adafactor: decay of the mean of squared gradients; null: 1 - step^-0.8.",
        default=None,
    )
    weight_decay: float = setting(
        NON_NEGATIVE,
        "Decoupled decay of the weights, times the rate; adam exempts biases, the norms of blocks and the parameters "
        "of activations, adamw and adafactor every vector.",
        default=0.0,
    )
    gradient_clipping: float | None = setting(
        optional(POSITIVE), "Largest global norm of the gradients; null: no clipping.", default=None
    )
    iterations: int = setting(integer(1), "Steps between two lines of metrics.", unit="steps", default=10)
    tokens_per_mb_per_replica: int | None = setting(
        optional(integer(1)),
        "Largest microbatch of one replica; less than n_ctx means one sequence, and the size is lowered until it "
        "divides the replica's batch; null: the whole batch at once.",
        unit="tokens",
        default=None,
    )
    log_grads: bool = setting(SWITCH, "Writes the norm of each variable's gradient to the metrics.", default=False)
    log_weights: bool = setting(
        SWITCH, "Writes a histogram of each variable for TensorBoard at each checkpoint.", default=False
    )
    seed: int = setting(
        integer(0, MAX_SEED), "Seed of the initial variables, dropout and the order of files.", default=1
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on held-out data."""

    eval_batch_size: int = setting(
        integer(1), "Examples of an evaluation batch.", unit="examples", default_text="`train_batch_size`"
    )
    eval_steps: int = setting(
        integer(0), "Most batches of one evaluation; 0: none while training.", unit="batches", default=0
    )
    eval_tasks: tuple[str, ...] = setting(EVAL_TASKS, "Evaluation tasks besides held-out loss.", default=())


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """How text is sampled."""

    predict_batch_size: int = setting(integer(1), "Samples written for one prompt.", unit="samples", default=1)
    predict_steps: int = setting(
        integer(0), "Above 0: also sample at each checkpoint while training.", unit="batches", default=0
    )
    predict_max_steps: int | None = setting(
        optional(integer(1)),
        "Most new tokens of a sample, as far as n_ctx has room after the prompt; null: until it is full.",
        unit="tokens",
        default=None,
    )
    prompt_overflow: str = setting(
        one_of(PROMPT_OVERFLOWS),
        "What happens to a prompt that fills n_ctx: left leaves out tokens on its left and keeps the last ones, refuse "
        "ends the program.",
        default="left",
    )
    remove_partial_sequences: bool = setting(FLAG, "Leaves the prompt out of the written text.", default=False)
    temperature: float = setting(
        NON_NEGATIVE, "Divides the logits before sampling; 0: always the likeliest token.", default=0.9
    )
    top_k: int = setting(
        integer(0),
        "Samples among the k likeliest tokens; 0: among all (Fan et al. 2018, Hierarchical Neural Story Generation).",
        unit="tokens",
        default=0,
    )
    top_p: float = setting(
        TOP_P,
        "Samples among the likeliest tokens that hold this share; 1: among all (Holtzman et al. 2020, The Curious Case "
        "of Neural Text Degeneration).",
        unit="probability",
        default=1.0,
    )
    min_p: float = setting(
        SHARE_OR_ALL,
        "Samples among tokens that have at least this share of the likeliest one's probability; 0: among all (Nguyen "
        "et al. 2024, Min-p Sampling).",
        default=0.0,
    )
    typical_p: float = setting(
        TOP_P,
        "Samples among the tokens whose surprise is nearest to the expected one and that hold this share; 1: among all "
        "(Meister et al. 2023, Locally Typical Sampling).",
        unit="probability",
        default=1.0,
    )
    entmax_sampling: bool = setting(
        SWITCH, "Samples from the entmax (alpha 1.3) of the logits in place of their softmax.", default=False
    )
    repetition_penalty: float = setting(
        PENALTY_FACTOR,
        "Divides the positive and multiplies the negative logits of tokens of the prompt and the text; 1: none (Keskar "
        "et al. 2019, CTRL).",
        default=1.0,
    )
    presence_penalty: float = setting(
        PENALTY, "Taken from the logit of a token that was written already; 0: none (OpenAI's API).", default=0.0
    )
    frequency_penalty: float = setting(
        PENALTY, "Taken from the logit of a token as often as it was written; 0: none (OpenAI's API).", default=0.0
    )
    no_repeat_ngram: int = setting(
        integer(0, 1_000_000),
        "No run of so many tokens comes twice in the prompt and the text; 0: any may (Paulus et al. 2018, A Deep "
        "Reinforced Model for Abstractive Summarization).",
        unit="tokens",
        default=0,
    )
    never_end: bool = setting(FLAG, "The end of the text is never written, so that a sample is full.", default=False)
    stop: tuple[str, ...] = setting(
        STOPS, "Strings before the first of which a sample is cut, wherever its tokens begin and end.", default=()
    )
    num_beams: int = setting(
        integer(1, 1000),
        "Beams of a search for the likeliest text, in place of sampling; 1: none.",
        unit="beams",
        default=1,
    )
    length_penalty: float = setting(
        POWER,
        "Beams are compared by their log-probability over their length to this power: above 0 favours longer texts, as "
        "in Hugging Face's generate.",
        default=1.0,
    )
    cache_dtype: str | None = setting(
        optional(one_of(PRECISIONS)),
        "Type in which keys and values are kept while text is written; null: that of the activations.",
        default=None,
    )
    predict_seed: int | None = setting(
        optional(integer(0, MAX_SEED)),
        "Seed of sampling: a number repeats the text; null: new text each time.",
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset: tfrecords (`path`) or raw text (`text`), and its tokenizer. The id is the stem of its file."""

    id: str
    n_vocab: int = setting(
        integer(2), "Ids of the tokenizer; for raw text without tokenizer_path the size to train.", unit="tokens"
    )
    path: str | None = setting(PATH, "Glob of the tfrecords to train on.", default=None)
    eval_path: str | None = setting(PATH, "Glob of the tfrecords to evaluate on.", default=None)
    tokenizer_path: str | None = setting(
        PATH,
        "A tokenizers JSON file, a folder with vocab.json and merges.txt, or a Hugging Face name; raw text without one "
        "gets a tokenizer of its own.",
        default=None,
    )
    tokenizer_is_pretrained: bool = setting(
        FLAG, "tokenizer_path may be the Hugging Face name of a pretrained tokenizer.", default=False
    )
    eos_id: int = setting(integer(0), "Id that ends a document.", default=1)
    padding_id: int = setting(
        integer(0), "Id of padding; n_vocab itself is allowed, for a padding token added to the tokenizer.", default=0
    )
    text: tuple[str, ...] = setting(
        TEXTS,
        "Raw text: directories or globs of .txt, .md, .py, .jsonl, .jsonl.zst, .xz, .tar.gz or .zip; {python_stdlib} "
        "is the interpreter's standard library.",
        default=(),
    )
    text_exclude: tuple[str, ...] = setting(TEXTS, "Globs of raw text to leave out.", default=())
    eval_fraction: float = setting(
        SHARE, "Raw text: share of the documents held out for evaluation.", unit="share of documents", default=0.05
    )
    cache_dir: str = setting(
        TEXT, "Where the tokenizer and tfrecords made from raw text are kept.", default_text="`datasets/<id>`"
    )
    text_key: str = setting(TEXT, "Raw text: the key of a .jsonl record that holds the document.", default="text")


@dataclass(frozen=True)
class DatasetUse:
    """One dataset of a run, with GPT-Neo's mixing figures; stitch and datatype act with `generic_text` only."""

    dataset: DatasetConfig
    stitch: int | None = None
    datatype: str = "chunks"
    weight: float | None = None


@dataclass(frozen=True)
class DatasetEntry:
    """One member of the key `datasets`, before its dataset config is read: an id, or the config itself."""

    source: str | Mapping[str, Any]
    stitch: int | None = None
    datatype: str = "chunks"
    weight: float | None = None


DATASETS_EXAMPLE = 'write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]'
DATATYPE = one_of(DATATYPES)
STITCH = optional(integer(1))


def _parse_source(source: Any) -> str | Mapping[str, Any]:
    named = isinstance(source, dict) and isinstance(source.get("id"), str)
    if not named and not (isinstance(source, str) and source.strip()):
        raise ValueIssue("holds an entry without a dataset id", DATASETS_EXAMPLE)
    _check_dataset_id(source["id"] if named else source)
    return source


def _check_dataset_id(dataset_id: str) -> None:
    """Refuses an id that is no plain name, for it names a file and a folder."""
    if not dataset_id.strip(" .") or "/" in dataset_id or "\\" in dataset_id:
        raise ValueIssue(f"the dataset id {dataset_id!r} is no plain name", "give one without slashes, such as pile")


def _parse_dataset_entry(entry: Any) -> DatasetEntry:
    if not isinstance(entry, list):
        return DatasetEntry(_parse_source(entry))
    if len(entry) != 4:
        raise ValueIssue("holds an entry that is not [id, stitch, datatype, weight]", DATASETS_EXAMPLE)
    source, stitch, datatype, weight = entry
    parsed = DatasetEntry(
        _parse_source(source),
        parse_part("stitch", STITCH, stitch),
        parse_part("datatype", DATATYPE, datatype),
        parse_part("weight", optional(POSITIVE), weight),
    )
    if parsed.datatype != "chunks" and parsed.stitch is None:
        raise ValueIssue(f"gives {parsed.datatype} no stitch", "give the number of documents to join, such as 25")
    return parsed


def _parse_datasets(value: Any) -> tuple[DatasetEntry, ...]:
    if not isinstance(value, list):
        raise ValueIssue("is not a list", DATASETS_EXAMPLE)
    return tuple(_parse_dataset_entry(entry) for entry in value)


def written_keys(config: Any) -> dict[str, Any]:
    """Returns the keys and JSON values of one config object."""
    return {name: field.metadata["kind"].write(getattr(config, name)) for name, field in keys_of(type(config)).items()}


def _write_datasets(uses: Sequence[DatasetUse]) -> list:
    return [[{"id": use.dataset.id} | written_keys(use.dataset), use.stitch, use.datatype, use.weight] for use in uses]


DATASETS = Kind("a list of ids, or of [id, stitch, datatype, weight]", _parse_datasets, _write_datasets)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data is read, and how."""

    datasets: tuple[DatasetUse, ...] = setting(
        DATASETS,
        "The datasets: ids of files in dataset_configs/ beside this file or in configs/; a dataset config written out "
        "with its id may stand in place of an id. Required unless no_dataset. stitch: documents joined to cut one "
        "example from; datatype: chunks (records of n_ctx + 1 ids), documents_fixed (an example is the beginning of "
        "stitch documents joined) or documents_random (a random part of them); weight: relative share of the examples, "
        "1 where none is given.",
        default=(),
    )
    input_fn: str = setting(
        one_of(INPUT_FNS),
        "sequential_input reads fixed-length chunks: each from a dataset drawn by weight, or, where no entry of "
        "datasets gives one, those of all datasets as if they were one, as GPT-Neo always did; it does not use stitch "
        "and datatype. generic_text honours all three.",
        default="sequential_input",
    )
    shuffle_input_filenames: bool = setting(
        FLAG, "Shuffles the order of training files, by seed and epoch; the order in a file stays.", default=True
    )
    on_bad_record: str = setting(
        one_of(("stop", "skip")),
        "What training does at a record that cannot be used: stop and name it, or skip it, name it, and go on.",
        default="stop",
    )
    max_bad_share: float = setting(
        SHARE, "With on_bad_record skip: the share of bad records above which training stops.", default=0.01
    )
    no_dataset: bool = setting(FLAG, "The run reads no dataset and has no tokenizer.", default=False)
    eos_id: int = setting(
        integer(0), "Id that ends a document; less than n_vocab.", default=1, default_text="the datasets', else 1"
    )
    padding_id: int = setting(
        integer(0),
        "Id that fills an example up; not counted in evaluation. n_vocab itself (a padding token added to the "
        "tokenizer, outside the token table) means that eos_id fills it up.",
        default=0,
        default_text="the datasets', else 0",
    )
    mlm_mask_id: int | None = setting(
        optional(integer(0)), "Masked training: the id in place of masked tokens; required with it.", default=None
    )
    mlm_cls_token_id: int | None = setting(
        optional(integer(0)), "Masked training: an id to begin every example with; null: none.", default=None
    )
    mlm_mask_prob: float = setting(
        TOP_P, "Masked training: share of the tokens that are predicted.", unit="probability", default=0.15
    )
    mlm_same_token_prob: float = setting(
        SHARE, "Masked training: share of the predicted tokens that stay.", unit="probability", default=0.10
    )
    mlm_random_token_prob: float = setting(
        SHARE, "Masked training: share of them that become any token.", unit="probability", default=0.0
    )
    mlm_mask_ignore_ids: tuple[int, ...] = setting(
        unless_off(integers(integer(0), "[0, 5]"), ()), "Masked training: ids that are never predicted.", default=()
    )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The mesh of devices, and which tensor dimension is split over which mesh axis."""

    mesh_shape: MeshShape | None = setting(
        MESH_SHAPE, "Axes of the device mesh and their sizes; none: all visible devices, batch split.", default=None
    )
    layout: Layout | None = setting(
        LAYOUT, "Dimensions of tensors and the mesh axes they are split over.", default=None
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one run is told, checked as a whole."""

    name: str = setting(TEXT, "Name of the run.", default_text="the stem of the file")
    model_path: str = setting(TEXT, "Directory of checkpoints, metrics and samples.")
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    prediction: PredictionConfig
    data: DataConfig
    mesh: MeshConfig


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "prediction": PredictionConfig,
    "data": DataConfig,
    "mesh": MeshConfig,
}

MODEL_NAME = one_of(("GPT",))
