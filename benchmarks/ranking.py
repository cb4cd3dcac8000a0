"""Trains a ranker to tell the true next turn from another conversation's at the same place, on the chitchat-dataset.

    make chat-quickstart        # or any other way to get the conversations
    python3 benchmarks/ranking.py --judgements dstc7-task2-human_eval.tgz

A twentieth of the conversations is held out. The ranker is trained on the pairs of the others, in small letters, from
weights that are set to find the words of a response in its context (benchmarks/matching_weights.py). These hold the
rarity of tokens among the training responses, but nothing of which response follows which context. Beside the ranker
stands a bag of words: the words that a response shares with its context, weighted by rarity. With --judgements, the
ranker scores the answers of DSTC-7's systems, and its table of scores is compared with people's judgements. The last
line is a JSON object with the results.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.matching_weights import write_matching_weights
from configs.load import load_config
from data.dialogue.pairs import Pair
from data.tokenization.bpe_training import save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import load_tokenizer
from runtime.checkpoint.init_from import load_initial_weights
from runtime.generation.reranking import build_response_scorer
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from runtime.run.metrics import read_metrics
from tasks.dialogue.human_judgements import read_context_texts, read_judged_answers

REPOSITORY = Path(__file__).resolve().parent.parent
CONVERSATIONS = "datasets/chitchat_dataset/dataset.json"
HELD_OUT = 20  # one conversation in 20 is held out
MAX_TURNS = 6
N_VOCAB = 8192
RANKER = {
    **{"n_head": 2, "n_embd": 256, "n_layer": 2, "n_ctx": 512, "n_vocab": N_VOCAB, "qkv_bias": True},
    **{"scale_attn_weights": True, "objective": "ranking", "opt_name": "adamw", "beta2": 0.98, "lr": 0.0002},
    **{"lr_decay": "cosine", "warmup_steps": 30, "gradient_clipping": 1.0, "train_batch_size": 8, "train_steps": 300},
}
WORD = re.compile(r"[a-z']+|\d+")


@dataclasses.dataclass(frozen=True)
class Results:
    """The measured figures.

    Attributes:
        accuracy: share of the held-out pairs whose true turn scores higher.
        interval: of 95 %, taking pairs as independent.
        bag_of_words_accuracy: the same for shared words.
        pairs: held-out pairs.
        training_pairs: pairs to train on.
        seconds: of the tokenizer, the training and the evaluation.
    """

    accuracy: float
    interval: tuple[float, float]
    bag_of_words_accuracy: float
    pairs: int
    training_pairs: int
    seconds: float


def split(conversations: str, folder: Path) -> None:
    """Writes `train.json` and `held_out.json`, in small letters."""
    every = json.loads(Path(conversations).read_text(encoding="utf-8"))
    for name, is_held_out in (("train", False), ("held_out", True)):
        some = {
            key: value for number, (key, value) in enumerate(every.items()) if (number % HELD_OUT == 0) == is_held_out
        }
        (folder / f"{name}.json").write_text(json.dumps(some).lower())


def run(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def write_initial_weights(folder: Path, pairs: Sequence[Pair]) -> None:
    """Writes the tokenizer of the responses, and the weights that the ranker begins with."""
    responses = [pair.better for pair in pairs]
    tokenizer = train_byte_level_bpe(responses, N_VOCAB, add_prefix_space=True)
    save_tokenizer(tokenizer, f"{folder}/tokenizer.json")
    counts = collections.Counter(token for ids in tokenizer.encode_batch(responses) for token in set(ids))
    rarity = np.array([math.log(len(pairs) / (1 + counts[token])) for token in range(N_VOCAB)])
    write_matching_weights(folder / "initial", (rarity / rarity.max()) ** 2, RANKER["n_ctx"])


def dataset(folder: Path, name: str, eval_fraction: float) -> dict[str, object]:
    files = {"pairs": f"{folder}/{name}.jsonl", "tokenizer_path": f"{folder}/tokenizer.json"}
    return {"id": name, "n_vocab": N_VOCAB, "eval_fraction": eval_fraction, "cache_dir": f"{folder}/data"} | files


def train(folder: Path) -> None:
    """Trains the ranker."""
    config = {**RANKER, "datasets": [dataset(folder, "train", 0.0)], "model_path": f"{folder}/ranker"}
    (folder / "ranker.json").write_text(json.dumps(config))
    run(REPOSITORY / "main.py", "--model", folder / "ranker.json", "--init_from", folder / "initial")


def evaluate(folder: Path) -> dict[str, float]:
    """Returns the figures of the ranker on the held-out pairs."""
    datasets = json.dumps([dataset(folder, "held_out", 0.99)])
    run(REPOSITORY / "main.py", "--model", folder / "ranker", "--eval", "--set", f"datasets={datasets}")
    return [line for line in read_metrics(f"{folder}/ranker") if line["split"] == "eval"][-1]


def read_pairs(path: Path) -> Iterator[Pair]:
    for line in path.read_text(encoding="utf-8").splitlines():
        for pair in json.loads(line):
            yield Pair(pair["context"], pair["better"], pair["worse"])


def words(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in WORD.findall(text.lower())}


def bag_of_words_accuracy(train: Sequence[Pair], held_out: Sequence[Pair]) -> float:
    """Returns the accuracy of the shared words, each worth its inverse document frequency; ties count half."""
    counts = collections.Counter(word for pair in train for word in words([pair.better]))

    def score(turns: Sequence[str], response: str) -> float:
        said = words([response])
        shared = sum(math.log(len(train) / (1 + counts[word])) for word in said & words(turns))
        return shared / math.sqrt(1 + len(said))

    differences = [score(pair.turns, pair.better) - score(pair.turns, pair.worse) for pair in held_out]
    return sum((each > 0) + 0.5 * (each == 0) for each in differences) / len(differences)


def write_scores(folder: Path, judgements: str) -> str:
    """Writes the ranker's scores of DSTC-7's answers as a table, and returns its path."""
    judged, contexts = read_judged_answers(judgements), read_context_texts(judgements)
    config, tokenizer = load_config(f"{folder}/ranker"), load_tokenizer(f"{folder}/ranker/tokenizer.json")
    placement = place(config.mesh, choose_devices(None, None))
    scorer = build_response_scorer(config, placement, lambda step: step)
    load_initial_weights(f"{folder}/ranker", placement.store)
    systems = [name for name in judged.judgements.systems if name in judged.answers]
    rows = ["\t".join(["key", *systems])]
    for key, context in contexts.items():
        responses = [tokenizer.encode(judged.answers[name].get(key, "").lower() or " ") for name in systems]
        scores = scorer.scores([tokenizer.encode(context.lower())], responses)
        rows.append("\t".join([key, *(f"{score:.6f}" for score in scores)]))
    path = folder / "ranker.tsv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def measure(conversations: str, folder: Path) -> Results:
    folder.mkdir(parents=True, exist_ok=True)
    split(conversations, folder)
    for name in ("train", "held_out"):
        script, source = REPOSITORY / "data/dialogue/draw_pairs.py", folder / f"{name}.json"
        run(script, "--input_dir", source, "--out", source.with_suffix(".jsonl"), "--max_turns", MAX_TURNS)
    train_pairs, held_out = (list(read_pairs(folder / f"{name}.jsonl")) for name in ("train", "held_out"))
    begin_seconds = time.monotonic()
    write_initial_weights(folder, train_pairs)
    train(folder)
    measured = evaluate(folder)
    seconds = time.monotonic() - begin_seconds
    accuracy, n_pairs = measured["accuracy"], int(measured["pairs"])
    error = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n_pairs)
    interval = (accuracy - error, accuracy + error)
    shared_words = bag_of_words_accuracy(train_pairs, held_out)
    return Results(accuracy, interval, shared_words, n_pairs, len(train_pairs), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", default=CONVERSATIONS, help=f"chitchat's JSON (default: {CONVERSATIONS})")
    parser.add_argument("--judgements", help="DSTC-7's archive of human evaluations")
    parser.add_argument("--folder", default="runs/ranking_benchmark", help="for everything that is made; new")
    given = parser.parse_args()
    if not os.path.isfile(given.conversations):
        parser.error(
            f"--conversations {given.conversations}: is not there; pip install --target datasets chitchat-dataset"
        )
    results = measure(given.conversations, Path(given.folder))
    if given.judgements:
        run("-m", "tasks.dialogue.agreement", given.judgements, write_scores(Path(given.folder), given.judgements))
    print(json.dumps(dataclasses.asdict(results)))


if __name__ == "__main__":
    main()
