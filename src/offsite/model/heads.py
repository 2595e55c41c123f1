"""The classifier head of an image model: find it, give it classes, send it with a delta.

A head is the one linear layer whose size follows the number of classes. It belongs to the data
owner: where the model has none, or one for other classes, tuning starts from a head of zeros
(Dosovitskiy et al., arXiv 2010.11929), so nothing about it is random.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.tensors import TensorEntry


def head_path(model: nn.Module) -> str | None:
    """The dotted path of an image model's head, or None (a language model, a bare backbone)."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) != "pixel_values":
        return None
    shapes = []
    for count in (1, 2):
        config = copy.deepcopy(config)
        config.num_labels = count
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            if hasattr(part, "num_hidden_layers"):
                part.num_hidden_layers = 1  # blocks have no part in this
        with torch.device("meta"):
            family = type(model)(config)
        shapes.append({name: p.shape for name, p in family.named_parameters()})
    one, two = shapes
    paths = {name.rpartition(".")[0] for name in one if one[name] != two.get(name)}
    path = paths.pop() if len(paths) == 1 else None
    return path if path and isinstance(model.get_submodule(path), nn.Linear) else None


def head_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the head by name in the model; empty if there is none."""
    path = head_path(model)
    if path is None:
        return {}
    return {f"{path}.{name}": p for name, p in model.get_submodule(path).named_parameters()}


def head_entries(model: nn.Module) -> dict[str, TensorEntry]:
    """What the return contract says of the head: every tensor as it would be for one class."""
    return {
        name: TensorEntry.of(parameter[:1].detach())
        for name, parameter in head_tensors(model).items()
    }


def labels_of(model: object) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its outputs."""
    names: Mapping[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    return tuple(str(names[index]) for index in sorted(names))


def repeated(labels: Iterable[str]) -> set[str]:
    """The names that two classes have."""
    return {label for label, count in Counter(labels).items() if count > 1}


def is_numbered(labels: Sequence[str]) -> bool:
    """Whether labels are not names but ``0, 1, ...`` or transformers' ``LABEL_0, LABEL_1, ...``."""
    return all(label in (str(index), f"LABEL_{index}") for index, label in enumerate(labels))


def same_classes(present: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a head for ``present`` serves ``wanted``: equal names, or as many without names.

    Numbers are not names, but the order 0, 1 differs from 1, 2.
    """
    if len(present) != len(wanted):
        return False
    one, other = ([label.removeprefix("LABEL_") for label in side] for side in (present, wanted))
    if one == other:
        return True
    if all(label.isdecimal() for label in (*one, *other)):
        return False
    return is_numbered(present) or is_numbered(wanted)


def check_scored(tuned: Sequence[str], scored: Sequence[str]) -> None:
    """Refuse to score on classes that the data to tune on does not show.

    Raises:
        OffsiteError: with the first such class.
    """
    lacking = [label for label in scored if label not in tuned]
    if lacking and not same_classes(tuned, scored):
        raise OffsiteError(
            f"The data to score on has the class '{lacking[0]}', and the data to tune on does not; "
            "tune on pictures of it too, or leave it out of the scoring."
        )


def no_head(model: nn.Module) -> OffsiteError:
    """The refusal of a model without a head that follows the number of classes."""
    return OffsiteError(
        f"{type(model).__name__} has no single linear classifier head, so it cannot be tuned to "
        "other classes; use an image model that transformers classifies with."
    )


def attach_head(model: nn.Module, labels: Sequence[str] = ()) -> None:
    """Give a model a head of its own, in place, and tell its configuration the classes.

    The present head is copied when it serves the same classes; otherwise the new one is all zeros.
    Without ``labels`` the classes stay. Other models that share tensors are not touched.

    Raises:
        OffsiteError: labels for a model that has no single linear head.
    """
    path = head_path(model)
    if path is None:
        if labels:
            raise no_head(model)
        return
    present, old = labels_of(model), model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    labels = tuple(labels or present)
    keep = same_classes(present, labels)
    with torch.device(old.weight.device):
        head = nn.Linear(
            old.in_features, len(labels), bias=old.bias is not None, dtype=old.weight.dtype
        )
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(old.get_parameter(name)) if keep else parameter.zero_()
    model.set_submodule(path, head)
    if keep and is_numbered(labels):
        labels = present
    name_classes(model, labels)


def name_classes(model: nn.Module, labels: Sequence[str]) -> None:
    """Tell a model's configuration its classes, in the order of the outputs."""
    config = model.config
    config.id2label = dict(enumerate(labels))  # type: ignore[union-attr]
    config.label2id = {label: index for index, label in enumerate(labels)}  # type: ignore[union-attr]
    if hasattr(model, "num_labels"):
        model.num_labels = len(labels)  # type: ignore[assignment]


def load_head(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write values into what :func:`head_tensors` returned, by name."""
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def check_head(
    given: Mapping[str, TensorEntry], labels: Sequence[str], allowed: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """What a delta's head must be: nothing, or all of the offer's head with one row per label.

    Returns:
        The exact entries expected.

    Raises:
        OffsiteError: a head without labels or labels without one, a name twice, or a tensor that
            is not the offer's head.
    """
    if not given and not labels:
        return {}
    if set(given) != set(allowed) or not allowed or not labels:
        raise OffsiteError(
            "The delta's head is not that of its offer; it must hold all of "
            f"{', '.join(sorted(allowed)) or 'nothing'}, and a name for each class."
        )
    if len(set(labels)) < len(labels):
        raise OffsiteError("Two classes of the delta have the same name; give each its own.")
    return {
        name: TensorEntry(dtype=entry.dtype, shape=(len(labels), *entry.shape[1:]))
        for name, entry in allowed.items()
    }
