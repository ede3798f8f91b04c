"""Evaluate expressions as far as modules, weights and constants go."""

from __future__ import annotations

import ast
import operator
from abc import ABC, abstractmethod
from types import FunctionType
from typing import Any

from torch import nn

from lightning_peft.anatomy.source.functions import method_of
from lightning_peft.anatomy.source.values import (
    PRIMITIVE,
    UNKNOWN,
    Method,
    OneOf,
    Scope,
    Weight,
    either,
    is_list,
    items_of,
    truth_of,
)
from lightning_peft.anatomy.tree import unwrap

__all__ = ["Evaluator"]

# Asking a tensor for these is no use of its values: `x.to(self.wo.weight.dtype)`.
_METADATA = frozenset(
    (
        *("dtype", "device", "shape", "ndim", "size", "dim", "numel", "nelement", "element_size"),
        *("requires_grad", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "stride"),
        *("is_floating_point", "is_contiguous", "data_ptr", "untyped_storage", "type"),
    )
)
_LOOKS_ONLY = frozenset({"isinstance", "hasattr", "callable", "type", "id", "len", "print", "repr"})
_COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}


class Evaluator(ABC):
    """Evaluates the expressions in the forward of one module and notes what they use.

    Args:
        module: The module whose forward is read.

    Attributes:
        reads: For each other module (by `id`) whose weight is used as a tensor, the weight's name.
        calls: The modules (by `id`) that are called, or handed to something that may call them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.reads: dict[int, str] = {}
        self.calls: set[int] = set()

    @abstractmethod
    def enter(self, function: Method | FunctionType, args: list[Any], kwargs: Scope) -> bool:
        """Follow a function; False if its source is not there."""

    @abstractmethod
    def bind(self, target: ast.expr, value: Any, scope: Scope) -> None:
        """Assign a value to a name, or its parts to several."""

    @abstractmethod
    def super_method(self, name: str, scope: Scope) -> Any:
        """Find the method that `super()` has under a name."""

    def use(self, node: ast.expr, scope: Scope) -> Any:
        """Evaluate an expression whose value goes where it cannot be followed."""
        value = self.evaluate(node, scope)
        self.note(value)
        return value

    def note(self, value: Any) -> None:
        """Note that a value is used: a weight is read, a module may be called by whoever has it."""
        for part in value.options if isinstance(value, OneOf) else [value]:
            if isinstance(part, Weight) and part.owner is not self.module:
                if part.name == "weight" or id(part.owner) not in self.reads:
                    self.reads[id(part.owner)] = part.name
            elif isinstance(part, nn.Module):
                self.calls.add(id(part))
            elif isinstance(part, Method):
                self.enter(part, [], {})
            elif isinstance(part, tuple):
                for element in part:
                    self.note(element)

    def evaluate(self, node: ast.expr, scope: Scope) -> Any:
        """Evaluate an expression; what it uses on the way is noted, its value is not."""
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is not None:
            return handler(node, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.use(child, scope)
        return UNKNOWN

    def _constant(self, node: ast.Constant, scope: Scope) -> Any:
        return node.value if isinstance(node.value, PRIMITIVE) else UNKNOWN

    def _name(self, node: ast.Name, scope: Scope) -> Any:
        if node.id in scope:
            return scope[node.id]
        value = scope[""].get(node.id, UNKNOWN)
        return value if isinstance(value, (*PRIMITIVE, FunctionType)) else UNKNOWN

    def _tuple(self, node: ast.Tuple, scope: Scope) -> Any:
        if any(isinstance(part, ast.Starred) for part in node.elts):
            for part in node.elts:
                self.use(part, scope)
            return UNKNOWN
        return tuple(self.evaluate(part, scope) for part in node.elts)

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Any:
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super":
            return self.super_method(node.attr, scope)
        return self._get(self.evaluate(node.value, scope), node.attr)

    def _get(self, base: Any, name: str) -> Any:
        if isinstance(base, OneOf):
            return either([self._get(option, name) for option in base.options])
        if isinstance(base, nn.Module):
            return self._of_module(base, name)
        if isinstance(base, Weight) and name not in _METADATA:
            self.note(base)  # `weight.t()`, `weight.data`: its values
        return UNKNOWN

    def _of_module(self, module: nn.Module, name: str) -> Any:
        if name == "training":
            return UNKNOWN
        if name in module._parameters:
            return None if module._parameters[name] is None else Weight(module, name)
        if name in module._modules:
            child = module._modules[name]
            return None if child is None else unwrap(child)
        for plain in (module._buffers, module.__dict__):
            if name in plain:
                value: object = plain[name]
                return value if isinstance(value, PRIMITIVE) else UNKNOWN
        found = method_of(type(module), name)
        if isinstance(found, property):
            if isinstance(found.fget, FunctionType):
                self.enter(Method(module, found.fget), [], {})
            return UNKNOWN
        if isinstance(found, FunctionType):
            raw = next(vars(k)[name] for k in type(module).__mro__ if name in vars(k))
            return Method(module, found, static=isinstance(raw, staticmethod))
        constant: object = getattr(type(module), name, UNKNOWN)
        return constant if isinstance(constant, PRIMITIVE) else UNKNOWN

    def _subscript(self, node: ast.Subscript, scope: Scope) -> Any:
        base = self.evaluate(node.value, scope)
        index = self.use(node.slice, scope)
        if is_list(base):
            children = list(base.children())
            if isinstance(base, nn.ModuleDict):
                return base[index] if isinstance(index, str) and index in base else OneOf(children)
            known = isinstance(index, int) and -len(children) <= index < len(children)
            return unwrap(children[index]) if known else OneOf(map(unwrap, children))
        if isinstance(base, tuple):
            known = isinstance(index, int) and -len(base) <= index < len(base)
            return base[index] if known else either(base)
        if isinstance(base, OneOf) and all(isinstance(o, nn.Module) for o in base.options):
            return base  # a slice of a list
        self.note(base)  # a slice of a weight: its values
        return UNKNOWN

    def _compare(self, node: ast.Compare, scope: Scope) -> Any:
        values = [self.evaluate(part, scope) for part in (node.left, *node.comparators)]
        if len(values) != 2:
            return UNKNOWN
        left, right = values
        operation = node.ops[0]
        if isinstance(operation, (ast.Is, ast.IsNot)) and right is None:
            known = left is None or isinstance(left, (nn.Module, Weight, *PRIMITIVE))
            return (left is None) is isinstance(operation, ast.Is) if known else UNKNOWN
        compare = _COMPARE.get(type(operation))
        alike = isinstance(left, str) is isinstance(right, str) and None not in (left, right)
        if compare is None or not all(isinstance(value, PRIMITIVE) for value in values):
            return UNKNOWN
        if not alike and compare not in (operator.eq, operator.ne):
            return UNKNOWN
        return compare(left, right)

    def _boolop(self, node: ast.BoolOp, scope: Scope) -> Any:
        """Evaluate `and` or `or`: one part that decides is enough, whatever the others are."""
        stops = isinstance(node.op, ast.Or)
        values: list[Any] = []
        for part in node.values:
            value = self.evaluate(part, scope)
            if truth_of(value) is stops:
                # What came before is not known to be the value, but this decides its truth.
                return value if all(truth_of(v) is not None for v in values) else stops
            values.append(value)
        if all(truth_of(value) is not None for value in values):
            return values[-1]
        return either(values) if any(isinstance(v, nn.Module) for v in values) else UNKNOWN

    def _unaryop(self, node: ast.UnaryOp, scope: Scope) -> Any:
        value = self.evaluate(node.operand, scope)
        if isinstance(node.op, ast.Not):
            truth = truth_of(value)
            return UNKNOWN if truth is None else not truth
        if isinstance(node.op, ast.USub) and isinstance(value, int):
            return -value
        self.note(value)
        return UNKNOWN

    def _ifexp(self, node: ast.IfExp, scope: Scope) -> Any:
        test = truth_of(self.evaluate(node.test, scope))
        if test is not None:
            return self.evaluate(node.body if test else node.orelse, scope)
        return either([self.evaluate(branch, scope) for branch in (node.body, node.orelse)])

    def _namedexpr(self, node: ast.NamedExpr, scope: Scope) -> Any:
        value = self.evaluate(node.value, scope)
        self.bind(node.target, value, scope)
        return value

    def _lambda(self, node: ast.Lambda, scope: Scope) -> Any:
        self.use(node.body, scope | {arg.arg: UNKNOWN for arg in node.args.args})
        return UNKNOWN

    def _loops(self, loops: list[ast.comprehension], parts: list[ast.expr], scope: Scope) -> Any:
        inner = dict(scope)
        for loop in loops:
            self.bind(loop.target, items_of(self.evaluate(loop.iter, inner)), inner)
            for test in loop.ifs:
                self.evaluate(test, inner)
        values = [self.evaluate(part, inner) for part in parts]
        if len(values) == 1 and isinstance(values[0], (OneOf, nn.Module)):
            return OneOf(values[0].options if isinstance(values[0], OneOf) else values)
        for value in values:
            self.note(value)
        return UNKNOWN

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, scope: Scope) -> Any:
        return self._loops(node.generators, [node.elt], scope)

    _setcomp = _generatorexp = _listcomp

    def _dictcomp(self, node: ast.DictComp, scope: Scope) -> Any:
        return self._loops(node.generators, [node.key, node.value], scope)

    def _call(self, node: ast.Call, scope: Scope) -> Any:
        function = node.func
        if isinstance(function, ast.Name) and function.id not in scope:
            if function.id in _LOOKS_ONLY:
                for arg in node.args:
                    self.evaluate(arg, scope)
                return UNKNOWN
            known = self._builtin(function.id, node, scope)
            if known is not None:
                return known
        if isinstance(function, ast.Attribute):
            if function.attr in _METADATA:
                self.evaluate(function.value, scope)
                return UNKNOWN
            if function.attr in ("items", "values", "children"):
                base = self.evaluate(function.value, scope)
                if is_list(base):
                    children = OneOf(map(unwrap, base.children()))
                    return OneOf([(UNKNOWN, children)]) if function.attr == "items" else children
            if ast.unparse(function) == "torch.jit.is_scripting":
                return False
        callee = self.evaluate(function, scope)
        args = [self.evaluate(arg, scope) for arg in node.args]
        kwargs = {word.arg or "": self.evaluate(word.value, scope) for word in node.keywords}
        if not self._follow(callee, args, kwargs):
            for value in (*args, *kwargs.values(), callee):
                if not isinstance(value, Method) or value is not callee:
                    self.note(value)
        return UNKNOWN

    def _builtin(self, name: str, node: ast.Call, scope: Scope) -> Any:
        """Evaluate the built-in functions that hand modules on; None for any other."""
        if name == "getattr" and len(node.args) > 1:
            base, attribute = (self.evaluate(arg, scope) for arg in node.args[:2])
            return self._get(base, attribute) if isinstance(attribute, str) else UNKNOWN
        if name in ("enumerate", "zip", "reversed", "list"):
            parts = [items_of(self.evaluate(arg, scope)) for arg in node.args]
            if name in ("reversed", "list"):
                return parts[0] if parts else UNKNOWN
            return OneOf([(UNKNOWN, *parts) if name == "enumerate" else tuple(parts)])
        return None

    def _follow(self, callee: Any, args: list[Any], kwargs: Scope) -> bool:
        """Follow a call into a method, or into a plain function that is given something of ours."""
        if isinstance(callee, Method):
            if callee.function.__name__ == "forward" and callee.owner is not self.module:
                self.calls.add(id(callee.owner))
                return False
            return self.enter(callee, args, kwargs)
        if isinstance(callee, FunctionType) and not callee.__module__.startswith("torch."):
            given = (*args, *kwargs.values())
            ours = any(isinstance(value, (nn.Module, Weight, OneOf)) for value in given)
            return ours and self.enter(callee, args, kwargs)
        return False
