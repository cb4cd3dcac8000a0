"""Serves a model over HTTP."""

from __future__ import annotations

from commands.chat import chat_settings
from commands.chat_template import choose_template
from commands.options import Options
from commands.reranking import build_reranker
from commands.run_setup import load_trained, set_up_for_generation
from commands.text_generator import DEFAULT_ROWS, build_text_generator, check_causal
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup


def serve(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Serves the newest checkpoint until the process is stopped; returns the exit status."""
    from serving.app import serve as serve_model  # imported here because only this command needs the server's packages
    from serving.model import AnswerRanking, ServedModel
    from serving.protocol import ChatSettings

    check_causal(config)
    run = set_up_for_generation(config, options, group)
    generator = build_text_generator(run, options.rows or DEFAULT_ROWS)
    reranker = options.reranking and build_reranker(run)
    load_trained(run)
    if reranker is not None:
        reranker.load()
    template, settings = choose_template(run), chat_settings(config, options)
    chat = ChatSettings(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        max_tokens=settings.predict_max_steps,
    )
    ranking = reranker and AnswerRanking(options.reranking.candidates, reranker.scores)
    ids = run.config.data
    model = ServedModel(
        config.name, generator.engine, run.tokenizer, ids.eos_id, template, chat, ranking, end_ids=ids.end_ids
    )
    return serve_model(model, options.serving)
