"""Models for other programs: a folder of Hugging Face's, and a SavedModel that TensorFlow serves."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

import tokenizers

from configs.errors import UserError
from configs.huggingface import huggingface_config
from configs.schema import ModelConfig, RunConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.checkpoint.huggingface import SAFETENSORS, write_weights
from runtime.checkpoint.init_from import set_weights
from runtime.checkpoint.weight_sources import Weights
from runtime.mesh.placement import Placement, VariableStore
from storage.files import flush_to_disk, is_local

INPUT_NAME = "input_example_tensor"
SIGNATURE = "serving_default"


@contextlib.contextmanager
def _new_folder(directory: str) -> Iterator[str]:
    """A folder beside, which takes the name when all is written, so that it is there whole or not at all.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    if not is_local(directory):
        raise UserError(f"{directory}: is in a bucket; give a local folder, and copy it there afterwards")
    if not directory or "\0" in directory:
        raise UserError(f"{directory!r}: is no path; give a folder that is new or empty")
    directory, target = os.path.abspath(directory), os.path.realpath(directory)  # a link stays one, to what is written
    _check_free(directory, target)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=os.path.dirname(target)) as private:
            folder = os.path.join(private, "folder")
            os.mkdir(folder)  # with the rights that new folders have; the private one is the user's alone
            yield folder
            _flush_folder(folder)
            _check_free(directory, target)  # another export may have been faster
            os.replace(folder, target)
        flush_to_disk(os.path.dirname(target))
    except (tf.errors.OpError, OSError) as error:
        reason = getattr(error, "message", str(error))
        raise UserError(
            f"{directory}: cannot be written: {reason}; give another folder, or make room and get rights there"
        ) from error


def _check_free(directory: str, target: str) -> None:
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError(f"{directory}: is there already; give a folder that is new or empty")


def _flush_folder(directory: str) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            flush_to_disk(os.path.join(folder, name))


# Hugging Face.


def write_huggingface_folder(directory: str, config: RunConfig, weights: Weights, tokenizer_json: str | None) -> None:
    """Writes what `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load, in float32.

    Args:
        directory: new or empty.
        config: of the run.
        weights: its variables, by name.
        tokenizer_json: the text of a tokenizers JSON file; None: the run has no tokenizer.

    Raises:
        ConfigError: Hugging Face's architectures lack options of the model.
        CheckpointError: the weights are not those of the config.
        UserError: the folder is not empty, or cannot be written.
    """
    hf_config = huggingface_config(config.model, config.data.eos_id)
    with _new_folder(directory) as folder:
        _write_json(folder, "config.json", hf_config)
        write_weights(os.path.join(folder, SAFETENSORS), weights, config.model)
        if tokenizer_json is not None:
            _write_text(folder, "tokenizer.json", tokenizer_json)
            _write_json(folder, "tokenizer_config.json", _tokenizer_config(config, tokenizer_json))


def _tokenizer_config(config: RunConfig, tokenizer_json: str) -> dict[str, object]:
    """What turns a tokenizers JSON file into a tokenizer of Hugging Face's that changes nothing about it."""
    name_of = tokenizers.Tokenizer.from_str(tokenizer_json).id_to_token
    special = {"bos_token": config.data.eos_id, "eos_token": config.data.eos_id, "pad_token": config.data.padding_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.model.n_ctx,
        "clean_up_tokenization_spaces": False,
        **{role: name_of(token) for role, token in special.items() if name_of(token) is not None},
    }


def _write_json(folder: str, name: str, value: dict[str, object]) -> None:
    _write_text(folder, name, json.dumps(value, indent=2) + "\n")


def _write_text(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)


# SavedModel.


def export_saved_model(directory: str, config: RunConfig, weights: Weights) -> None:
    """Writes a SavedModel with the variables in it; it runs on whatever device serves it.

    Its signature `serving_default` takes `input_example_tensor`, int64 [batch, length], and gives `logits`, float32
    [batch, length, vocab]. Batch and length are free, the length up to n_ctx; a model that sees later tokens, as one
    of masked language modelling does, takes exactly n_ctx.

    Args:
        directory: new or empty.
        config: of the run.
        weights: its variables, by name.

    Raises:
        CheckpointError: the weights are not those of the config.
        UserError: the folder is not empty, or cannot be written.
    """
    with _new_folder(directory) as folder:
        module = _Served(config.model)
        set_weights(weights, module.store, "the run")
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.signature})


class _Served(tf.Module):
    """A model as one function of tokens, with its variables."""

    def __init__(self, model: ModelConfig):
        """Builds the graph; the variables are 0 still."""
        super().__init__()
        # A device without a name is any: the program that serves decides.
        placement = Placement(mtf.Shape([]), (), ("",), VariableStore())
        specification = tf.TensorSpec((None, None), tf.int64, name=INPUT_NAME)
        function = tf.function(lambda tokens: _served_logits(model, placement, tokens), autograph=False)
        self.signature = function.get_concrete_function(specification)
        self.store = placement.store
        self.saved_variables = [piece for stored in placement.store for piece in stored.slices]


def _served_logits(model: ModelConfig, placement: Placement, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
    length = tf.shape(tokens)[1]
    with tf.control_dependencies(_checks(model, tokens, length)):
        # Padding after a row changes nothing before it: a causal model does not see it.
        padded = tf.pad(tf.cast(tokens, tf.int32), [[0, 0], [0, model.n_ctx - length]])
    padded.set_shape((None, model.n_ctx))
    row_logits = tf.map_fn(
        lambda row: _row_logits(model, placement, row), padded, fn_output_signature=tf.float32, parallel_iterations=1
    )
    return {"logits": row_logits[:, :length]}


def _checks(model: ModelConfig, tokens: tf.Tensor, length: tf.Tensor) -> list[tf.Operation]:
    if model.is_causal:
        fits = tf.debugging.assert_less_equal(
            length, model.n_ctx, f"{INPUT_NAME} is too long: the model takes at most n_ctx = {model.n_ctx} tokens"
        )
    else:
        fits = tf.debugging.assert_equal(
            length, model.n_ctx, f"{INPUT_NAME} has a wrong length: the model takes n_ctx = {model.n_ctx} tokens"
        )
    are_ids = tf.debugging.Assert(
        tf.reduce_all((tokens >= 0) & (tokens < model.n_vocab)),
        [f"{INPUT_NAME} holds what is no id: ids are 0 to n_vocab - 1 = {model.n_vocab - 1}"],
    )
    return [fits, are_ids]


def _row_logits(model: ModelConfig, placement: Placement, tokens: tf.Tensor) -> tf.Tensor:
    """Tokens int32 [sequence] -> float32 [sequence, vocab], by the mesh graph for one row."""
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    dims = Dims.of(model, 1, model.n_ctx)
    context = Context(mesh, model, dims)
    imported = mtf.import_tf_tensor(mesh, tokens[None], mtf.Shape([dims.batch, dims.sequence]))
    logits = mtf.cast(gpt2.logits(context, imported), tf.float32)
    lowering = mtf.Lowering(graph, {mesh: placement.implementation(1)}, autostack=False)
    return lowering.export_to_tf_tensor(logits)[0]
