"""Following the statements of a module's forward and of the functions that it calls."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from lightning_peft.anatomy.source.values import (
    UNKNOWN,
    Method,
    View,
    Weight,
    evaluate,
    method_of,
    tree_of,
)
from lightning_peft.anatomy.tree import is_container, unwrap

__all__ = ["Reader"]

Scope = dict[str, Any]
_DEPTH = 12
_GLOBALS, _WITHIN = "<globals>", "<within>"  # entries of a scope besides the names of the function

# Attributes that do not use a tensor's values: `x.to(self.wo.weight.dtype)`.
_METADATA = frozenset(
    (
        *("dtype", "device", "shape", "ndim", "size", "dim", "numel", "nelement", "element_size"),
        *("requires_grad", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "stride"),
        *("is_floating_point", "is_contiguous", "data_ptr", "untyped_storage", "type"),
    )
)
_LOOKS_ONLY = frozenset({"isinstance", "hasattr", "callable", "type", "id", "len", "print", "repr"})


class Reader:
    """The weights that the forward of one module reads, and the modules that it calls.

    A condition that the module's attributes decide (`if self.q_bias is None`) leaves one branch,
    any other leaves both.

    Args:
        module: The module. The forward of its class is read, even if the instance has another.

    Attributes:
        reads: The weight's name for each other module (by `id`) whose weight is used as a tensor.
        calls: The modules (by `id`) that are called, or passed to something that may call them, in
            the order of the statements; the values mean nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        self.reads: dict[int, str] = {}
        self.calls: dict[int, None] = {}
        self._module = module
        self._active: list[CodeType] = []
        self._done: set[tuple[CodeType, str]] = set()
        forward = method_of(View(module, {}), "forward")
        if forward is not None:
            self._enter(forward, [], {})

    def _enter(self, callee: Method | FunctionType, args: Sequence[Any], named: Scope) -> bool:
        """Follow a function; return False if its source is not available."""
        function = callee.function() if isinstance(callee, Method) else callee
        tree = None if function is None else tree_of(function.__code__)
        if function is None or tree is None:
            return False
        code = function.__code__
        if code in self._active or len(self._active) >= _DEPTH:
            return True
        within = callee if isinstance(callee, Method) else None
        if within is not None and not isinstance(within.found, staticmethod):
            args = [UNKNOWN if isinstance(within.found, classmethod) else within.owner, *args]
        positional = [*tree.args.posonlyargs, *tree.args.args]
        given = dict(zip((p.arg for p in positional), args, strict=False)) | named
        scope = {name: given.pop(name, UNKNOWN) for name in _own_names(tree)}
        self._note([*args[len(positional) :], *given.values()])  # in *args they cannot be followed
        key = (code, repr(scope))
        if key not in self._done:
            self._done.add(key)
            self._active.append(code)
            self._body(tree.body, scope | {_GLOBALS: function.__globals__, _WITHIN: within})
            self._active.pop()
        return True

    def _note(self, value: Any) -> None:
        """Record the use of a value: a weight is read, a module may be called."""
        if isinstance(value, Weight):
            owner = value.weight_owner.viewed_module
            if owner is not self._module and self.reads.get(id(owner)) != "weight":
                self.reads[id(owner)] = value.weight_name
        elif isinstance(value, View):
            module = value.viewed_module
            self.calls.setdefault(id(module))
            if is_container(module) or module is self._module:
                self.calls.update((id(unwrap(child)), None) for child in module.children())
        elif isinstance(value, Method):
            self._enter(value, [], {})
        elif isinstance(value, (tuple, list)):
            for part in value:
                self._note(part)

    def _value(self, node: ast.AST | None, scope: Scope) -> Any:
        """Return what is known of an expression, without recording uses."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            within = scope[_WITHIN] if ast.unparse(node.value.func) == "super" else None
            found = within and method_of(within.owner, node.attr, after=within.place)
            if found is not None:
                return found
        return evaluate(
            node, lambda name: scope[name] if name in scope else scope[_GLOBALS].get(name, UNKNOWN)
        )

    def _taken(self, node: ast.AST | None, scope: Scope) -> Any:
        """Return what is known of an expression; if nothing is, record the use of its parts."""
        value = self._value(node, scope)
        if value is UNKNOWN and node is not None:
            self._use_of(node, value, scope)
        return value

    def _use(self, node: ast.AST, scope: Scope) -> None:
        """Record what an expression uses."""
        self._use_of(node, self._value(node, scope), scope)

    def _use_of(self, node: ast.AST, value: Any, scope: Scope) -> None:
        """Record what an expression uses that has this value."""
        if isinstance(node, ast.Call):
            self._call(node, scope)
        elif value is not UNKNOWN:
            self._note(value)
        elif isinstance(node, ast.Attribute):
            base = self._taken(node.value, scope)
            found = method_of(base, node.attr) if isinstance(base, View) else None
            if found is not None and isinstance(found.found, property):
                self._enter(found, [], {})
            elif isinstance(base, Weight) and node.attr not in _METADATA:
                self._note(base)  # `weight.t()`, `weight.data`: its values
        elif isinstance(node, ast.IfExp) and self._value(node.test, scope) is not UNKNOWN:
            self._use(node.body if self._value(node.test, scope) else node.orelse, scope)
        else:
            own = _own_names(node)
            inner = scope | dict.fromkeys(own, UNKNOWN) if own else scope
            for child in ast.iter_child_nodes(node):
                self._use(child, inner)

    def _call(self, node: ast.Call, scope: Scope) -> None:
        """Follow a call; arguments of code that cannot be followed count as used."""
        callee = self._taken(node.func, scope)
        args = [self._taken(arg, scope) for arg in node.args]
        named = {word.arg or "": self._taken(word.value, scope) for word in node.keywords}
        given = [*args, *named.values()]
        if isinstance(node.func, ast.Name) and node.func.id in _LOOKS_ONLY:
            return
        if isinstance(callee, Method):
            if callee.name == "forward" and callee.owner.viewed_module is not self._module:
                callee = callee.owner
            elif self._enter(callee, args, named):
                return
        elif isinstance(callee, FunctionType) and not callee.__module__.startswith("torch."):
            ours = any(isinstance(value, (View, Weight, list, tuple)) for value in given)
            if ours and self._enter(callee, args, named):
                return
        self._note([callee, *given])

    def _body(self, statements: list[ast.stmt], scope: Scope) -> bool:
        """Follow statements; return True if they certainly return or raise."""
        return any(self._statement(statement, scope) for statement in statements)

    def _statement(self, node: ast.AST, scope: Scope) -> bool:
        if isinstance(node, ast.If):
            return self._if(node, scope)
        if isinstance(node, ast.Return):
            self._note(self._taken(node.value, scope))
            return True
        if isinstance(node, ast.Raise):
            return True  # the forward does not compute with what an error message reads
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            value = self._taken(node.value, scope)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self._bind(target, value, scope)
        elif isinstance(node, ast.For):
            items = self._taken(node.iter, scope)
            for item in items if isinstance(items, (list, tuple, View)) else [UNKNOWN]:
                self._bind(node.target, item, scope)
                self._body(node.body, scope)
            self._body(node.orelse, scope)
        elif isinstance(node, ast.With):
            for item in node.items:
                self._use(item.context_expr, scope)
            return self._body(node.body, scope)
        elif isinstance(node, ast.FunctionDef):
            self._body(node.body, scope | dict.fromkeys(_own_names(node), UNKNOWN))
        elif not isinstance(node, (ast.Assert, ast.ClassDef)):
            for child in ast.iter_child_nodes(node):  # of a while, a try, a match, an expression
                (self._use if isinstance(child, ast.expr) else self._statement)(child, scope)
            if isinstance(node, ast.AugAssign):
                self._bind(node.target, UNKNOWN, scope)
        return False

    def _bind(self, target: ast.expr, value: Any, scope: Scope) -> None:
        """Assign a value to a name, or its parts to several."""
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            fits = isinstance(value, (list, tuple)) and len(value) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._bind(part, value[index] if fits else UNKNOWN, scope)
        else:
            self._note(value)  # in an attribute or an element it cannot be followed

    def _if(self, node: ast.If, scope: Scope) -> bool:
        test = self._taken(node.test, scope)
        if test is not UNKNOWN:
            return self._body(node.body if test else node.orelse, scope)
        branches = [dict(scope), dict(scope)]
        ends = [self._body(b, s) for b, s in zip((node.body, node.orelse), branches, strict=True)]
        kept = [branch for branch, end in zip(branches, ends, strict=True) if not end] or branches
        for name in {name for branch in kept for name in branch}:
            values = [branch.get(name, UNKNOWN) for branch in kept]
            scope[name] = values[0]
            if any(value is not values[0] for value in values):
                self._note(values)  # it is not known which of them is used
                scope[name] = UNKNOWN
        return all(ends)


def _own_names(node: ast.AST) -> list[str]:
    """Return the names that a function, a lambda or a comprehension binds."""
    if isinstance(node, (ast.Lambda, ast.FunctionDef)):
        return [part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)]
    targets = [loop.target for loop in getattr(node, "generators", ())]
    parts = [part for target in targets for part in ast.walk(target)]
    return [part.id for part in parts if isinstance(part, ast.Name)]
