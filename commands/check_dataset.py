"""What is in the datasets of a run."""

from __future__ import annotations

import posixpath

from commands.console import say
from commands.options import Options
from commands.run_data import RunData
from configs.errors import ConfigError
from configs.schema import RunConfig
from data.check.plots import draw_reports
from data.check.scan import check_sound, format_report, inspect_dataset
from data.loading.mixture import record_rules
from runtime.run import directory as run_directory


def check_dataset(config: RunConfig, options: Options) -> int:
    """Reads every record of every dataset, shows and draws what is in them, and names all that is wrong."""
    data = RunData.of(config)
    if not data.prepared:
        raise ConfigError("no dataset: nothing to check; give datasets in the model config")
    tokenizer = data.tokenizer()
    decode = tokenizer.decode if tokenizer else lambda ids: " ".join(map(str, ids))
    reports = {}
    for use, ready in zip(config.data.datasets, data.prepared, strict=True):
        for part, pattern in (("training", ready.train_pattern), ("evaluation", ready.eval_pattern)):
            if pattern:
                report = inspect_dataset(
                    [pattern], record_rules(config, use).n_ctx, config.model.n_vocab, config.data.eos_id, decode
                )
                reports[f"{use.dataset.id}, {part}: {pattern}"] = report
                say(f"\n{use.dataset.id}, {part}: {pattern}\n{format_report(report)}")
    path = posixpath.join(config.model_path, run_directory.DATASET_PICTURE)
    draw_reports(reports, path)
    say(f"drawn in {path}")
    check_sound([damage for report in reports.values() for damage in report.damages])
    return 0
