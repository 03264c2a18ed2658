"""Signatures of components without the libraries that they compute with.

Importing PyTorch takes seconds, but to list components and to check settings only names, docstrings, defaults and
types are needed. `declare_components` therefore reads a module's source and registers every decorated function
without its body; what a signature mentions is evaluated when it is first looked up. `load_function` imports the
module, whose decorators then register the functions themselves.
"""

from __future__ import annotations
import __future__

import ast
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any


class LazyModule(dict[str, Any]):
    """The globals of a module; each name is evaluated when it is first looked up.

    A name that another module of ours defines is looked up there in the same way. Classes come from the imported
    module, because a class that is evaluated twice is two classes.
    """

    def __init__(self, name: str) -> None:
        spec = find_spec(name)
        source = spec.loader.get_source(name) if spec and spec.loader else None  # type: ignore[attr-defined]
        if spec is None or source is None:
            raise ImportError(f"the source of {name} cannot be read")
        super().__init__(__name__=name)
        self.body = ast.parse(source).body
        self._path = spec.origin or name
        self.names = {bound: statement for statement in self.body for bound in _bound_names(statement)}

    def __missing__(self, name: str) -> Any:
        statement = self.names[name]
        if isinstance(statement, ast.ClassDef):
            self[name] = getattr(import_module(self["__name__"]), name)
        elif isinstance(statement, ast.ImportFrom):
            self[name] = _import_from(str(statement.module), name, statement.names)
        else:
            self.run(statement)
        return self[name]

    def run(self, statement: ast.stmt) -> None:
        """Execute one statement in this module. Annotations stay text."""
        tree = ast.Module([statement], [])
        exec(compile(tree, self._path, "exec", __future__.annotations.compiler_flag), self)

    def is_registry(self, decorator: ast.expr) -> bool:
        """Return whether a decorator is `@model` or `@model(...)` with `model` from `bench.registry`."""
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        source = self.names.get(target.id) if isinstance(target, ast.Name) else None
        return isinstance(source, ast.ImportFrom) and source.module == "bench.registry"


_lazy_module = cache(LazyModule)


def declare_components(module: str) -> None:
    """Register the functions of a module that have a decorator of `bench.registry`, without their bodies."""
    lazy = _lazy_module(module)
    for statement in lazy.body:
        if isinstance(statement, ast.FunctionDef) and any(map(lazy.is_registry, statement.decorator_list)):
            lazy.run(_without_body(statement))


def is_declared(function: Callable[..., Any]) -> bool:
    """Return whether a function was declared without its body."""
    return isinstance(getattr(function, "__globals__", None), LazyModule)


def load_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function itself, with its module imported, of one that was declared without its body."""
    if not is_declared(function):
        return function
    loaded: Callable[..., Any] = getattr(import_module(function.__module__), function.__name__)
    return loaded


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at the top of a module defines."""
    match statement:
        case ast.Import(names):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
        case ast.ImportFrom(_, names):
            yield from (alias.asname or alias.name for alias in names)
        case ast.FunctionDef(name) | ast.ClassDef(name):
            yield name
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _import_from(module: str, bound: str, names: list[ast.alias]) -> Any:
    """Return what `from module import name as bound` binds; other modules of ours are not imported for it."""
    name = next(alias.name for alias in names if bound in (alias.asname, alias.name))
    if module.startswith("bench.") and module not in sys.modules and name in (lazy := _lazy_module(module)).names:
        return lazy[name]
    return getattr(import_module(module), name)


def _without_body(function: ast.FunctionDef) -> ast.FunctionDef:
    """Return the function with its docstring alone, and with the types of its keyword-only parameters alone."""
    function = deepcopy(function)
    args, function.returns = function.args, None
    for argument in (*args.posonlyargs, *args.args, args.vararg, args.kwarg):
        if argument is not None:
            argument.annotation = None
    docstring = function.body[: ast.get_docstring(function) is not None]
    function.body = [*docstring, *ast.parse("raise NotImplementedError").body]
    return function
