"""What to give in place of flags that main.py does not have: keys of the config, and DialoGPT's flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from configs.schema import ALIASES, RUN_FIELDS

# The flags of DialoGPT's LSP_train.py that are no keys here, and what to do instead.
DIALOGPT_FLAGS = {
    "model_name_or_path": "give --model dialogpt_small, dialogpt_medium or dialogpt_large",
    "init_checkpoint": "give --init_from {value}",
    "train_input_file": "give a dataset config with the conversations as dialogue",
    "eval_input_file": "give eval_fraction in the dataset config, or tfrecords as eval_path",
    "skip_eval": "give --set eval_steps=0",
    "continue_from": "give the same command again, which resumes from the last checkpoint",
    "max_seq_length": "give --set n_ctx={value}",
    "valid_batch_size": "give --set eval_batch_size={value}",
    "gradient_accumulation_steps": "give --set tokens_per_mb_per_replica=N, the tokens of a microbatch",
    "learning_rate": "give --set lr={value}",
    "num_optim_steps": "give --set train_steps={value}",
    "valid_step": "give --steps_per_checkpoint {value}",
    "warmup_proportion": "give --set warmup_steps=N, this share of train_steps",
    "lr_schedule": "give --set lr_decay={value}",
    "fp16": "give --set precision=bfloat16 for true, and leave it out for false",
    "loss_scale": "leave it out: bfloat16 needs no loss scale",
    "normalize_data": "leave it out: runs of blanks always become one",
    "no_token_id": "leave it out: the model has no token types",
    "output_dir": "give --set model_path={value}",
    "log_dir": "leave it out: the logs are in model_path",
    "pbar": "leave it out: a terminal always shows the progress",
    "local_rank": "give --hosts, or --set mesh_shape=x:8 for the devices of one process",
    "config": "give --model {value}",
}


def describe_unknown(words: Sequence[str]) -> Iterator[str]:
    """Yields a line for each flag among the words that has another name here."""
    for number, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            (value,) = [after for after in words[number + 1 : number + 2] if not after.startswith("--")] or ["VALUE"]
        if word.startswith("--") and (today := _today(name.replace("-", "_"), value)):
            yield f"--{name}: is no flag; {today}"


def _today(name: str, value: str) -> str | None:
    if name in RUN_FIELDS or name in ALIASES:
        return f"give --set {name}={value}"
    return DIALOGPT_FLAGS[name].format(value=value) if name in DIALOGPT_FLAGS else None
