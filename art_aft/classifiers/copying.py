"""An independent copy of ART's `PyTorchClassifier`, and the check that the copy runs on its own weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier

from art_aft.checks import check_instance
from art_aft.classifiers.pixel_module import eager, on_grey_images
from art_aft.runtime.random_state import isolated_rng

_IN_PLACE = "pass transformed_classifier=classifier to purify the classifier itself"


def clone(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """
    Return an independent copy: weights, modes, settings and optimizer state, on the same device.

    `copy.deepcopy` would pickle, for which ART writes a file into its data folder and reads it back;
    `clone_for_refitting` would forget the weights. The copy of a compiled model is the model before `torch.compile`.

    :param classifier: The classifier; it stays as it is.
    :raises ValueError: If its model cannot be copied, or the copy would still run on weights of the original.
    """
    model = eager(check_instance("classifier", classifier, PyTorchClassifier, "ART's PyTorchClassifier").model)
    memo: dict[int, Any] = {}
    state = {k: v for k, v in vars(classifier).items() if k not in ("_model", "_model_wrapper", "_device")}
    # ART's `get_activations` keeps what it saw in the classifier, and leaves its hooks in the model.
    for tensor in _kept_activations(state, *(vars(module) for module in model.modules())):
        memo[id(tensor)] = tensor.detach().clone()
    parameters = list(model.parameters())  # kept, because those of TorchScript are made when they are asked for
    try:
        # With gradients, the parameters of a TorchScript module's copy would be results of a computation.
        with torch.no_grad():
            copied = copy.deepcopy(model, memo)
            for theirs, own in zip(parameters, copied.parameters(), strict=True):
                own.requires_grad_(theirs.requires_grad)
                memo[id(theirs)] = own  # so that the optimizer's copy holds the parameters of the model's copy
            state = copy.deepcopy(state, memo)
    except Exception as error:  # a model of any make: what its copying may raise is not known
        message = f"classifier.model: got a {type(model).__name__} that cannot be copied ({error}), expected one that"
        raise ValueError(f"{message} copy.deepcopy copies; or {_IN_PLACE}") from error
    _rebind_closures(copied, memo)
    twin = object.__new__(type(classifier))
    vars(twin).update(state, _model_wrapper=classifier._model_wrapper, _device=classifier.device)
    with isolated_rng():  # ART's wrapper of Hugging Face's models draws images
        twin._model = twin._make_model_wrapper(copied)
    twin._model.training = classifier._model.training
    _check_independence(classifier, twin)
    return twin


def _kept_activations(*attributes: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yield tensors that are kept as attributes and that come of a computation, which `deepcopy` refuses."""
    todo: list[Any] = [*attributes]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            todo.extend(value)


def _rebind_closures(model: torch.nn.Module, memo: dict[int, Any]) -> None:
    """
    Let functions that were set on modules, such as a patched `forward`, call the copy's modules.

    `deepcopy` copies bound methods and `functools.partial`, but takes functions as they are, with what they enclose.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (FunctionType, MethodType, functools.partial)):
                vars(module)[name] = _counterpart(value, memo, ())


def _counterpart(value: Any, memo: dict[int, Any], callers: tuple[int, ...]) -> Any:
    """Return what stands for a value in the copy; the value itself if it does not depend on the original's modules."""
    if isinstance(value, torch.nn.Module):
        return memo.get(id(value), value)
    if id(value) in callers:
        return value
    callers = (*callers, id(value))
    if isinstance(value, MethodType):
        return MethodType(_counterpart(value.__func__, memo, callers), _counterpart(value.__self__, memo, callers))
    if isinstance(value, functools.partial):
        arguments = [_counterpart(argument, memo, callers) for argument in value.args]
        named = {name: _counterpart(argument, memo, callers) for name, argument in value.keywords.items()}
        rebound: Any = functools.partial(_counterpart(value.func, memo, callers), *arguments, **named)
        vars(rebound).update(vars(value))
        return rebound
    return _counterpart_of_function(value, memo, callers) if isinstance(value, FunctionType) else value


def _counterpart_of_function(function: FunctionType, memo: dict[int, Any], callers: tuple[int, ...]) -> FunctionType:
    """Return a function with the copy's modules in its closure; the same one if there are none of the original's."""
    cells = function.__closure__ or ()
    found = tuple(_counterpart_of_cell(cell, memo, callers) for cell in cells)
    defaults = tuple(_counterpart(value, memo, callers) for value in function.__defaults__ or ())
    if all(map(_same, found, cells)) and all(map(_same, defaults, function.__defaults__ or ())):
        return function
    rebound = FunctionType(function.__code__, function.__globals__, function.__name__, defaults or None, found)
    rebound.__kwdefaults__ = function.__kwdefaults__
    vars(rebound).update({name: _counterpart(value, memo, callers) for name, value in vars(function).items()})
    return rebound


def _counterpart_of_cell(cell: CellType, memo: dict[int, Any], callers: tuple[int, ...]) -> CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    found = _counterpart(value, memo, callers)
    return cell if _same(found, value) else CellType(found)


def _same(one: Any, other: Any) -> bool:
    # Bound methods and partials are rebuilt also where nothing changes; the former compare by what they call.
    return one is other or (isinstance(one, MethodType) and one == other)


def _check_independence(classifier: PyTorchClassifier, twin: PyTorchClassifier) -> None:
    """Raise a ValueError if the copy's output depends on weights of the original, or on none of its own."""
    theirs, own = list(eager(classifier.model).parameters()), list(twin.model.parameters())
    if not own:
        return
    flags = [(p, p.requires_grad) for p in (*theirs, *own) if p.is_leaf and p.is_floating_point()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        with on_grey_images(twin) as run:
            try:
                reached = _read_weights(run(), theirs, own)
            except (RuntimeError, TypeError, AttributeError):
                return  # a model that does not take such images says so where it is used
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    kind = type(eager(classifier.model)).__name__
    if reached & {id(parameter) for parameter in theirs}:
        raise ValueError(
            f"classifier.model: got a {kind} whose copy still runs on the original's weights (a patched forward, or a "
            f"reference to the model from outside of it), expected one that can be copied; or {_IN_PLACE}"
        )
    if not reached & {id(parameter) for parameter in own}:
        raise ValueError(
            f"classifier.model: got a {kind} whose output gives its own parameters no gradient, expected one that can "
            "be trained"
        )


def _read_weights(output: Any, theirs: list[torch.nn.Parameter], own: list[torch.nn.Parameter]) -> set[int]:
    """Return the ids of the tensors that an output is computed from; gradients stay as they are."""
    outputs = [value for value in _tensors(output) if value.grad_fn is not None]
    found = {id(value) for value in origins(outputs)}
    parameters = [*theirs, *own]
    if outputs and not any(id(parameter) in found for parameter in parameters):
        # Checkpointed activations show what they depend on only in the backward pass.
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            torch.stack([value.float().sum() for value in outputs]).sum().backward()
            found.update(id(parameter) for parameter in parameters if parameter.grad is not None)
        finally:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
    return found


def origins(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that need a gradient and that others are computed from."""
    todo: list[Any] = [value.grad_fn for value in outputs]
    seen, found = set(), []
    while todo:
        function = todo.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, "variable"):
            found.append(function.variable)
        todo.extend(following for following, _ in function.next_functions)
    return found


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
