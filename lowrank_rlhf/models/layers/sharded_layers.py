"""Frozen weights of the decoder layers, divided among the processes and gathered layer by layer (decision 0032)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.layers.frozen_product import FrozenProduct
from lowrank_rlhf.models.layers.joint_weights import frozen_tensors, plain_state
from lowrank_rlhf.models.layers.weights import dequantised
from lowrank_rlhf.run.distributed import ProcessGroup

_ALIGNMENT = 16
"""Bytes. A tensor begins at a multiple of it: kernels read as many at once."""


class _Shard(NamedTuple):
    """One decoder layer."""

    part: Tensor
    """Bytes that this process holds, uint8."""
    tensors: list[tuple[Tensor, Tensor]]
    """The layer's tensors, and where they are in the buffer while it holds this layer."""


class ShardedLayers:
    """Frozen weights of all linear layers of a decoder, of which each process holds an equal part of every layer.

    All decoder layers share one buffer. `gather` fills it with the bytes of one of them, in all processes together, and
    lets its tensors point there; those of the layer before are empty then, so that reading them past
    `weights.gathered` fails. NF4's scales are kept in float32. Embeddings, vocabulary projection, norms and biases are
    whole in every process, and so are weights that are in no linear layer.
    """

    def __init__(self, layers: Sequence[nn.Module], group: ProcessGroup, device: torch.device) -> None:
        self._group, self._present = group, -1
        linear = _by_layer(layers)
        layouts = [_layout(modules, group.processes, device) for modules in linear]
        self._buffer = torch.zeros(max(size for _, size in layouts), dtype=torch.uint8, device=device)
        self._shards = [_shard(tensors, size, self._buffer, group) for tensors, size in layouts]
        for index, modules in enumerate(linear):
            for module in modules:
                own: dict[str, Any] = vars(module)
                own["gather"] = partial(self.gather, index)
                own["forward"] = partial(_forward, module)
        group.on_gather = self._gather

    @property
    def size(self) -> int:
        """Number of bytes of the divided weights that this process holds, without the buffer."""
        return sum(shard.part.numel() for shard in self._shards)

    def gather(self, index: int) -> None:
        """Make the weights of a decoder layer readable until those of another are."""
        if self._present != index:
            self._group.gather(index)

    def _gather(self, index: int) -> None:
        if self._present >= 0:
            _point(self._shards[self._present], empty=True)
        shard, self._present = self._shards[index], index
        self._group.all_gather(self._buffer[: shard.part.numel() * self._group.processes], shard.part)
        _point(shard, empty=False)


def shard(model: PreTrainedModel, group: ProcessGroup, device: torch.device) -> ShardedLayers:
    """Divide the weights of a model on the CPU among the processes, and move the rest to `device`.

    All processes call it. Raises `UserError` if they do not hold the same model in the same number format.
    """
    sharded = ShardedLayers(list(model.get_decoder().layers), group, device)
    nn.Module.to(model, device)  # transformers' own refuses a quantised model
    if group.sum(sharded.size) != sharded.size * group.processes:
        raise UserError(
            "model.shard: the processes hold models of different sizes. Set model.compute_dtype to one format, and "
            "fetch the same model on each machine"
        )
    return sharded


def _by_layer(layers: Sequence[nn.Module]) -> list[list[Any]]:
    """Return the linear layers of each decoder layer; one that several share belongs to the first."""
    seen: set[int] = set()
    found = []
    for layer in layers:
        own = [module for module in layer.modules() if isinstance(module, nn.Linear) and id(module) not in seen]
        seen.update(map(id, own))
        found.append(own)
    return found


def _layout(modules: Sequence[Any], processes: int, device: torch.device) -> tuple[list[tuple[Tensor, int]], int]:
    """Return the tensors of a decoder layer with their places in the buffer, and the number of bytes.

    Tensors of one name follow each other, so that layers that read the same input can have one product. The bytes are
    a multiple of the number of processes.
    """
    for module in modules:
        if isinstance(module, bnb.nn.Linear4bit):
            packed: Any = module.weight
            packed.quant_state = plain_state(packed.quant_state)
            packed.quant_state.code = packed.quant_state.code.to(device)
    tensors = [frozen_tensors(module) for module in modules]
    names = dict.fromkeys(chain.from_iterable(tensors))
    places: list[tuple[Tensor, int]] = []
    end = 0
    for tensor in (own[name] for name in names for own in tensors if name in own):
        places.append((tensor, end))
        end += _multiple(tensor.nbytes, _ALIGNMENT)
    return places, _multiple(end, _ALIGNMENT * processes)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def _shard(places: Sequence[tuple[Tensor, int]], size: int, buffer: Tensor, group: ProcessGroup) -> _Shard:
    """Keep this process's part of a decoder layer; the tensors are empty afterwards."""
    whole = torch.zeros(size, dtype=torch.uint8)
    tensors = []
    for tensor, start in places:
        place = slice(start, start + tensor.nbytes)
        whole[place] = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        tensors.append((tensor, buffer[place].view(tensor.dtype).view(tensor.shape)))
    part = whole.chunk(group.processes)[group.rank] if size else whole
    shard = _Shard(part.clone().to(buffer.device), tensors)
    _point(shard, empty=True)
    return shard


def _point(shard: _Shard, empty: bool) -> None:
    for tensor, place in shard.tensors:
        tensor.data = place[:0] if empty else place


def _forward(layer: Any, x: Tensor) -> Tensor:
    """Return x W^T + b. Nothing is saved for the backward, which gathers the weight again."""
    weight: Callable[[torch.dtype], Tensor] = partial(dequantised, layer)
    product: Tensor = FrozenProduct.apply(x, weight, layer.bias)
    return product
