"""The model as a server."""

from __future__ import annotations

from commands.options import Options
from commands.placing import place_run
from commands.text_generator import MOST_ROWS, build_author, check_writes_text, tokenizer_of
from commands.trained_weights import load_trained
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup


def serve(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Answers requests with the newest checkpoint, until it is told to stop; returns the exit status."""
    from serving.app import serve as serve_model  # here, for its packages are needed by this verb alone
    from serving.model import ServedModel

    check_writes_text(config)
    placement = place_run(config, options, group)
    tokenizer = tokenizer_of(config, options.init_from, group)
    author = build_author(config, placement, group, tokenizer, options.n_rows or MOST_ROWS)
    load_trained(config, options, placement, tokenizer)
    return serve_model(ServedModel(config.name, author.engine, tokenizer, config.data.eos_id), options.serving)
