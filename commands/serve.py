"""Serves a model over HTTP."""

from __future__ import annotations

from commands.options import Options
from commands.placing import place_run
from commands.text_generator import DEFAULT_ROWS, build_text_generator, check_causal, load_run_tokenizer
from commands.trained_weights import load_trained
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup


def serve(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Serves the newest checkpoint until the process is stopped; returns the exit status."""
    from serving.app import serve as serve_model  # here, as only this command needs the server's packages
    from serving.model import ServedModel

    check_causal(config)
    placement = place_run(config, options, group)
    tokenizer = load_run_tokenizer(config, options.init_from, group)
    generator = build_text_generator(config, placement, group, tokenizer, options.n_rows or DEFAULT_ROWS)
    load_trained(config, options, placement, tokenizer)
    return serve_model(ServedModel(config.name, generator.engine, tokenizer, config.data.eos_id), options.serving)
