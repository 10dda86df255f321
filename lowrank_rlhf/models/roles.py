"""One base model, four jobs: policy, reference, reward and critic by switching LoRA adapters."""

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import Enum
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.sequences import Sequences, micro_batches
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.layers.lora_linear import fused
from lowrank_rlhf.models.layers.partial_forward import part_of, trunk_states
from lowrank_rlhf.models.logprobs import TokenLogprobs, token_logprobs
from lowrank_rlhf.models.unsloth import first_adapter
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.sources.model_shape import layer_problems


class Role(Enum):
    """A job of the model; the value is its adapter's name in PEFT (`default` and `ref` are what TRL expects)."""

    POLICY = "default"
    REFERENCE = "ref"
    REWARD = "reward"
    CRITIC = "critic"

    @property
    def has_head(self) -> bool:
        """True where the output is one number per token instead of a distribution over the vocabulary."""
        return self in (Role.REWARD, Role.CRITIC)


class Roles:
    """The adapters and heads on one base. Exactly one role acts at a time, inside an `acting_as` block.

    Wrapping is done once per base: PEFT puts its layers into the base model in place. With `head_layers` the roles with
    a head read the states after so many decoder layers, and the layers above do nothing for them.
    """

    def __init__(self, base: Base, lora: LoraConfig, head_layers: int | None = None):
        self.base = base
        depth = len(self.decoder.layers)
        for key, problem in layer_problems(lora, head_layers, depth):
            raise UserError(f"{'.'.join(key)}: {problem}")
        self.first_adapted = depth - (lora.last_layers or depth)
        """Index of the lowest decoder layer with an adapter."""
        self.head_layers = head_layers or depth
        """How many decoder layers the roles with a head have."""
        self.shape = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type] # PEFT takes fractions too
            use_rslora=lora.use_rslora,
            target_modules=_targets(lora, self.decoder.layers),
            layers_to_transform=list(range(self.first_adapted, depth)) if self.first_adapted else None,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        """What the config makes of an adapter: every role's shape, unless `make_anew` gives it another."""
        self.peft: PeftModel = (
            first_adapter(base.model, self.shape, base.config)
            if base.by_unsloth
            else get_peft_model(base.model, copy.copy(self.shape), adapter_name=Role.POLICY.value)
        )
        self.heads: dict[Role, nn.Linear] = {}
        self.merged: Role | None = None  # set by `merging.merged` while the adapters are out of the model
        self.poll: Callable[[], None] = lambda: None
        """Called before every forward, and every decoding step that is none: it may raise, to end the work there."""
        self.decoder.register_forward_pre_hook(lambda *_: self.poll())
        self._acting: Role | None = None
        self._training = False
        self._freeze()

    @property
    def group(self) -> ProcessGroup:
        """Processes that share the work."""
        return self.base.group

    @property
    def acting(self) -> Role | None:
        """The role that acts at the moment."""
        return self._acting

    @property
    def present(self) -> set[Role]:
        """The roles that have an adapter so far."""
        return {role for role in Role if role.value in self.peft.peft_config}

    def check_free(self, role: Role) -> None:
        """Raises RuntimeError inside a block of any role, merged or not, and where the role has no adapter."""
        busy = self._acting or self.merged
        if busy is not None:
            raise RuntimeError(f"already acting as {busy.name}; blocks don't nest")
        if role not in self.present:
            raise RuntimeError(f"no adapter for {role.name} yet")

    @contextmanager
    def acting_as(self, role: Role, train: bool = False) -> Iterator[None]:
        """The model does that job until the block ends; then everything is frozen again, after an error too.

        With `train` its adapter and head collect gradients; without, no graph is built. Blocks don't nest: a switch
        between a forward and its backward gives zero or wrong gradients without an error (PEFT 0.21).
        """
        self.check_free(role)
        self._acting, self._training = role, train
        learning = self.parameters(role) if train else []
        try:
            # Each of these walks through thousands of modules, and every minibatch comes here.
            if self.peft.active_adapter != role.value:
                self.peft.set_adapter(role.value, inference_mode=True)
            if self.peft.training != train:
                self.peft.train(train)
            for parameter in learning:
                parameter.requires_grad_(True)
            # unsloth has fused layers of its own, and would read ours as layers without an adapter.
            products = nullcontext() if self.base.by_unsloth else fused(self.peft, role.value)
            with products, torch.enable_grad() if train else torch.no_grad():
                yield
        finally:
            self._acting, self._training = None, False
            for parameter in learning:
                parameter.requires_grad_(False)
            if self.peft.training:
                self.peft.eval()

    def hidden(self, batch: Sequences) -> Tensor:
        """The decoder's last hidden states as the acting role, (B, T, h)."""
        if self._acting is None:
            raise RuntimeError("no role is acting: use `with roles.acting_as(...)`")
        stop = self.head_layers if self._acting.has_head else len(self.decoder.layers)
        # Rows are padded on the right, where a causal model needs no mask. unsloth drops it in training, and would read
        # by other kernels than it trains by: PPO's first ratio has to be 1.
        mask = None if self.base.by_unsloth else batch.attention.long()
        with part_of(self.decoder, self.first_adapted, batch.trunk, stop):
            output = self.decoder(input_ids=batch.ids, attention_mask=mask, use_cache=False)
        return output.last_hidden_state

    def with_trunk(self, batch: Sequences) -> Sequences:
        """The batch with the states that enter the first adapted layer, if any layer lies below: no role changes them.

        A later forward of these rows as any role begins there.
        """
        if not self.first_adapted:
            return batch
        return self.base.limits.retry(lambda: self._with_trunk(batch), max(batch.lengths()))

    def _with_trunk(self, batch: Sequences) -> Sequences:
        embeddings: Any = self.base.model.get_input_embeddings()
        trunk = embeddings.weight.new_zeros(*batch.ids.shape, embeddings.weight.shape[1])
        parts = micro_batches(batch.lengths(), self.base.limits.tokens, self.group.world_size)
        for index in self.group.shard(parts):
            rows = batch.rows(index)
            states = trunk_states(self.decoder, self.first_adapted, rows.ids, rows.attention.long())
            trunk[torch.as_tensor(index, device=trunk.device), : states.shape[1]] = states
        self.group.all_reduce([trunk])
        return replace(batch, trunk=trunk)

    def logprobs(self, batch: Sequences, temperature: float, entropy: bool = False) -> TokenLogprobs:
        """Log-probability of each response token as the acting role; see `token_logprobs`."""
        return token_logprobs(self.hidden(batch), batch, self.base.model, temperature, entropy)

    def scores(self, batch: Sequences) -> Tensor:
        """The acting role's head at every position, (B, T) float32; no logits are made."""
        hidden = self.hidden(batch)
        if self._acting not in self.heads:
            raise RuntimeError(f"{self._acting} has no head")
        return self.heads[self._acting](hidden.float()).squeeze(-1)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the acting role; only inside a training block, so that no switch can come between."""
        if not self._training:
            raise RuntimeError("backward needs `with roles.acting_as(role, train=True)`")
        loss.backward()

    @property
    def decoder(self) -> Any:
        """The base without its vocabulary projection; its `layers` are the decoder layers."""
        return self.base.model.get_decoder()

    def named_parameters(self, role: Role) -> dict[str, Tensor]:
        """The role's weights: adapter names as in PEFT's files, and `score.weight` for the head."""
        mark = f".{role.value}."
        named: dict[str, Tensor] = {
            name.replace(mark, "."): parameter
            for name, parameter in self.peft.named_parameters()
            if mark in name and ".lora_" in name and not (role.has_head and _layer(name) >= self.head_layers)
        }
        if role in self.heads:
            named["base_model.model.score.weight"] = self.heads[role].weight
        return named

    def parameters(self, role: Role) -> list[Tensor]:
        """The role's weights, in a fixed order."""
        return list(self.named_parameters(role).values())

    def reset(self, role: Role, generator: torch.Generator) -> None:
        """A fresh adapter that changes nothing yet: B is 0, A uniform as in LoRA's code; a head as in `new_head`."""
        self.prepare(role)
        with torch.no_grad():
            for name, parameter in self.named_parameters(role).items():
                if ".lora_A." in name:
                    bound = parameter.shape[1] ** -0.5
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
                elif ".lora_B." in name:
                    parameter.zero_()
        if role.has_head:
            self.new_head(role, generator)

    def new_head(self, role: Role, generator: torch.Generator | None) -> None:
        """A head drawn from N(0, 1/(h+1)) (Stiennon et al. 2020), or zeros without a generator. It has no bias."""
        weight = self.heads[role].weight
        with torch.no_grad():
            if generator is None:
                weight.zero_()
            else:
                weight.copy_(torch.empty(weight.shape).normal_(0, (weight.shape[1] + 1) ** -0.5, generator=generator))

    def copy(self, source: Role, target: Role) -> None:
        """Give `target` the weights of `source`; the head too where both have one."""
        self.prepare(target)
        weights = self.named_parameters(source)
        with torch.no_grad():
            for name, parameter in self.named_parameters(target).items():
                if name in weights:
                    parameter.copy_(weights[name])

    def prepare(self, role: Role) -> None:
        """Make room for the role: its adapter, and its head where it has one."""
        if role not in self.present:
            self.peft.add_adapter(role.value, copy.copy(self.shape))
        if role.has_head and role not in self.heads:
            size = self.base.model.config.get_text_config().hidden_size
            self.heads[role] = nn.Linear(size, 1, bias=False, device=self.base.device)
        self._freeze()

    def make_anew(self, role: Role, shape: PeftLoraConfig) -> None:
        """Replace the role's adapter by a fresh one of that shape; the other roles keep theirs.

        A layer below all adapted ones may become adapted: a batch from `with_trunk` does not outlive this.
        """
        if role in self.present:
            with warnings.catch_warnings():  # PEFT says which adapter is active then; `acting_as` always sets it
                warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
                self.peft.delete_adapter(role.value)
        self.peft.add_adapter(role.value, shape)
        self.peft.set_adapter(role.value, inference_mode=True)  # of its layers some may not have been adapted before
        self.prepare(role)
        mark = f".{role.value}."
        adapted = [_layer(name) for name, _ in self.peft.named_parameters() if mark in name and ".lora_" in name]
        self.first_adapted = min(self.first_adapted, *adapted)

    def _freeze(self) -> None:
        self.peft.requires_grad_(False)
        for head in self.heads.values():
            head.requires_grad_(False)
        self.peft.eval()


def _layer(name: str) -> int:
    """Index of the decoder layer that a parameter belongs to."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    assert found, name  # noqa: S101 - adapters are in decoder layers only
    return int(found[1])


def _targets(lora: LoraConfig, layers: nn.ModuleList) -> list[str]:
    """Names of the linear layers to adapt; never the vocabulary projection or a head.

    Raises `UserError` for a name that the model has not: PEFT would pass over it as long as another matches.
    """
    linear = {name for name, module in layers.named_modules() if isinstance(module, nn.Linear)}
    known = sorted({name.rpartition(".")[2] for name in linear})
    if lora.target_modules == "all-linear":
        return known
    for name in lora.target_modules:
        if name not in known:
            raise UserError(
                f'lora.target_modules: this model has no linear layer "{name}"; it has {", ".join(known)}. '
                f"Name some of them, or all-linear.{suggestion(name, known)}"
            )
    return list(lora.target_modules)
