"""From a network to the groups that may be cut: traced once for each structure, every group proved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.core.structure import tensors_of
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import GroupNote
from hqp_lightning.surgery.copying import training_shapes
from hqp_lightning.surgery.cost import layer_macs
from hqp_lightning.surgery.culprit import busy_module, spans
from hqp_lightning.surgery.graph import Coupled, coupled_groups
from hqp_lightning.surgery.halving import failing
from hqp_lightning.surgery.limit import time_limit
from hqp_lightning.surgery.opaque import check_scripts, standing_in, unreadable
from hqp_lightning.surgery.proof import Proof
from hqp_lightning.surgery.severed import WHY, dead_ends, outputs_of, severed

__all__ = ["APPROXIMATE", "LEFT_OUT", "LIMIT_S", "Trace", "trace"]

LEFT_OUT, APPROXIMATE = "left out", "approximate"

LIMIT_S = 60.0
"""How long a trace may take, in seconds."""

_BY_NATURE = "a layer normalises or averages over its channels, so that removing some changes the others a little"


@dataclass(frozen=True)
class Trace:
    """What is known of one structure of a network.

    Attributes:
        coupled: the groups that may be cut, by name.
        notes: groups left out, and groups whose cuts are approximations, each with the reason.
        macs: layer name to MACs, for one sample.
        outputs: shapes of the outputs.
        training: shapes of the outputs in training mode; None if it does not run in that mode.
        ends: layers whose outputs lead to nothing, and must stay what they are.
    """

    coupled: Mapping[str, Coupled]
    notes: tuple[GroupNote, ...]
    macs: Mapping[str, float]
    outputs: tuple[tuple[int, ...], ...]
    training: tuple[tuple[int, ...], ...] | None
    ends: tuple[str, ...] = ()

    @property
    def approximate(self) -> set[str]:
        """Names of the groups whose cuts are approximations."""
        return {n.group for n in self.notes if n.status == APPROXIMATE}


def trace(
    network: nn.Module, call: Call, ignore: Sequence[str], known: Iterable[GroupNote] = (), limit_s: float | None = None
) -> tuple[Trace, Proof | None]:
    """Trace a private copy of a network and prove its groups.

    Args:
        network: a float32 copy on the CPU, in eval mode.
        call: an example.
        ignore: names of modules that stay: of layers the output channels, of modules with parts what they read, too.
        known: notes of an earlier structure: groups that were left out then stay out.
        limit_s: see `LIMIT_S`.

    Returns:
        What is known of it, and what proved it, if there was anything to prove: of a network of the same weights.

    Raises:
        ConfigurationError: it does not run, or takes longer.
    """
    check_scripts(network)
    limit_s = LIMIT_S if limit_s is None else limit_s
    try:
        macs, outputs = layer_macs(network, call)
    except Exception as error:
        raise _untraceable(network, call, error) from error
    # What is ignored need not be looked into: modules with parts never are, layers only if it must be.
    closed = [n for n in ignore if any(True for _ in network.get_submodule(n).children())]
    with standing_in(network, dict.fromkeys(closed, "ignored")):
        unseen = severed(network, lambda m: _outputs(m, call), ignore)
    ends = dead_ends(network, unseen)
    try:
        found = _coupled(network, call, ignore, closed, macs, limit_s, ends)
    except ConfigurationError:
        if closed == list(ignore):
            raise
        found = _coupled(network, call, ignore, ignore, macs, limit_s, ends)
    runs_at = {name: i for i, name in enumerate(macs)}
    found.sort(key=lambda c: runs_at.get(c.group.name, len(macs)))  # the outside graph begins at the outputs
    training = training_shapes(network, call)
    out = {n.group: n for n in known if n.status == LEFT_OUT}
    notes = [out.get(c.group.name) or _note(c, LEFT_OUT, c.problem) for c in found if _hopeless(c, out)]
    notes += [out.get(name) or GroupNote(name, width, LEFT_OUT, WHY) for name, width, _ in unseen]
    tried = {c.group.name: c for c in found if not _hopeless(c, out)}
    proof = Proof(network, call, tried, training, ends) if tried else None
    proved, more = ({}, []) if proof is None else _prove(proof, tried)
    return Trace(proved, (*notes, *more), macs, outputs, training, ends), proof


def some(coupled: Coupled) -> list[int]:
    """A quarter of the gates of a group, one at least, with all the channels that are tied to them.

    More of them lie in the first half than in the second: what is split on the way must be seen to be.
    """
    gates, draw = coupled.group.gates, random.Random(coupled.group.name)
    count, half = max(gates // 4, 1), gates // 2
    late = count // 4
    picked = draw.sample(range(half or gates), count - late) + draw.sample(range(half, gates), late)
    return sorted(g + b * gates for g in picked for b in range(coupled.group.blocks))


def _prove(proof: Proof, tried: dict[str, Coupled]) -> tuple[dict[str, Coupled], list[GroupNote]]:
    def on(test: Callable[[Mapping[str, Sequence[int]]], str]) -> Callable[[Sequence[str]], str]:
        return lambda names: test({n: some(proof.coupled[n]) for n in names})

    wrong = failing([n for n, c in tried.items() if not c.normalised], on(proof.masks))
    wrong |= {n: _BY_NATURE for n, c in tried.items() if c.normalised}
    for name in wrong:  # parts of a split may be right if all of them lose the same channels
        for parts in tried[name].parts:
            split = tried[name]
            split = replace(split, group=replace(split.group, blocks=split.group.blocks * parts))
            if split.group.gates > 1 and split.group.channels % split.group.blocks == 0:
                proof.coupled = {**proof.coupled, name: split}
                if not on(proof.masks)([name]):
                    break
        else:
            proof.coupled = {**proof.coupled, name: tried[name]}
    wrong = {n: r for n, r in wrong.items() if proof.coupled[n] is tried[n]}
    unlike = failing(list(wrong), on(proof.exchanges))
    right = [n for n in tried if n not in unlike]
    broken = failing(right, on(proof.runs))
    bad = {**{n: r if tried[n].normalised else wrong[n] for n, r in unlike.items()}, **broken}
    notes = [_note(tried[n], LEFT_OUT, r) for n, r in bad.items()]
    notes += [_note(tried[n], APPROXIMATE, _BY_NATURE) for n in wrong if n not in bad]
    proof.coupled = {n: proof.coupled[n] for n in tried if n not in bad}
    return dict(proof.coupled), notes


def _coupled(
    network: nn.Module,
    call: Call,
    ignore: Sequence[str],
    closed: Sequence[str],
    macs: Mapping[str, float],
    limit: float,
    ends: Sequence[str],
) -> list[Coupled]:
    hidden = {n: "ignored" for n in closed}
    hidden |= {n: r for n, r in unreadable(network).items() if not any(_inside(n, c) for c in closed)}
    ignored = {m for n in (*ignore, *ends) for m in network.get_submodule(n).modules()}
    while True:
        with standing_in(network, hidden), spans(network) as seen:
            try:
                with time_limit(limit):
                    return coupled_groups(network, lambda m: _outputs(m, call, ends), ignored, macs)
            except TimeoutError as error:
                name = busy_module(error, network, seen)
                raise ConfigurationError(
                    f"tracing {type(network).__name__} took longer than {limit:g} s, in {name!r}. "
                    f"Put it into ignore: HQPPruning(..., ignore=[{name!r}]) leaves it as it is and prunes the rest."
                ) from error
            except Exception as error:
                name = busy_module(error, network, seen)
                if not name or name in hidden:
                    raise _untraceable(network, call, error) from error
                # The network runs, so it is the outside graph that fails there; the rest may be pruned all the same.
                hidden = {n: r for n, r in hidden.items() if not _inside(n, name)}
                hidden[name] = f"torch-pruning's graph fails in it: {type(error).__name__}: {error}"


def _outputs(network: nn.Module, call: Call, ends: Sequence[str] = ()) -> list[Tensor]:
    """The tensors that a network returns, and those of dead ends; a None among them is nothing to follow."""
    with outputs_of(network, ends) as more:
        return [*tensors_of(call.on(network)).values(), *more.values()]


def _untraceable(network: nn.Module, call: Call, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"could not run and trace {type(network).__name__} with inputs of shape {list(call.shapes())}: "
        f"{str(error) or type(error).__name__}"
    )


def _note(coupled: Coupled, status: str, reason: str) -> GroupNote:
    return GroupNote(coupled.group.name, coupled.group.channels, status, reason)


def _hopeless(coupled: Coupled, out: Mapping[str, Any]) -> bool:
    return bool(coupled.problem) or coupled.group.name in out


def _inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
