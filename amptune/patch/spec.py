"""What patching has to know of a model besides its plan and its source text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from amptune.core.graph import LOSS, Site
from amptune.core.ops import Family, op_named

CROSS_ENTROPY = "cross_entropy"
"""The loss of torch that is compiled wherever a forward calls it, see ``runtime.losses_compiled``."""


@dataclasses.dataclass(frozen=True)
class SiteRef:
    """A site of the model, without its shapes.

    Attributes:
        id: module path, or ``path#op.n`` for a functional op.
        code: place of a functional op in the source, ``Class.forward#op.n``; empty for a module.
        module_type: class of the module, or of the one that holds the op.
        path: the file in which a functional op stands, where it is known.
    """

    id: str
    code: str = ""
    module_type: str = ""
    path: str = ""


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """Where the plan goes in a file.

    Attributes:
        path: the file, as the user should see it in messages and in the diff.
        sites: every site of the model, planned or not.
        modules: every module path of the model, containers and leaves; a glob of the table must not match one that
            the plan leaves alone.
        shared: further paths of a module that is reached by several -> its first path, which is its site id.
        tensors: names of the parameters and buffers that modules hold beside their layers.
        top_class: the model's class where this file defines it, as ``Class`` or ``Outer.Class``.
        make_model: the function of this file that builds the model. Where there is no ``top_class``, as for a model
            from a package, what it returns is what the plan is applied to.
        loss: the loss function of this file.
        optimizer: the function of this file that makes the optimizer.
        makes_loss: whether the forward makes a loss that can be compiled by itself, which ``loss`` may just hand on.
    """

    path: str
    sites: tuple[SiteRef, ...] = ()
    modules: tuple[str, ...] = ()
    shared: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    tensors: tuple[str, ...] = ()
    top_class: str | None = None
    make_model: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    makes_loss: bool = False

    @classmethod
    def from_sites(
        cls,
        path: str,
        sites: Iterable[Site],
        *,
        module_paths: Iterable[tuple[str, int]] = (),
        tensors: Iterable[str] = (),
        top_class: str | None = None,
        make_model: str | None = None,
        loss: str | None = None,
        optimizer: str | None = None,
        keeps_loss: bool = False,
    ) -> PatchSpec:
        """A spec from a captured graph.

        Args:
            path: the file.
            sites: sites of the graph.
            module_paths: (path, identity) of every module, duplicates included:
                ``((n, id(m)) for n, m in model.named_modules(remove_duplicate=False))``.
            tensors, top_class, make_model, loss, optimizer: as the attributes.
            keeps_loss: whether the model has a ``loss_function`` that can be set.
        """
        sites, paths = list(sites), list(module_paths)
        makes_loss = _calls_cross_entropy(sites) or (keeps_loss and _is_handed_on(sites))
        first: dict[int, str] = {}
        shared = {name: kept for name, identity in paths if (kept := first.setdefault(identity, name)) != name}
        refs = tuple(
            SiteRef(site.id, site.code, site.module_type, site.location.path if site.location else "") for site in sites
        )
        names = tuple(name for name, _ in paths)
        return cls(path, refs, names, shared, tuple(tensors), top_class, make_model, loss, optimizer, makes_loss)


def _calls_cross_entropy(sites: Iterable[Site]) -> bool:
    return any(site.module != LOSS and site.op == CROSS_ENTROPY for site in sites)


def _is_handed_on(sites: Iterable[Site]) -> bool:
    """Whether the forward's result is a loss already: it calls a loss of torch, or what comes after the forward reads
    single numbers alone, as where the model's own function makes the loss by hand."""
    after = [site for site in sites if site.module == LOSS]
    by_torch = any(site.module != LOSS and op_named(site.op).family is Family.LOSS for site in sites)
    return by_torch or all(tensor.numel == 1 for site in after for tensor in site.inputs)
