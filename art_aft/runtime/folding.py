"""Batch normalisation merged into the convolution before it: in evaluation mode both are one linear map."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: torch.nn.Module) -> GraphModule:
    """
    Return a traced copy of a model, each batch normalisation merged into the convolution whose only reader it is.

    :param model: The model, in evaluation mode.
    :raises Exception: Of any kind, where the model cannot be traced: its path depends on its input, or the like.
    """
    traced = symbolic_trace(copy.deepcopy(model))
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")

    def layer(node: Any, kind: type[torch.nn.Module]) -> bool:
        """Whether a node is the only call of such a layer."""
        is_call = isinstance(node, Node) and node.op == "call_module" and calls[node.target] == 1
        return is_call and isinstance(modules[node.target], kind)

    for node in list(traced.graph.nodes):
        if not layer(node, torch.nn.BatchNorm2d) or not node.args:
            continue
        before = node.args[0]
        if not layer(before, torch.nn.Conv2d) or len(before.users) > 1:
            continue
        convolution, normalisation = modules[before.target], modules[node.target]
        if normalisation.running_var is None:  # the batch's own statistics, in every mode
            continue
        parent, _, name = before.target.rpartition(".")
        setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(convolution, normalisation))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
