"""What the raw text or the raw conversations of a dataset config are, and how they become examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from configs.schema import DatasetConfig
from data.dialogue.conversation import TurnRules, from_text
from data.dialogue.encoding import DialogueEncoder
from data.dialogue.pairs import PairEncoder, pairs_from_text, pairs_of
from data.dialogue.readers import conversations_of
from data.dialogue.templates import special_tokens_of
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.packing import PackingStats
from data.preprocessing.pipeline import template_settings
from data.preprocessing.settings import PACKED, marker_of
from data.preprocessing.splits import DocumentOptions, hold_out_end
from data.text.documents import Document, TextFormat
from data.text.files import CONVERSATION_SUFFIXES, SUFFIXES, SourceFile
from data.tokenization.bpe_training import cut_text
from data.tokenization.tokenizer import Tokenizer, folder_of


@dataclass(frozen=True)
class RawSource:
    """What a dataset is prepared from.

    Attributes:
        dataset: its config.
        given_tokenizer: the tokenizer that it names; None: one is trained.
    """

    dataset: DatasetConfig
    given_tokenizer: Tokenizer | None

    def hold_out_end(
        self, options: DocumentOptions, files: Sequence[SourceFile], log: Callable[[str], None]
    ) -> DocumentOptions:
        """Returns the options that hold out the end of the only document; those given where none is ever cut."""
        return options


class RawText(RawSource):
    """The documents of a dataset with `text`."""

    noun, unit, usable = "raw text", "document", "document with text"
    script = "data/create_tfrecords.py"
    suffixes = SUFFIXES
    packing = None
    special_tokens = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, folders and globs."""
        return self.dataset.text

    def settings(self) -> Mapping[str, object]:
        """Returns the settings that determine the examples; those that later versions have added only if given."""
        values = {key: getattr(self.dataset, key) for key in ("document_separator", "special_tokens")}
        always = {"text_key": self.dataset.text_key, "tokenizer": _json_of(self.given_tokenizer)}
        return always | {key: value for key, value in values.items() if value}

    def text_format(self) -> TextFormat:
        """Returns how documents stand in files."""
        dataset = self.dataset
        return TextFormat(dataset.text_key, marker_of(dataset.document_separator, self.given_tokenizer, dataset.eos_id))

    def hold_out_end(
        self, options: DocumentOptions, files: Sequence[SourceFile], log: Callable[[str], None]
    ) -> DocumentOptions:
        """See `RawSource.hold_out_end`."""
        return hold_out_end(options, files, log)

    def training_texts(self, document: Document) -> Iterable[str]:
        """Returns the texts of a document on which a tokenizer is trained."""
        return cut_text(document.parts())

    def encoder(self, tokenizer: Tokenizer, example_tokens: int) -> TextEncoder:
        """Returns what encodes the documents."""
        return TextEncoder(tokenizer.reading_special_tokens if self.dataset.special_tokens else tokenizer)

    def describe(self, stats: PackingStats, example_tokens: int) -> Iterator[str]:
        """Yields a line for the documents and tokens of a split."""
        yield (
            f"{stats.documents_kept:,} documents, {stats.text_bytes:,} bytes, {stats.text_tokens:,} tokens, "
            f"{stats.examples:,} examples"
        )


class RawDialogue(RawSource):
    """The conversations of a dataset with `dialogue`; members as those of `RawText`."""

    noun, unit, usable = "conversations", "conversation", "conversation with a response"
    script = "data/create_dialogue_tfrecords.py"
    suffixes = CONVERSATION_SUFFIXES
    packing = PACKED

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, folders and globs."""
        return self.dataset.dialogue

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens that a tokenizer trained for the template must have."""
        return special_tokens_of(self.dataset.chat_template)

    @cached_property
    def _folder(self) -> str | None:
        path = self.dataset.tokenizer_path
        return None if path is None else folder_of(path)

    @property
    def _rules(self) -> TurnRules:
        return TurnRules(self.dataset.reverse, self.dataset.two_turn, self.dataset.max_turns)

    def settings(self) -> Mapping[str, object]:
        """Returns the settings that determine the examples."""
        keys = ("chat_template", "reverse", "two_turn", "max_turns")
        values = {key: getattr(self.dataset, key) for key in keys}
        values["tokenizer"] = _json_of(self.given_tokenizer)
        return values | template_settings(self.dataset.chat_template, self._folder)

    def text_format(self) -> TextFormat:
        """Returns how conversations stand in files."""
        return TextFormat(convert=conversations_of)

    def training_texts(self, document: Document) -> Iterator[str]:
        """Yields the turns of a conversation that are used."""
        for part in document.parts():
            yield from (turn.text for turn in self._rules.apply(from_text(part)))

    def encoder(self, tokenizer: Tokenizer, example_tokens: int) -> DialogueEncoder:
        """Returns what encodes the conversations."""
        template = self.dataset.chat_template
        return DialogueEncoder(tokenizer, self.dataset.eos_id, example_tokens, template, self._folder, self._rules)

    def describe(self, stats: PackingStats, example_tokens: int) -> Iterator[str]:
        """Yields a line for the conversations of a split, and one for their tokens."""
        yield stats.describe_documents(f"{self.unit}s")
        yield stats.describe_tokens(example_tokens)


class RawPairs(RawSource):
    """The pairs of a dataset with `pairs`, those of a line together; members as those of `RawText`."""

    noun, unit, usable = "pairs", "conversation", "pair"
    script = "main.py"
    suffixes = SUFFIXES
    packing = PACKED
    special_tokens = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, folders and globs."""
        return self.dataset.pairs

    def settings(self) -> Mapping[str, object]:
        """Returns the settings that determine the examples."""
        return {"pairs": True, "tokenizer": _json_of(self.given_tokenizer)}

    def text_format(self) -> TextFormat:
        """Returns how pairs stand in files."""
        return TextFormat(convert=pairs_of)

    def training_texts(self, document: Document) -> Iterator[str]:
        """Yields the turns and responses of a document."""
        for part in document.parts():
            for pair in pairs_from_text(part):
                yield from (*pair.turns, pair.better, pair.worse)

    def encoder(self, tokenizer: Tokenizer, example_tokens: int) -> PairEncoder:
        """Returns what encodes the pairs."""
        return PairEncoder(tokenizer, self.dataset.eos_id, example_tokens)

    def describe(self, stats: PackingStats, example_tokens: int) -> Iterator[str]:
        """Yields a line for the pairs of a split."""
        yield stats.describe_documents(f"{self.unit}s")
        yield f"{stats.weighted_tokens // 2:,} pairs in {stats.examples:,} examples of {example_tokens:,} tokens"


def _json_of(tokenizer: Tokenizer | None) -> str | None:
    return tokenizer and tokenizer.to_json()


def raw_source(dataset: DatasetConfig, given_tokenizer: Tokenizer | None) -> RawText | RawDialogue | RawPairs:
    """Returns what a dataset config names."""
    kinds = {"text": RawText, "dialogue": RawDialogue, "pairs": RawPairs}
    return next(kind for key, kind in kinds.items() if getattr(dataset, key))(dataset, given_tokenizer)
