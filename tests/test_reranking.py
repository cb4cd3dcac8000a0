"""`--predict` with `--mmi_model`: two models in one process, from Hugging Face folders."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from main import main
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.init_from import load_initial_weights
from runtime.checkpoint.weight_sources import StoredTensor
from runtime.generation.engine import build_engine
from runtime.generation.reranking import build_response_scorer
from runtime.generation.scoring import Continuations, Scorer, build_scorer
from runtime.mesh.placement import place
from tests import tiny
from tests.data.dialogue.test_templates import PLAIN, byte_tokenizer
from tests.program import REPOSITORY

EOS = 0
N_CTX = 48
GPT_2 = {"n_vocab": 258, "n_ctx": N_CTX, "attention_types": ("global",) * 2, "qkv_bias": True}
GPT_2 |= {"scale_attn_weights": True}
PROMPT = {"prompt": "hi you<|endoftext|>good day<|endoftext|>", "special_tokens": True}
TURNS = ["hi you", "good day"]
PAGE = (REPOSITORY / "docs" / "from-dialogpt.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", PAGE.split("## Reranking\n")[1].split("\n## ")[0], re.MULTILINE)[2:])


def write_model(folder: Path, devices: tuple[str, ...], seed: int, tokenizer: str, **model: object) -> None:
    """A GPT-2 or a ranker with random weights, as a Hugging Face folder."""
    config = tiny.run_config(model={**GPT_2, **model})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eos_id=EOS, padding_id=EOS))
    placement = place(config.mesh, devices[:1])
    if config.model.ranks:
        build_response_scorer(config, placement, lambda step: step)
    else:
        build_engine(config, placement, n_rows=1)
    placement.store.initialize(seed)
    tiny.disturb(placement.store, seed)
    values = tiny.values_of(placement.store)
    weights = {name: StoredTensor(name, value.shape, lambda v=value: v) for name, value in values.items()}
    write_huggingface_folder(str(folder), config, weights, None)
    (folder / "tokenizer.json").write_text(tokenizer)


@pytest.fixture(scope="module")
def models(devices: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("forward", "backward"), start=1):
        write_model(folder / name, devices, seed, PLAIN.to_json())
    for seed, name in enumerate(("updown", "human_vs_rand"), start=4):
        write_model(folder / f"restore/{name}.pth", devices, seed, PLAIN.to_json(), objective="ranking")
    write_model(folder / "other", devices, 3, byte_tokenizer("<|other|>").to_json())
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in models.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    return tmp_path


def predict(*arguments: str) -> int:
    return main(["--model", "forward", "--predict", "--max_new_tokens", "6", "--seed", "5", *arguments])


def scorer_of(folder: str, devices: tuple[str, ...]) -> Scorer:
    config = load_config(folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eos_id=EOS))
    placement = place(config.mesh, devices[:1])
    scorer = build_scorer(config, placement)
    load_initial_weights(folder, placement.store)
    return scorer


def log_p(scorer: Scorer, context: list[int], continuation: list[int]) -> float:
    (((scores,),)) = scorer.score([Continuations(context, [continuation])])
    return float(scores.log_probs.sum())


def answers(prompt: dict[str, object], *arguments: str) -> list[dict]:
    Path("prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    assert predict("--prompt", "prompts.jsonl", "--output", "answers.jsonl", *arguments) == 0
    return [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_response_that_tells_most_of_the_source_is_given(here: Path, devices: tuple[str, ...]) -> None:
    flags = ("--mmi_model", "backward", "--candidates", "5", "--forward_weight", "0.5", "--show_candidates")
    lines = answers({**PROMPT, "n_samples": 2}, *flags)
    candidates = lines[0]["candidates"]
    assert [line["text"] for line in lines] == [each["text"] for each in candidates[:2]]
    assert lines[1]["rank_score"] == candidates[1]["rank_score"] and len(candidates) == 5
    assert len({each["text"] for each in candidates}) > 1
    ranked = [each["rank_score"] for each in candidates if each["text"].strip()]
    assert ranked == sorted(ranked, reverse=True)
    backward, forward = (scorer_of(folder, devices) for folder in ("backward", "forward"))
    first, second = ([*PLAIN.encode(turn), EOS] for turn in TURNS)
    for each in candidates:
        response = [*PLAIN.encode(each["text"]), EOS]
        told = log_p(backward, response, second + first)
        drawn = log_p(forward, first + second, response)
        assert each["rank_parts"] == pytest.approx({"backward": told, "forward": drawn}, rel=1e-5)
        np.testing.assert_allclose(each["rank_score"], told + 0.5 * drawn, rtol=1e-5)


@pytest.mark.slow
def test_candidates_are_what_sampling_with_top_k_10_gives(here: Path) -> None:
    drawn = answers({**PROMPT, "n_samples": 3, "top_k": 10})
    lines = answers(PROMPT, "--mmi_model", "backward", "--candidates", "3", "--show_candidates", "--mmi_normalize")
    assert {line["text"] for line in drawn} == {each["text"] for each in lines[0]["candidates"]}
    assert list(lines[0]["rank_parts"]) == ["backward"] and "log_probs" in lines[0]
    told = [*PLAIN.encode(TURNS[1]), EOS, *PLAIN.encode(TURNS[0]), EOS]
    plain = answers(PROMPT, "--mmi_model", "backward", "--candidates", "3")
    assert plain[0]["rank_score"] == pytest.approx(lines[0]["rank_score"] * len(told), rel=1e-5)
    assert "candidates" not in plain[0]


@pytest.mark.slow
def test_all_candidates_of_a_text_are_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--mmi_model", "backward", "--candidates", "2", "--show_candidates", "--remove_partial_sequences")
    assert predict("--prompt_text", "hi", *flags) == 0
    out = capsys.readouterr().out
    assert "--prompt_text: does not end with the end of text, so responses continue its last turn" in out
    assert out.count("(backward -") == 2


# Flags to give beside those of a row of the page, and how many candidates there are.
BESIDE = {
    "16 samples, ranked by the backward model (paper, section 3.2)": ([], 16),
    "`num_samples`, `top_k` of an MMI decoder": (["--mmi_model", "backward"], 16),
    "the winner is drawn from the softmax of the scores": (["--mmi_model", "backward", "--candidates", "2"], 2),
    "DialogRPT: `python src/score.py play -p=restore/updown.pth`": (["--candidates", "3"], 3),
    "DialogRPT: `restore/ensemble.yml`": (["--candidates", "3"], 3),
}
TRIED_ELSEWHERE = {
    "DialogRPT: `python src/main.py train` on pairs of responses": "tests/test_options_by_command.py",
    "the backward model reads the last turn only, without its end": "test_the_response_that_tells_most_of_the_source",
}


def test_every_row_of_the_page_is_tried() -> None:
    assert list(ROWS) and set(ROWS) == {*BESIDE, *TRIED_ELSEWHERE}


@pytest.mark.slow
@pytest.mark.parametrize("theirs", BESIDE)
def test_a_row_of_the_page(here: Path, theirs: str) -> None:
    """Files of weights are folders of Hugging Face here, which need no PyTorch."""
    beside, n_candidates = BESIDE[theirs]
    typed = [part for part in re.findall(r"`(--.*?)`", ROWS[theirs]) if part != "--show_candidates"]
    flags = shlex.split(" ".join(typed).replace("CONFIG", "backward"))
    candidates = answers(PROMPT, *flags, *beside, "--show_candidates")[0]["candidates"]
    scores = [each["rank_score"] for each in candidates if each["text"].strip()]
    assert len(candidates) == n_candidates and scores == sorted(scores, reverse=True) and len(set(scores)) > 1


@pytest.mark.slow
def test_a_typed_top_k_of_0_draws_from_all_tokens(here: Path) -> None:
    drawn = answers({**PROMPT, "n_samples": 3}, "--top_k", "0")
    lines = answers(PROMPT, "--mmi_model", "backward", "--candidates", "3", "--show_candidates", "--top_k", "0")
    assert {line["text"] for line in drawn} == {each["text"] for each in lines[0]["candidates"]}


class Payload:
    """Makes a file where a pickle of it is run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was_run",)


def test_a_file_that_would_run_a_program_is_no_ranker(here: Path) -> None:
    Path("evil.pth").write_bytes(pickle.dumps({"score.weight": Payload()}))
    assert predict("--prompt_text", "hi", "--rank_model", "evil.pth") == 2  # with PyTorch or without
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rank_model", "a=x", "b=y"], "--rank_model a=...: several rankers are combined as DialogRPT's; use human_"),
        (["--rank_model", "updown=x", "updown=y"], "--rank_model updown=y: names a ranker twice, or no path"),
        (["--rank_model", "x", "--forward_weight", "1"], "--rank_model: ranks alone; leave out --mmi_model"),
        (["--rank_model", "backward"], "--rank_model backward: objective = next_token: give a model with ranking"),
        (["--candidates", "3"], "there is nothing to rank by; give --mmi_model or --rank_model, or leave them out"),
        (["--mmi_model", "backward", "--candidates", "0"], "--candidates 0: must be at least 1"),
        (["--mmi_model", "backward", "--forward_weight", "x"], "'x' is not a number; give one"),
        (["--mmi_model", "nothing"], "nothing.json: there is no config of this name"),
        (["--mmi_model", "other"], "--mmi_model other: its tokenizer is not that of --model: the id 1 is"),
        (["--mmi_model", "backward", "--temperature", "0"], "temperature = 0: all candidates would be the same"),
        (["--mmi_model", "backward", "--num_beams", "2"], "num_beams = 2: candidates are sampled, and not searched"),
        (["--mmi_model", "backward", "--n_samples", "17"], "predict_batch_size = 17: is more than the 16 candidates"),
        (["--mmi_model", "backward", "--prompt_text", ""], "--prompt_text: holds no turn that a response could answer"),
    ],
)
def test_what_cannot_be_ranked(here: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = [] if "--prompt_text" in flags else ["--prompt_text", "hi"]
    try:
        status = predict(*prompt, *flags)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_only_prediction_reranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "quickstart", "--mmi_model", "backward"]) == 2
    assert "--mmi_model: works with --predict, --chat and --serve only" in capsys.readouterr().err
