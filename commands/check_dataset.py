"""`--check_dataset`: reads and validates every record of the datasets of a run."""

from __future__ import annotations

import posixpath

from commands.console import say
from commands.options import Options
from commands.run_data import RunData
from configs.errors import ConfigError
from configs.schema import RunConfig
from data.check.plots import draw_reports
from data.check.report import check_no_errors, format_report
from data.check.scan import scan_dataset
from data.loading.mixture import record_rules
from runtime.run import directory as run_directory


def check_dataset(config: RunConfig, options: Options) -> int:
    """Prints and plots statistics of every dataset, and raises an error that names every invalid record."""
    data = RunData.of(config)
    if not data.prepared:
        raise ConfigError("no dataset: nothing to check; give datasets in the model config")
    tokenizer = data.tokenizer()
    decode = tokenizer.decode_marked if tokenizer else lambda ids: " ".join(map(str, ids))
    reports = {}
    for use, ready in zip(config.data.datasets, data.prepared, strict=True):
        for part, pattern in (("training", ready.train_pattern), ("evaluation", ready.eval_pattern)):
            if pattern:
                n_ctx, ids = record_rules(config, use).n_ctx, config.data
                report = scan_dataset(
                    [pattern], n_ctx, config.model.n_vocab, ids.eos_id, decode, padding_id=ids.padding_id
                )
                reports[f"{use.dataset.id}, {part}\n{pattern}"] = report
                say(f"\n{use.dataset.id}, {part}: {pattern}\n{format_report(report)}")
    path = posixpath.join(config.model_path, run_directory.DATASET_PICTURE)
    draw_reports(reports, path)
    say(f"plot written to {path}")
    check_no_errors([errors for report in reports.values() for errors in report.errors])
    return 0
