"""Each flag of DialoGPT's training script, as docs/from-dialogpt.md lists them, and a run with all of them."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from safetensors.numpy import load_file

import main
from commands.unknown_flags import DIALOGPT_FLAGS
from configs.load import load_config
from configs.schema import GROUPS, RunConfig, keys_of
from data.tfrecord.records import read_examples
from runtime.run.metrics import read_metrics

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "from-dialogpt.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Training\n")[1].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", SECTION, re.MULTILINE)[2:])
# All flags of LSP_train.py and of its table in DialoGPT's page.
LISTED = """model_name_or_path seed max_seq_length skip_eval init_checkpoint train_input_file eval_input_file
continue_from train_batch_size gradient_accumulation_steps eval_batch_size valid_batch_size learning_rate
num_optim_steps valid_step warmup_proportion warmup_steps normalize_data fp16 lr_schedule loss_scale
no_token_id output_dir log_dir pbar local_rank config"""
FLAGS = set(LISTED.split())
TINY = {
    "n_head": 2,
    "n_embd": 8,
    "n_layer": 1,
    "n_ctx": 32,
    "n_vocab": 300,
    "qkv_bias": True,
    "scale_attn_weights": True,
}
TINY |= {"datasets": ["talks"], "train_batch_size": 4, "eval_batch_size": 2, "eval_steps": 100, "iterations": 1}
TINY |= {"model_path": "runs/talks", "train_steps": 6, "lr": 1e-6, "lr_decay": "noam", "warmup_steps": 3}
TALKS = [f"0.0 hello number {n} EOS 1.0 good day {n}\t1.0 how are you {n}" for n in range(60)]
Check = Callable[[str], None]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with conversations of DialoGPT's form, and a tiny model of its kind."""
    folder = tmp_path_factory.mktemp("dialogpt")
    (folder / "dataset_configs").mkdir()
    (folder / "train.tsv").write_text("".join(f"{line}\n" for line in TALKS))
    dataset = {"n_vocab": 300, "dialogue": "train.tsv", "eval_fraction": 0.2}
    (folder / "dataset_configs" / "talks.json").write_text(json.dumps(dataset))
    (folder / "tiny.json").write_text(json.dumps(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def words_of(here: str) -> list[str]:
    """The words of a row that go to main.py: those of its first code that begins with a flag."""
    return shlex.split(next((code for code in re.findall(r"`(.*?)`", here) if code.startswith("--")), ""))


def config_of(words: Sequence[str], model: str = "dialogpt_small") -> RunConfig:
    parsed = main.parse_arguments(["--model", model, *words])
    return load_config(parsed.model, main.config_overrides(parsed))


def values_of(config: RunConfig) -> dict[str, Any]:
    return {key: getattr(getattr(config, name), key) for name, group in GROUPS.items() for key in keys_of(group)}


def sets(**expected: object) -> Check:
    """The flags set these keys of the config, and no others."""

    def check(here: str) -> None:
        before, after = values_of(config_of([])), values_of(config_of(words_of(here)))
        assert {key: after[key] for key in expected} == expected
        assert {key for key in after if after[key] != before[key]} <= {*expected, "lr_decay_end"}

    return check


def parses(**expected: object) -> Check:
    """The flags of main.py are these."""

    def check(here: str) -> None:
        words = words_of(here)
        parsed = main.parse_arguments(words if "--model" in words else ["--model", "dialogpt_small", *words])
        assert {name: getattr(parsed, name) for name in expected} == expected

    return check


def needs_nothing(here: str) -> None:
    assert here.startswith(("nothing: ", "no flag: "))


def names_a_size(here: str) -> None:
    sizes = {name: load_config(name).model for name in re.findall("dialogpt_[a-z]+", here)}
    shapes = [(model.n_layer, model.n_embd, model.n_head, model.n_vocab) for model in sizes.values()]
    assert shapes == [(12, 768, 12, 50257), (24, 1024, 16, 50257), (36, 1280, 20, 50257)]
    assert all(model.qkv_bias and model.scale_attn_weights for model in sizes.values())


def is_a_key_of_a_dataset(here: str) -> None:
    (code, *_) = re.findall(r"`(\".*?)`", here)
    given = json.loads("{" + code + "}")
    Path("dataset_configs/row.json").write_text(json.dumps({"n_vocab": 300, "dialogue": "train.tsv"} | given))
    (use,) = config_of(["--set", 'datasets=["row"]'], "tiny.json").data.datasets
    for key, value in given.items():
        assert getattr(use.dataset, key) in (value, (value,))


def is_tried_by_the_run(here: str) -> None:
    """`test_a_run_is_logged_and_resumed_as_the_page_says` tries it."""


CHECKS: dict[str, Check] = {
    "`python LSP_train.py --model_name_or_path configs/117M`": names_a_size,
    "`--init_checkpoint models/small/small_ft.pkl`": parses(init_from="models/small/small_ft.pkl"),
    "`--init_checkpoint None`": needs_nothing,
    "`--train_input_file data/train.128len.db`": is_a_key_of_a_dataset,
    "`--eval_input_file data/dev.tsv`": is_a_key_of_a_dataset,
    "`--skip_eval`": sets(eval_steps=0),
    "`--continue_from 5000`": is_tried_by_the_run,
    "`--max_seq_length 128`": sets(n_ctx=128),
    "`--train_batch_size 4`": sets(train_batch_size=4),
    "`--gradient_accumulation_steps 2`": sets(tokens_per_mb_per_replica=2 * 128),
    "`--eval_batch_size 4`, `--valid_batch_size 4`": sets(eval_batch_size=4),
    "`--learning_rate 1e-5`": sets(lr=1e-5),
    "`--num_optim_steps 1000000`": sets(train_steps=1_000_000),
    "`--valid_step 10000`": parses(steps_per_checkpoint=10_000),
    "`--warmup_steps 16000`": sets(warmup_steps=16_000),
    "`--warmup_proportion 0.1`, of BERT alone": sets(warmup_steps=100_000),
    "`--lr_schedule noam`": sets(lr_decay="noam"),
    "`--lr_schedule noamwd`": sets(lr_decay="noamwd"),
    "`--lr_schedule BERT`": sets(lr_decay="bert"),
    "`--lr_schedule None`": sets(lr_decay=None, warmup_steps=0),
    "`--fp16 true`": sets(precision="bfloat16"),
    "`--loss_scale 0`": needs_nothing,
    "`--seed 42`": sets(seed=42),
    "`--normalize_data true`": needs_nothing,
    "`--no_token_id true`": needs_nothing,
    "`--output_dir models/output_model`": lambda here: _has_model_path(here, "models/output_model"),
    "`--log_dir logs`": needs_nothing,
    "`--pbar true`": needs_nothing,
    "`--config train.json`": parses(model="train.json"),
    "`python -m torch.distributed.launch --nproc_per_node=8 LSP_train.py`": sets(
        mesh_shape=(("x", 8),), layout=(("batch", "x"),)
    ),
    "`train_log.txt`, `eval_log.txt`": is_tried_by_the_run,
    "`GP2-pretrain-step-10000.pkl`": parses(init_from="GP2-pretrain-step-10000.pkl"),
    "`demo.py`: its `small_ft.pkl` is downloaded, and GPT-2's weights are trained": parses(
        init_from="models/small/small_ft.pkl"
    ),
}


def _has_model_path(here: str, path: str) -> None:
    assert config_of(words_of(here)).model_path == path


def test_every_flag_has_a_row_and_every_row_its_check() -> None:
    assert set(ROWS) == set(CHECKS)
    flags = set(re.findall(r"--(\w+)", " ".join(ROWS))) | {"local_rank"}  # which the launcher gives
    assert FLAGS - flags == set()
    assert set(DIALOGPT_FLAGS) == FLAGS - {"seed", "train_batch_size", "eval_batch_size", "warmup_steps"}


@pytest.mark.parametrize(("theirs", "here"), ROWS.items())
def test_a_row_does_what_it_says(theirs: str, here: str) -> None:
    CHECKS[theirs](here)


@pytest.mark.parametrize(("theirs", "here"), ROWS.items())
def test_a_flag_typed_out_of_habit_leads_to_todays(theirs: str, here: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [word for word in re.findall(r"`(--.*?)`", theirs) if not word.startswith("--seed")]
    for flag in flags:
        assert main.main(["--model", "tiny.json", *shlex.split(flag)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"{flag.split()[0]}: is no flag; ")
        words = words_of(here)
        if words and "=N" not in said and flag != "--init_checkpoint None":
            assert words[-1].lower() in said.lower()
        assert ("leave it out" in said) == here.startswith("nothing: ") or "--fp16" in said


def test_flags_of_keys_lead_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--learning-rate=1e-5", "--warmup-steps", "16000", "--skip_eval", "--n_heads", "3"]
    assert main.main(["--model", "tiny.json", *typed]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "--learning-rate: is no flag; give --set lr=1e-5",
        "--warmup-steps: is no flag; give --set warmup_steps=16000",
        "--skip_eval: is no flag; give --set eval_steps=0",
        "--n_heads: is no flag; give --set n_heads=3",
    ]


def read_log(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path("runs/talks", name).read_text().splitlines()))


def test_a_run_is_logged_and_resumed_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", "tiny.json", "--steps_per_checkpoint", "3", "--set", "tokens_per_mb_per_replica=64"]
    assert main.main([*command, "--set", "train_steps=3"]) == 0, capsys.readouterr().err
    assert len(read_log("train_log.txt")) == 3
    assert main.main(command) == 0, capsys.readouterr().err
    train, held_out, metrics = read_log("train_log.txt"), read_log("eval_log.txt"), read_metrics("runs/talks")
    columns = "epoch,global_step,step,mean_loss,mean_ppl,n_token_real,n_token_total,epoch_time"
    assert list(train[0]) == columns.split(",")
    assert [row["global_step"] for row in train] == list("123456")
    assert (train[0]["epoch"], train[0]["n_token_total"]) == ("1", "128")
    assert 0 < int(train[0]["n_token_real"]) < 128
    assert train[0]["mean_loss"] == str(metrics[0]["loss"])
    assert [line["lr"] for line in metrics if line["split"] == "train"][2] == pytest.approx(1e-6 * 1e4 * 24**-0.5)
    assert [(row["global_step"], list(row)[3:]) for row in held_out] == [
        (step, ["eval_loss", "eval_ppl"]) for step in ("3", "6")
    ]
    evaluated = [line for line in metrics if line["split"] == "eval"]
    assert [float(row["eval_ppl"]) for row in held_out] == [line["perplexity"] for line in evaluated]


def count_response_tokens() -> int:
    """The tokens of all turns but the first of each conversation, and the token that ends each."""
    tokenizer = tokenizers.Tokenizer.from_file("runs/epoch/tokenizer.json")
    responses = [turn for line in TALKS for turn in re.split(r" EOS |\t", line)[1:]]
    return sum(len(tokenizer.encode(response.removeprefix("1.0 ")).ids) + 1 for response in responses)


def test_the_tokens_of_responses_alone_are_trained_on_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", "tiny.json", "--set", "model_path=runs/epoch", "--set", "train_steps=1"]
    assert main.main(["--model", "tiny.json", "--check_dataset"]) == 0
    (shard,) = Path("datasets/talks").glob("*/train/*.tfrecords")
    n_examples = sum(1 for _ in read_examples(str(shard)))
    assert main.main([*command, "--set", f"train_batch_size={n_examples}"]) == 0
    (epoch,) = csv.DictReader(Path("runs/epoch/train_log.txt").read_text().splitlines())
    (first,) = csv.DictReader(Path("runs/epoch/eval_log.txt").read_text().splitlines())
    assert (epoch["epoch"], int(epoch["n_token_total"])) == ("1", 32 * n_examples)
    for batch_size in (1, 3, 16):  # of 5 examples, so that the last batch is partial, or the only one
        assert main.main([*command, "--eval", "--set", f"eval_batch_size={batch_size}"]) == 0
    evaluated = [line for line in read_metrics("runs/epoch") if line["split"] == "eval"]
    assert len(evaluated) == 4 and {line["tokens"] for line in evaluated} == {evaluated[0]["tokens"]}
    assert int(epoch["n_token_real"]) + evaluated[0]["tokens"] == count_response_tokens()
    for line in evaluated:
        assert line["perplexity"] == pytest.approx(float(first["eval_ppl"]), rel=1e-6) == math.exp(line["loss"])


def test_weights_of_the_released_form_are_measured_as_those_they_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    command = ["--model", "tiny.json", "--set", "model_path=runs/released", "--set", "train_steps=1"]
    assert main.main(command) == 0
    assert main.main([*command, "--export", "--export_format", "hf", "--export_dir", "exported"]) == 0
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file("exported/model.safetensors").items()
    }
    halves = {f"module.{name}": torch.from_numpy(value).half() for name, value in tensors.items()}
    torch.save(halves | {"module.lm_head.decoder.weight": halves["module.wte.weight"]}, "runs/released/tiny_ft.pkl")
    capsys.readouterr()
    assert main.main([*command, "--eval"]) == 0
    assert main.main([*command, "--eval", "--init_from", "runs/released/tiny_ft.pkl"]) == 0
    own, released = (float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", capsys.readouterr().out))
    assert released == pytest.approx(own, abs=2e-3)


def test_released_weights_are_asked_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    Path("small_ft.pkl").write_bytes(b"")
    assert main.main(["--model", "tiny.json", "--init_from", "small_ft.pkl", "--set", "model_path=runs/new"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "small_ft.pkl: is PyTorch's format, and PyTorch is not installed; pip install torch, or give the folder with "
        "model.safetensors"
    )
