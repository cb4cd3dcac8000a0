"""Serves a model over HTTP."""

from __future__ import annotations

from commands.options import Options
from commands.run_setup import load_trained, set_up_for_generation
from commands.text_generator import DEFAULT_ROWS, build_text_generator, check_causal
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup


def serve(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Serves the newest checkpoint until the process is stopped; returns the exit status."""
    from serving.app import serve as serve_model  # imported here because only this command needs the server's packages
    from serving.model import ServedModel

    check_causal(config)
    run = set_up_for_generation(config, options, group)
    generator = build_text_generator(run, options.rows or DEFAULT_ROWS)
    load_trained(run)
    model = ServedModel(config.name, generator.engine, run.tokenizer, run.config.data.eos_id)
    return serve_model(model, options.serving)
