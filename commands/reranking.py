"""Reranking: draws several responses to a dialogue and gives the best by other models, which live beside the first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from commands.console import say
from commands.options import RerankingSettings
from commands.prompts import EncodedPrompts
from commands.run_data import trained_tokenizer
from commands.run_setup import Run, check_trained, load_trained, place_run
from commands.run_tokenizer import with_tokenizer
from commands.text_generator import Sample, with_a_filter
from configs.errors import ConfigError
from configs.load import load_config
from configs.prompts import Prompt
from configs.reader import raise_issues
from configs.schema import NEXT_TOKEN, RANKING, PredictionConfig, RunConfig
from configs.weights import is_huggingface_folder, is_state_dict
from data.tokenization.tokenizer import Tokenizer
from runtime.checkpoint.state_dict import model_of_state_dict
from runtime.generation.outputs import GeneratedText
from runtime.generation.reranking import (
    FEEDBACK,
    PRIOR,
    Candidate,
    MutualInformation,
    Ranker,
    RankerEnsemble,
    Scores,
    build_response_scorer,
    rank,
    turns_of,
)
from runtime.generation.scoring import build_scorer
from storage.remote_configs import on_disk

Built = TypeVar("Built")


def with_candidates(encoded: EncodedPrompts, run: Run) -> EncodedPrompts:
    """Returns prompts with the settings that draw their candidates.

    Raises:
        ConfigError: a prompt has nothing to choose from, or nothing that responses answer; one line for each.
    """
    given = list(zip(encoded.prompts, encoded.ids, strict=True))
    raise_issues(issue for prompt, ids in given for issue in _find_issues(prompt, ids, run))
    for prompt, ids in given:
        if ids[-1] != run.config.data.eos_id:
            say(f"{prompt.place}: does not end with the end of text, so responses continue its last turn")
    return EncodedPrompts([_drawing(prompt, run) for prompt in encoded.prompts], encoded.ids)


def _find_name_issues(settings: RerankingSettings) -> Iterator[str]:
    known = (*PRIOR, *FEEDBACK)
    for name in settings.rank_models if len(settings.rank_models) > 1 else ():
        if name not in known:
            yield f"--rank_model {name}=...: several rankers are combined as DialogRPT's; use {', '.join(known)}"


def _find_issues(prompt: Prompt, ids: Sequence[int], run: Run) -> Iterator[str]:
    settings, n_candidates = prompt.settings, run.options.reranking.candidates
    if settings.num_beams > 1:
        yield f"{prompt.place}: num_beams = {settings.num_beams}: candidates are sampled, and not searched; set it to 1"
    yield from find_sampling_issues(prompt.place, settings, n_candidates)
    if settings.predict_batch_size > n_candidates:
        wanted = f"{prompt.place}: predict_batch_size = {settings.predict_batch_size}"
        yield f"{wanted}: is more than the {n_candidates} candidates; give more --candidates"
    if not turns_of(ids, run.config.data.eos_id):
        yield f"{prompt.place}: holds no turn that a response could answer; give a dialogue"


def find_sampling_issues(place: str, settings: PredictionConfig, n_candidates: int) -> Iterator[str]:
    """Yields why settings draw nothing to choose from."""
    if settings.temperature == 0 and n_candidates > 1:
        yield f"{place}: temperature = 0: all candidates would be the same; raise it"


def _drawing(prompt: Prompt, run: Run) -> Prompt:
    settings = dataclasses.replace(prompt.settings, predict_batch_size=run.options.reranking.candidates)
    return dataclasses.replace(prompt, settings=with_a_filter(settings, run.options.typed_keys))


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Ranks the candidates of prompts.

    Attributes:
        run: of the model that draws the candidates.
        ranker: scores them.
        others: the runs of the other models, whose weights are not loaded yet.
    """

    run: Run
    ranker: Ranker
    others: Sequence[Run]

    def load(self) -> None:
        """Loads the weights of the other models."""
        for run in self.others:
            load_trained(run)

    def choose(self, encoded: EncodedPrompts, drawn: Iterator[Sample]) -> Iterator[Sample]:
        """Yields the best samples of each prompt, in the order of the prompts.

        Args:
            encoded: the prompts.
            drawn: the samples of `with_candidates`.
        """
        settings = self.run.options.reranking
        for prompt, tokens in zip(encoded.prompts, encoded.ids, strict=True):
            texts = [sample.generated for sample in itertools.islice(drawn, settings.candidates)]
            ranked = self.rank(turns_of(tokens, self.run.config.data.eos_id), texts)
            shown = ranked if settings.shows_candidates else ()
            for number, best in enumerate(ranked[: prompt.settings.predict_batch_size]):
                yield Sample(prompt, tokens, number, best.generated, best.scores, shown)

    def rank(self, turns: Sequence[Sequence[int]], texts: Sequence[GeneratedText]) -> tuple[Candidate, ...]:
        """Returns responses to turns, given as their ids, the best first."""
        responses = [self.run.tokenizer.encode(text.text.strip()) for text in texts]
        return rank(texts, self.ranker.scores(turns, responses))

    def scores(self, turns: Sequence[str], texts: Sequence[str]) -> list[Scores]:
        """Returns the scores of responses to turns."""
        said, responses = ([self.run.tokenizer.encode(text.strip()) for text in each] for each in (turns, texts))
        return self.ranker.scores(said, responses)


def build_reranker(run: Run) -> Reranker:
    """Builds what the flags of reranking ask for; the weights of the run itself are loaded by the caller."""
    settings = run.options.reranking
    raise_issues(_find_name_issues(settings))
    if settings.mmi_model is None:
        others = {name: _set_up("--rank_model", model, run, RANKING) for name, model in settings.rank_models.items()}
        rankers = {name: _built(build_response_scorer, other) for name, other in others.items()}
        return Reranker(run, RankerEnsemble(rankers), list(others.values()))
    backward = _set_up("--mmi_model", settings.mmi_model, run, NEXT_TOKEN)
    forward = _built(build_scorer, run) if settings.forward_weight else None
    scorer = _built(build_scorer, backward)
    return Reranker(
        run, MutualInformation(scorer, forward, settings.forward_weight, settings.mmi_normalize), [backward]
    )


def _built(build: Callable[..., Built], run: Run) -> Built:
    return build(run.config, run.placement, run.group.synchronized)


def _set_up(flag: str, model: str, run: Run, objective: str) -> Run:
    """Sets up another model beside that of the run, on the same devices and with the same tokenizer.

    Args:
        flag: names it, for messages.
        model: a config, the folder of a run or of weights, or a file of PyTorch.
        run: the first model.
        objective: what the model must give.

    Raises:
        ConfigError: the config cannot be used, or its tokenizer is another one.
    """
    config, init_from = _read(model, run)
    if config.model.objective != objective or config.model.mlm_training:
        raise ConfigError(f"{flag} {model}: objective = {config.model.objective}: give a model with {objective}")
    options = dataclasses.replace(run.options, init_from=init_from, adapter=None, ema=False, notes=())
    if init_from is None:
        check_trained(config, options)
    tokenizer = run.group.first_process_first(lambda: trained_tokenizer(config, init_from))
    if tokenizer is None:
        tokenizer, config = run.tokenizer, dataclasses.replace(config, data=run.config.data)
    if difference := _difference(run, config, tokenizer):
        raise ConfigError(f"{flag} {model}: its tokenizer is not that of --model: {difference}; give models of one")
    return Run(config, options, run.group, place_run(config, options, run.group), tokenizer)


def _read(model: str, run: Run) -> tuple[RunConfig, str | None]:
    """Returns the config of a model, and the path of weights that lie beside no run."""
    if is_state_dict(model):
        data = dataclasses.replace(run.config.data, datasets=())
        return dataclasses.replace(run.config, model=model_of_state_dict(model), data=data), model
    with on_disk(model) as path:
        config = load_config(path)
        options = dataclasses.replace(run.options, init_from=path if is_huggingface_folder(path) else None)
        return run.group.first_process_first(lambda: with_tokenizer(config, options, say)), options.init_from


def _difference(run: Run, config: RunConfig, tokenizer: Tokenizer) -> str | None:
    """Returns how the ids of another model mean other tokens than those of the run; None if they mean the same."""
    n_used = min(run.tokenizer.n_vocab, run.config.model.n_vocab)
    if config.model.n_vocab < n_used:
        return f"it has {config.model.n_vocab} ids, and not {n_used}"
    if config.data.eos_id != run.config.data.eos_id:
        return f"the end of text is {run.config.data.eos_id} in the one and {config.data.eos_id} in the other"
    return run.tokenizer.difference(tokenizer)
