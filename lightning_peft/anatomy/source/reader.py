"""Follow the statements of a module's forward and of what it calls."""

from __future__ import annotations

import ast
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from lightning_peft.anatomy.source.expressions import Evaluator
from lightning_peft.anatomy.source.functions import class_of, code_of, method_of, tree_of
from lightning_peft.anatomy.source.values import (
    UNKNOWN,
    Method,
    OneOf,
    Scope,
    Weight,
    either,
    items_of,
    truth_of,
)

__all__ = ["Reader"]

_DEPTH = 12


class Reader(Evaluator):
    """What the forward of one module reads and calls; see `Evaluator` for the attributes.

    A condition that can be told from the module's attributes leaves one branch, any other leaves
    both. Loops are followed once, for all their elements together.

    Args:
        module: The module. Its class's forward is read, whatever stands in the instance.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._active: list[tuple[CodeType, nn.Module | None]] = []
        self._done: set[tuple[object, ...]] = set()
        forward = method_of(type(module), "forward")
        if isinstance(forward, FunctionType):
            self.enter(Method(module, forward), [], {})

    def enter(self, function: Method | FunctionType, args: list[Any], kwargs: Scope) -> bool:
        """Follow a function; False if its source is not there."""
        owner = function.owner if isinstance(function, Method) else None
        found = code_of(function.function if isinstance(function, Method) else function)
        tree = tree_of(found[0]) if found is not None else None
        if found is None or tree is None:
            return False
        code, names = found
        if any(code is running for running, _ in self._active) or len(self._active) >= _DEPTH:
            return True
        if isinstance(function, Method) and not function.static:
            args = [function.owner, *args]
        scope: Scope = {"": names}
        parameters = [*tree.args.posonlyargs, *tree.args.args]
        given = dict(zip((p.arg for p in parameters), args, strict=False)) | kwargs
        for parameter in [*parameters, *tree.args.kwonlyargs]:
            scope[parameter.arg] = given.pop(parameter.arg, UNKNOWN)
        for rest in (tree.args.vararg, tree.args.kwarg):
            if rest is not None:
                scope[rest.arg] = UNKNOWN
        for value in (*args[len(parameters) :], *given.values()):
            self.note(value)  # into *args and **kwargs, where it is lost from sight
        ours = [v for k, v in scope.items() if k and isinstance(v, (nn.Module, Weight, OneOf))]
        key = (code, *(id(value) for value in ours if isinstance(value, nn.Module)))
        if key in self._done and all(isinstance(value, nn.Module) for value in ours):
            return True
        self._done.add(key)
        self._active.append((code, owner))
        self._body(tree.body, scope)
        self._active.pop()
        return True

    def bind(self, target: ast.expr, value: Any, scope: Scope) -> None:
        """Assign a value to a name, or its parts to several."""
        if isinstance(value, OneOf) and len(value.options) == 1:
            value = value.options[0]
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            values = value if isinstance(value, tuple) else ()
            for index, part in enumerate(target.elts):
                self.bind(part, values[index] if index < len(values) else UNKNOWN, scope)
        else:
            self.note(value)  # into an attribute or an element, where it is lost from sight

    def super_method(self, name: str, scope: Scope) -> Any:
        """Find the method that `super()` has under a name."""
        code, owner = self._active[-1]
        place = class_of(type(owner), code) if owner is not None else None
        found = method_of(type(owner), name, after=place) if place is not None else None
        if isinstance(found, FunctionType) and owner is not None:
            return Method(owner, found)
        return UNKNOWN

    def _body(self, statements: list[ast.stmt], scope: Scope) -> bool:
        """Follow statements; True if they surely return or raise."""
        return any(self._statement(statement, scope) for statement in statements)

    def _statement(self, node: ast.stmt, scope: Scope) -> bool:
        if isinstance(node, ast.If):
            return self._if(node, scope)
        if isinstance(node, ast.Return):
            if node.value is not None:
                self.use(node.value, scope)
            return True
        if isinstance(node, ast.Raise):
            return True  # what an error message reads is not what the forward computes with
        if isinstance(node, ast.Assign):
            value = self.evaluate(node.value, scope)
            for target in node.targets:
                self.bind(target, value, scope)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.bind(node.target, self.evaluate(node.value, scope), scope)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            items = items_of(self.evaluate(node.iter, scope))
            iterated = isinstance(items, OneOf)
            self.bind(node.target, items if iterated else UNKNOWN, scope)
            self._body(node.body, scope)
            self._body(node.orelse, scope)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self.use(item.context_expr, scope)
            return self._body(node.body, scope)
        elif isinstance(node, ast.FunctionDef):
            arguments = {argument.arg: UNKNOWN for argument in node.args.args}
            self._body(node.body, dict(scope) | arguments)
        elif not isinstance(node, (ast.Assert, ast.ClassDef, ast.Import, ast.ImportFrom)):
            self._parts(node, scope)
        return False

    def _parts(self, node: ast.AST, scope: Scope) -> None:
        """Follow what is in a while, a try, a match, an augmented assignment, an expression."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child, scope)
            elif isinstance(child, ast.expr):
                self.use(child, scope)
            else:
                self._parts(child, scope)

    def _if(self, node: ast.If, scope: Scope) -> bool:
        test = truth_of(self.evaluate(node.test, scope))
        if test is not None:
            return self._body(node.body if test else node.orelse, scope)
        branches = [dict(scope), dict(scope)]
        ends = [
            self._body(body, branch)
            for body, branch in zip((node.body, node.orelse), branches, strict=True)
        ]
        open_ends = [b for b, end in zip(branches, ends, strict=True) if not end] or branches
        for name in {name for branch in open_ends for name in branch} - {""}:
            scope[name] = either(branch.get(name, UNKNOWN) for branch in open_ends)
        return all(ends)
