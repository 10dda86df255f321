"""Roles on one base model: policy, reference, reward model and critic by switching LoRA adapters."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from torch import Tensor, nn

from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.sequences import Sequences, micro_batches
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.layers.attention import right_padding_mask
from lowrank_rlhf.models.layers.lora_linear import Slots, outside_adapters
from lowrank_rlhf.models.layers.partial_forward import lower_states, partial_forward
from lowrank_rlhf.models.loading.library_check import check_partial_forward, find_siblings
from lowrank_rlhf.models.loading.structure import layer_index, target_modules, wrapped
from lowrank_rlhf.models.logprobs import TokenLogprobs, token_logprobs
from lowrank_rlhf.models.unsloth import first_adapter
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.sources.model_shape import layer_problems


class Role(Enum):
    """Role of the model; the value is its adapter's name in PEFT (TRL expects `default` and `ref`)."""

    POLICY = "default"
    REFERENCE = "ref"
    REWARD = "reward"
    CRITIC = "critic"

    @property
    def has_head(self) -> bool:
        """True if the output is one number per token instead of a distribution over the vocabulary."""
        return self in (Role.REWARD, Role.CRITIC)


class Roles:
    """Adapters and heads on one base model. Exactly one role acts at a time, inside an `acting_as` block.

    Wrap each base once: PEFT replaces its layers in place. With `head_layers` the roles with a head read the states
    after that many decoder layers and skip the layers above. The reward model has a head for each of its `members`.
    """

    def __init__(self, base: Base, lora: LoraConfig, head_layers: int | None = None, members: int = 1):
        self.base, self.members = base, members
        depth = len(self.decoder.layers)
        for key, problem in layer_problems(lora, head_layers, depth):
            raise UserError(f"{'.'.join(key)}: {problem}")
        self.first_adapted = depth - (lora.last_layers or depth)
        """Index of the lowest decoder layer with an adapter."""
        self.head_layers = head_layers or depth
        """Number of decoder layers that the roles with a head use."""
        if not base.by_unsloth and (self.first_adapted or self.head_layers < depth):
            check_partial_forward(base, self.first_adapted, self.head_layers)
        targets = target_modules(lora, base.model, self.first_adapted)
        by_name = self.first_adapted and not any("." in name for name in targets)  # paths name adapted layers only
        self.shape = PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type] # PEFT accepts fractions too
            use_rslora=lora.use_rslora,
            target_modules=targets,
            layers_to_transform=list(range(self.first_adapted, depth)) if by_name else None,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        """PEFT settings of every role's adapter, unless `replace_adapter` set others."""
        self.slots = Slots(base.model, base.compute_dtype, find_siblings(base))  # none with unsloth: own kernels
        first = first_adapter if base.by_unsloth else wrapped
        self.peft = first(base.model, copy.copy(self.shape), base.config)
        self.heads: dict[Role, nn.Linear] = {}
        self.merged: Role | None = None  # set by `merging.merged` while no adapter is in the slots
        self.poll: Callable[[], None] = lambda: None
        """Called before every forward and every recorded decoding step; it may raise to stop there."""
        self.decoder.register_forward_pre_hook(lambda *_: self._before_forward())
        self._acting: Role | None = None
        self._training = False
        self._freeze()
        self._find_layers()

    def _find_layers(self) -> None:
        """Look up all that a switch of role needs, after PEFT has added or removed an adapter."""
        self._named: dict[Role, dict[str, Tensor]] = {}
        if self.base.by_unsloth:
            self._with_mode = list(self.peft.modules())
        else:
            self.slots.install()
            self._with_mode = outside_adapters(self.peft)  # without dropout an adapted layer is the same in both

    def _before_forward(self) -> None:
        self.poll()
        if self._training:  # an optimizer may have moved the weights
            self.slots.fill()

    @property
    def group(self) -> ProcessGroup:
        """Processes that share the work."""
        return self.base.group

    @property
    def acting(self) -> Role | None:
        """Role that is acting, or None."""
        return self._acting

    @property
    def present(self) -> set[Role]:
        """Roles that have an adapter."""
        return {role for role in Role if role.value in self.peft.peft_config}

    def check_free(self, role: Role) -> None:
        """Raise RuntimeError inside a block of any role, merged or not, and if the role has no adapter."""
        busy = self._acting or self.merged
        if busy is not None:
            raise RuntimeError(f"already acting as {busy.name}; blocks don't nest")
        if role not in self.present:
            raise RuntimeError(f"no adapter for {role.name} yet")

    @contextmanager
    def acting_as(self, role: Role, train: bool = False) -> Iterator[None]:
        """Run the model as that role inside the block; afterwards, also after an error, all weights are frozen.

        With `train` the role's adapter and head collect gradients; without, no graph is built. Blocks do not nest: a
        switch between a forward and its backward gives zero or wrong gradients without an error (PEFT 0.21).
        """
        self.check_free(role)
        self._acting, self._training = role, train
        trained = self.parameters(role) if train else []
        try:
            if not self.base.by_unsloth:
                self.slots.switch(role.value, self.parameters(role))
            elif self.peft.active_adapter != role.value:
                self.peft.set_adapter(role.value, inference_mode=True)
            self._set_mode(train)
            for parameter in trained:
                parameter.requires_grad_(True)
            with torch.enable_grad() if train else torch.no_grad():
                yield
        finally:
            self._acting, self._training = None, False
            for parameter in trained:
                parameter.requires_grad_(False)
            self.slots.empty()
            self._set_mode(train=False)

    def _set_mode(self, train: bool) -> None:
        if self.peft.training != train:
            for module in self._with_mode:
                module.training = train

    def hidden(self, batch: Sequences) -> Tensor:
        """Return the decoder's last hidden states as the acting role: (B, T, h)."""
        if self._acting is None:
            raise RuntimeError("no role is acting: use `with roles.acting_as(...)`")
        stop = self.head_layers if self._acting.has_head else len(self.decoder.layers)
        with partial_forward(self.decoder, self.first_adapted, batch.lower, stop):
            output = self.decoder(input_ids=batch.ids, attention_mask=self._mask(batch), use_cache=False)
        return output.last_hidden_state

    def _mask(self, batch: Sequences) -> Tensor | None:
        # unsloth drops the mask in training; without it scoring uses the same kernels, and PPO's first ratio is 1.
        return None if self.base.by_unsloth else right_padding_mask(self.decoder, batch.attention)

    def with_lower_states(self, batch: Sequences) -> Sequences:
        """Return the batch with the output of the layers below the first adapted one, if there are any.

        No role changes these layers: later forwards of these rows, as any role, start from their output.
        """
        if not self.first_adapted:
            return batch
        return self.base.limits.retry(lambda: self._with_lower_states(batch), max(batch.lengths()))

    def _with_lower_states(self, batch: Sequences) -> Sequences:
        embeddings: Any = self.base.model.get_input_embeddings()
        lower = embeddings.weight.new_zeros(*batch.ids.shape, embeddings.weight.shape[1])  # (B, T, h)
        parts = micro_batches(batch.lengths(), self.base.limits.tokens, self.group.world_size)
        for index in self.group.shard(parts):
            rows = batch.rows(index)
            states = lower_states(self.decoder, self.first_adapted, rows.ids, self._mask(rows))
            # (b, t, h) of this micro-batch, t <= T; other processes fill the other rows
            lower[torch.as_tensor(index, device=lower.device), : states.shape[1]] = states
        self.group.all_reduce([lower])
        return replace(batch, lower=lower)

    def logprobs(self, batch: Sequences, temperature: float, entropy: bool = False) -> TokenLogprobs:
        """Return the log-probability of each response token as the acting role: see `token_logprobs`."""
        return token_logprobs(self.hidden(batch), batch, self.base.model, temperature, entropy, self.base.vocabulary)

    def scores(self, batch: Sequences) -> Tensor:
        """Return the acting role's head output at every position, without logits: (B, T) or (B, T, M > 1) float32."""
        hidden = self.hidden(batch)  # (B, T, h)
        if self._acting not in self.heads:
            raise RuntimeError(f"{self._acting} has no head")
        return self.heads[self._acting](hidden.float()).squeeze(-1)  # (B, T, 1) -> (B, T)

    def backward(self, loss: Tensor) -> None:
        """Compute the acting role's gradients; only inside its training block, so that no switch comes in between."""
        if not self._training:
            raise RuntimeError("backward needs `with roles.acting_as(role, train=True)`")
        loss.backward()

    @property
    def decoder(self) -> Any:
        """Base without the vocabulary projection; its `layers` are the decoder layers."""
        return self.base.model.get_decoder()

    def named_parameters(self, role: Role) -> dict[str, Tensor]:
        """Return the role's weights by their names in PEFT's files; the head is `score.weight`."""
        if role not in self._named:
            mark = f".{role.value}."
            self._named[role] = {
                name.replace(mark, "."): parameter
                for name, parameter in self.peft.named_parameters()
                if mark in name and ".lora_" in name and not (role.has_head and layer_index(name) >= self.head_layers)
            }
        head = {"base_model.model.score.weight": self.heads[role].weight} if role in self.heads else {}
        return self._named[role] | head

    def parameters(self, role: Role) -> list[Tensor]:
        """Return the role's weights in a fixed order."""
        return list(self.named_parameters(role).values())

    def reset(self, role: Role, generator: torch.Generator) -> None:
        """Reset the adapter to one without effect: B = 0, A uniform as in LoRA's code; the head by `new_head`."""
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
        """Draw the head from N(0, 1/(h+1)) (Stiennon et al. 2020), or set it to 0 without a generator. No bias."""
        weight = self.heads[role].weight
        with torch.no_grad():
            if generator is None:
                weight.zero_()
            else:
                weight.copy_(torch.empty(weight.shape).normal_(0, (weight.shape[1] + 1) ** -0.5, generator=generator))

    def copy(self, source: Role, target: Role) -> None:
        """Copy the weights of `source` to `target`; the head too where both have one, as the mean of the members'."""
        self.prepare(target)
        weights = self.named_parameters(source)
        with torch.no_grad():
            for name, parameter in self.named_parameters(target).items():
                if name in weights:
                    same = weights[name].shape == parameter.shape
                    parameter.copy_(weights[name] if same else weights[name].mean(0, keepdim=True))

    def prepare(self, role: Role) -> None:
        """Add the role's adapter, and its head where it has one, if missing."""
        if role not in self.present:
            self.peft.add_adapter(role.value, copy.copy(self.shape))
            self._find_layers()
        if role.has_head and role not in self.heads:
            outputs, size = self.head_shape(role)
            self.heads[role] = nn.Linear(size, outputs, bias=False, device=self.base.device)
        self._freeze()

    def head_shape(self, role: Role) -> tuple[int, int]:
        """Return the shape of a role's head: outputs, and size of the hidden states."""
        size: int = self.base.model.config.get_text_config().hidden_size
        return self.members if role is Role.REWARD else 1, size

    def replace_adapter(self, role: Role, shape: PeftLoraConfig) -> None:
        """Replace the role's adapter by a new one with those settings; the other roles keep theirs.

        It may adapt lower layers than before: discard batches from `with_lower_states`.
        """
        if role in self.present:
            # PEFT warns that another adapter becomes active; `acting_as` sets it anyway.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
                self.peft.delete_adapter(role.value)
        self.peft.add_adapter(role.value, shape)
        self.peft.set_adapter(role.value, inference_mode=True)  # some of its layers may not have been adapted before
        self._find_layers()
        self.prepare(role)
        mark = f".{role.value}."
        adapted = [layer_index(name) for name, _ in self.peft.named_parameters() if mark in name and ".lora_" in name]
        self.first_adapted = min(self.first_adapted, *adapted)

    def _freeze(self) -> None:
        self.peft.requires_grad_(False)
        for head in self.heads.values():
            head.requires_grad_(False)
        self.peft.eval()
