"""Follow the source of a module's forward and note whose weights it reads and which modules it calls.

A small interpreter of Python syntax trees over one instance. It knows `self`, the modules and
weights below it and plain constants, and takes everything else for unknown. It runs no code.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from lightning_peft.anatomy.tree import is_container, unwrap

__all__ = ["Reader", "code_of", "method_of"]

# Asking a tensor for these is no use of its values: `x.to(self.wo.weight.dtype)`.
_METADATA = frozenset(
    [
        "dtype",
        "device",
        "shape",
        "ndim",
        "size",
        "dim",
        "numel",
        "nelement",
        "element_size",
        "requires_grad",
        "layout",
        "is_cuda",
        "is_meta",
        "is_sparse",
        "is_quantized",
        "is_floating_point",
        "is_contiguous",
        "stride",
        "data_ptr",
        "names",
        "untyped_storage",
        "__class__",
        "type",
    ]
)
_LOOKS_ONLY = frozenset({"isinstance", "hasattr", "callable", "type", "id", "len", "print", "repr"})
_PRIMITIVE = (type(None), bool, int, float, str)
_DEPTH = 12


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


class _Weight:
    """A parameter of a module."""

    def __init__(self, owner: nn.Module, name: str, value: object) -> None:
        self.owner, self.name, self.value = owner, name, value


class _Any:
    """One of several modules or weights; which one is not known."""

    def __init__(self, options: Iterable[object]) -> None:
        self.options = list(options)


class _Method:
    """A method and the module that it is bound to."""

    def __init__(self, owner: nn.Module, function: FunctionType, kind: type) -> None:
        self.owner, self.function, self.kind = owner, function, kind


_UNKNOWN = _Unknown()
_Scope = dict[str, Any]


def method_of(kind: type, name: str, after: type | None = None) -> Any:
    """Find a class's own method or property, not looking into `nn.Module` itself.

    Args:
        kind: The class of a module.
        name: The method's name.
        after: Look only in the classes that follow this one, as `super()` does.

    Returns:
        The function or property, or None.
    """
    order = kind.__mro__
    for base in order[order.index(after) + 1 :] if after in order else order:
        if base is nn.Module:
            return None
        if name in base.__dict__:
            found = base.__dict__[name]
            found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
            return found if isinstance(found, (FunctionType, property)) else None
    return None


def code_of(function: Any) -> tuple[CodeType, dict[str, Any]] | None:
    """Give the code of a function or property, under its decorators, and its module's names."""
    if isinstance(function, property):
        function = function.fget
    if not callable(function):
        return None
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return None
    return function.__code__, function.__globals__


@lru_cache(maxsize=4096)
def _tree_of(code: CodeType) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None  # no source here: frozen applications, modules typed into a prompt
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None


class Reader:
    """What the forward of one module reads and calls.

    Attributes:
        reads: For each module (by `id`) whose weight is read as a tensor, that weight's name.
        calls: The modules (by `id`) that are called, or handed to something that may call them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.reads: dict[int, str] = {}
        self.calls: set[int] = set()
        self._active: list[CodeType] = []
        self._done: set[tuple[object, ...]] = set()
        forward = method_of(type(module), "forward")
        if forward is not None:
            self._enter(_Method(module, forward, type(module)), [], {})

    # --- functions ---------------------------------------------------------------------------

    def _enter(self, method: _Method | FunctionType, args: list[Any], kwargs: _Scope) -> bool:
        """Follow a function; False if its source cannot be."""
        function = method.function if isinstance(method, _Method) else method
        found = code_of(function)
        tree = _tree_of(found[0]) if found is not None else None
        if found is None or tree is None:
            return False
        code, names = found
        if code in self._active or len(self._active) >= _DEPTH:
            return True
        scope: _Scope = {"": (names, None, None)}
        parameters = [*tree.args.posonlyargs, *tree.args.args]
        if isinstance(method, _Method):
            scope[""] = (names, method.owner, method.kind)
            args = [method.owner, *args]
        values = dict(zip((p.arg for p in parameters), args, strict=False)) | kwargs
        for parameter in [*parameters, *tree.args.kwonlyargs]:
            scope[parameter.arg] = values.get(parameter.arg, _UNKNOWN)
        for rest in (tree.args.vararg, tree.args.kwarg):
            if rest is not None:
                scope[rest.arg] = _UNKNOWN
        key = (code, *(id(v) for k, v in sorted(scope.items()) if k and isinstance(v, nn.Module)))
        weights = any(isinstance(value, (_Weight, _Any)) for value in scope.values())
        if key in self._done and not weights:
            return True
        self._done.add(key)
        self._active.append(code)
        self._body(tree.body, scope)
        self._active.pop()
        return True

    def _body(self, statements: list[ast.stmt], scope: _Scope) -> bool:
        """Follow statements; True if they surely return or raise."""
        return any(self._statement(statement, scope) for statement in statements)

    def _statement(self, node: ast.stmt, scope: _Scope) -> bool:
        if isinstance(node, ast.If):
            return self._if(node, scope)
        if isinstance(node, (ast.Return, ast.Raise)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._use(child, scope)
            return True
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            if node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                value = self._eval(node.value, scope, use=not self._is_plain(targets))
                for target in targets:
                    self._bind(target, value, scope)
            return False
        if isinstance(node, (ast.For, ast.AsyncFor)):
            self._bind(node.target, self._items(self._eval(node.iter, scope, use=False)), scope)
            self._body(node.body, scope)
            self._body(node.orelse, scope)
            return False
        if isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self._use(item.context_expr, scope)
            return self._body(node.body, scope)
        if isinstance(node, ast.Assert):
            return False
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inner = dict(scope)
            if isinstance(node, ast.FunctionDef):
                inner.update((arg.arg, _UNKNOWN) for arg in node.args.args)
            self._body(node.body, inner)
            return False
        for child in ast.iter_child_nodes(node):  # while, try, expressions, augmented assignments
            if isinstance(child, ast.stmt):
                self._statement(child, scope)
            elif isinstance(child, ast.ExceptHandler):
                self._body(child.body, scope)
            elif isinstance(child, ast.expr):
                self._use(child, scope)
        return False

    def _if(self, node: ast.If, scope: _Scope) -> bool:
        test = self._truth(self._eval(node.test, scope, use=False))
        if test is not None:
            return self._body(node.body if test else node.orelse, scope)
        left, right = dict(scope), dict(scope)
        ends = self._body(node.body, left), self._body(node.orelse, right)
        branches = [branch for branch, end in zip((left, right), ends, strict=True) if not end]
        for name in set(left) | set(right):
            if name:
                scope[name] = self._either(b.get(name, _UNKNOWN) for b in branches or (left,))
        return all(ends)

    # --- names -------------------------------------------------------------------------------

    @staticmethod
    def _is_plain(targets: list[ast.expr]) -> bool:
        return all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets)

    def _bind(self, target: ast.expr, value: Any, scope: _Scope) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            values = value if isinstance(value, tuple) else ()
            for index, part in enumerate(target.elts):
                self._bind(part, values[index] if index < len(values) else _UNKNOWN, scope)

    @staticmethod
    def _either(values: Iterable[Any]) -> Any:
        """Give what is known of a value that is one of several."""
        options: list[Any] = []
        for value in values:
            parts = value.options if isinstance(value, _Any) else [value]
            options += [part for part in parts if all(part is not known for known in options)]
        if len(options) == 1:
            return options[0]
        kept = [option for option in options if isinstance(option, (nn.Module, _Weight))]
        return _Any(kept) if kept else _UNKNOWN

    @staticmethod
    def _items(value: Any) -> Any:
        """Give what an iteration over a value yields."""
        if isinstance(value, nn.Module) and is_container(value):
            return _Any(value.children())
        return value if isinstance(value, (tuple, _Any)) else _UNKNOWN

    @staticmethod
    def _truth(value: Any) -> bool | None:
        if isinstance(value, _Weight):
            return None
        if isinstance(value, nn.Module):
            return None if is_container(value) else True
        return bool(value) if isinstance(value, _PRIMITIVE) else None

    # --- expressions -------------------------------------------------------------------------

    def _use(self, node: ast.expr, scope: _Scope) -> Any:
        return self._eval(node, scope, use=True)

    def _note(self, value: Any) -> None:
        """Note that a value is used: a weight is read, a module may be called by whoever has it."""
        for part in value.options if isinstance(value, _Any) else [value]:
            if isinstance(part, _Weight) and part.owner is not self.module:
                if part.name == "weight" or id(part.owner) not in self.reads:
                    self.reads[id(part.owner)] = part.name
            elif isinstance(part, nn.Module):
                self.calls.add(id(part))
            elif isinstance(part, _Method):
                self._enter(part, [], {})

    def _eval(self, node: ast.expr, scope: _Scope, *, use: bool) -> Any:
        value = self._value(node, scope)
        if use and isinstance(node, (ast.Name, ast.Attribute, ast.Subscript, ast.IfExp, ast.Call)):
            self._note(value)
        return value

    def _value(self, node: ast.expr, scope: _Scope) -> Any:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, _PRIMITIVE) else _UNKNOWN
        if isinstance(node, ast.Name):
            return self._name(node.id, scope)
        if isinstance(node, ast.Attribute):
            base = self._eval(node.value, scope, use=node.attr not in _METADATA and False)
            return self._attribute(base, node.attr, node.value, scope)
        if isinstance(node, ast.Subscript):
            return self._subscript(node, scope)
        if isinstance(node, ast.Call):
            return self._call(node, scope)
        if isinstance(node, ast.Compare):
            return self._compare(node, scope)
        if isinstance(node, ast.IfExp):
            test = self._truth(self._eval(node.test, scope, use=False))
            taken = [node.body, node.orelse] if test is None else [(node.orelse, node.body)[test]]
            return self._either([self._eval(branch, scope, use=False) for branch in taken])
        if isinstance(node, ast.BoolOp):
            return self._bool(node, scope)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self._truth(self._eval(node.operand, scope, use=False))
            return _UNKNOWN if truth is None else not truth
        if isinstance(node, ast.Tuple):
            return tuple(self._eval(part, scope, use=True) for part in node.elts)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            inner = dict(scope)
            for loop in node.generators:
                items = self._items(self._eval(loop.iter, inner, use=False))
                self._bind(loop.target, items, inner)
                for test in loop.ifs:
                    self._eval(test, inner, use=False)
            parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            for part in parts:
                self._use(part, inner)
            return _UNKNOWN
        if isinstance(node, ast.Lambda):
            self._use(node.body, scope | {arg.arg: _UNKNOWN for arg in node.args.args})
            return _UNKNOWN
        if isinstance(node, ast.NamedExpr):
            value = self._eval(node.value, scope, use=False)
            self._bind(node.target, value, scope)
            return value
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._use(child, scope)
        return _UNKNOWN

    def _name(self, name: str, scope: _Scope) -> Any:
        if name in scope and name:
            return scope[name]
        value = scope[""][0].get(name, _UNKNOWN)
        return value if isinstance(value, (*_PRIMITIVE, FunctionType)) else _UNKNOWN

    def _attribute(self, base: Any, name: str, source: ast.expr, scope: _Scope) -> Any:
        if isinstance(base, _Any):
            return self._either([self._attribute(o, name, source, scope) for o in base.options])
        if isinstance(base, _Weight):
            if name not in _METADATA:
                self._note(base)  # `.t()`, `.data`, a slice: its values
            return _UNKNOWN
        if isinstance(base, nn.Module):
            return self._of_module(base, name)
        if isinstance(source, ast.Call) and ast.unparse(source.func) == "super":
            _, owner, kind = scope[""]
            if owner is not None:
                # The class that the running method was found in, for the next one in line.
                running = self._active[-1]
                for place in type(owner).__mro__:
                    found = [code_of(value) for value in vars(place).values() if callable(value)]
                    if any(pair is not None and pair[0] is running for pair in found):
                        function = method_of(type(owner), name, after=place)
                        if isinstance(function, FunctionType):
                            return _Method(owner, function, kind)
            return _UNKNOWN
        if isinstance(base, _Unknown) or isinstance(base, (*_PRIMITIVE, tuple, _Method)):
            return _UNKNOWN
        value = getattr(base, "__dict__", {}).get(name, _UNKNOWN)
        return value if isinstance(value, _PRIMITIVE) else _UNKNOWN

    def _of_module(self, module: nn.Module, name: str) -> Any:
        if name == "training":
            return _UNKNOWN
        if name in module._parameters:
            value = module._parameters[name]
            return None if value is None else _Weight(module, name, value)
        if name in module._modules:
            child = module._modules[name]
            return None if child is None else unwrap(child)
        for plain in (module._buffers, module.__dict__):
            if name in plain:
                value = plain[name]
                simple = isinstance(value, _PRIMITIVE) or type(value).__name__.endswith("Config")
                return value if simple else _UNKNOWN
        found = method_of(type(module), name)
        if isinstance(found, property):
            if found.fget is not None:
                self._enter(_Method(module, found.fget, type(module)), [], {})
            return _UNKNOWN
        if isinstance(found, FunctionType):
            return _Method(module, found, type(module))
        value = getattr(type(module), name, _UNKNOWN)
        return value if isinstance(value, _PRIMITIVE) else _UNKNOWN

    def _subscript(self, node: ast.Subscript, scope: _Scope) -> Any:
        base = self._eval(node.value, scope, use=False)
        index = self._eval(node.slice, scope, use=True)
        if isinstance(base, _Weight) or (
            isinstance(base, _Any) and any(isinstance(o, _Weight) for o in base.options)
        ):
            self._note(base)
            return _UNKNOWN
        if isinstance(base, nn.Module) and is_container(base):
            children = list(base.children())
            if isinstance(base, nn.ModuleDict):
                return base[index] if index in base else _Any(children)
            known = isinstance(index, int) and -len(children) <= index < len(children)
            return children[index] if known else _Any(children)
        return base if isinstance(base, _Any) else _UNKNOWN

    def _compare(self, node: ast.Compare, scope: _Scope) -> Any:
        values = [self._eval(part, scope, use=False) for part in (node.left, *node.comparators)]
        if len(values) != 2:
            return _UNKNOWN
        left, right = values
        operation = node.ops[0]
        if isinstance(operation, (ast.Is, ast.IsNot)) and right is None:
            if isinstance(left, (_Unknown, _Any)):
                return _UNKNOWN
            return (left is None) is isinstance(operation, ast.Is)
        if not all(isinstance(value, _PRIMITIVE) for value in values):
            return _UNKNOWN
        if isinstance(operation, (ast.Eq, ast.Is)):
            return left == right
        if isinstance(operation, (ast.NotEq, ast.IsNot)):
            return left != right
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if numbers and isinstance(operation, (ast.Gt, ast.Lt, ast.GtE, ast.LtE)):
            return {
                ast.Gt: left > right, ast.Lt: left < right,
                ast.GtE: left >= right, ast.LtE: left <= right,
            }[type(operation)]  # fmt: skip
        return _UNKNOWN

    def _bool(self, node: ast.BoolOp, scope: _Scope) -> Any:
        """Evaluate `and` or `or` as far as it is known where it stops."""
        stops = isinstance(node.op, ast.Or)
        known = True
        value: Any = _UNKNOWN
        for part in node.values:
            value = self._eval(part, scope, use=False)
            truth = self._truth(value)
            if truth is stops:
                return stops if known else (True if stops else False)
            known = known and truth is not None
        return value if known else _UNKNOWN

    # --- calls -------------------------------------------------------------------------------

    def _call(self, node: ast.Call, scope: _Scope) -> Any:
        function = node.func
        if isinstance(function, ast.Name) and function.id not in scope:
            if function.id in _LOOKS_ONLY:
                for arg in node.args:
                    self._eval(arg, scope, use=False)
                return _UNKNOWN
            if function.id == "getattr" and len(node.args) > 1:
                base, name = (self._eval(arg, scope, use=False) for arg in node.args[:2])
                if isinstance(name, str):
                    return self._attribute(base, name, node.args[0], scope)
            if function.id in ("enumerate", "zip", "reversed"):
                parts = [self._items(self._eval(arg, scope, use=False)) for arg in node.args]
                if function.id == "reversed":
                    return parts[0] if parts else _UNKNOWN
                return (_UNKNOWN, *parts) if function.id == "enumerate" else tuple(parts)
        if isinstance(function, ast.Attribute) and function.attr in _METADATA:
            self._eval(function.value, scope, use=False)
            return _UNKNOWN
        if ast.unparse(function) == "torch.jit.is_scripting":
            return False
        if isinstance(function, ast.Attribute) and function.attr in ("items", "values", "children"):
            base = self._eval(function.value, scope, use=False)
            if isinstance(base, nn.Module) and is_container(base):
                children = _Any(base.children())
                return (_UNKNOWN, children) if function.attr == "items" else children
        callee = self._eval(function, scope, use=False)
        args = [self._eval(arg, scope, use=isinstance(arg, ast.Starred)) for arg in node.args]
        kwargs = {k.arg or "": self._eval(k.value, scope, use=not k.arg) for k in node.keywords}
        if self._follow(callee, args, kwargs):
            return _UNKNOWN
        for value in (*args, *kwargs.values()):
            self._note(value)
        if isinstance(callee, (nn.Module, _Any)):
            self._note(callee)
        return _UNKNOWN

    def _follow(self, callee: Any, args: list[Any], kwargs: _Scope) -> bool:
        """Follow a call into a method, or into a plain function that is given something of ours."""
        if isinstance(callee, _Method):
            if callee.function.__name__ == "forward" and callee.owner is not self.module:
                self.calls.add(id(callee.owner))
                return False
            bound = callee
            if isinstance(vars_of(callee), staticmethod):
                return self._enter(callee.function, args, kwargs)
            return self._enter(bound, args, kwargs)
        if isinstance(callee, FunctionType) and not callee.__module__.startswith("torch."):
            ours = any(isinstance(v, (nn.Module, _Weight, _Any)) for v in (*args, *kwargs.values()))
            return ours and self._enter(callee, args, kwargs)
        return False


def vars_of(method: _Method) -> object:
    """Give the raw class attribute behind a method, to tell a static method."""
    return inspect.getattr_static(method.kind, method.function.__name__, None)
