"""A hash of the code that computes a result: definitions and everything that they refer to, from their sources.

`code_hash(["pw.method.weighting.DeltaSigma"])` covers the class and every class, function and constant in `COMPUTES`
that it refers to, directly or not. Comments, docstrings, annotations, formatting, error messages, import lines and the
names of modules and top-level definitions are left out, so that moving or renaming code changes nothing. Other code
(torch, the standard library, operations such as `pw.parallel`) enters by name alone, and so do the classes in
`isinstance` tests. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pw.io.paths import ROOT, SUITE

OURS = ("pw", "experiments", "benchmarks")
# What the dotted names begin with whose definitions are hashed. Our other code runs, stores and prints.
COMPUTES = (
    *("pw.method.", "pw.nn.", "pw.stages.", "pw.data.", "pw.io.video.to_float.", "pw.io.video.to_uint8."),
    "benchmarks.metrics.",
)
LAZY = "pw.io.lazy."  # `from pw.io.lazy import torch` is torch


@dataclass(frozen=True)
class Ref:
    """A reference to a definition: module and dotted name in it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Member:
    """A method, which a caller of `code_hash` may leave out."""

    name: str
    tokens: Sequence[Token]


Token = str | Ref | Member
# Local names: None for a variable, a dotted name for an import inside a function.
Scope = Mapping[str, str | None]


class UnknownCode(LookupError):
    """A definition that is in no source."""


@lru_cache(maxsize=256)
def code_hash(roots: tuple[str, ...], without: frozenset[str] = frozenset()) -> str:
    """12 hex digits of the code of the dotted names (classes, functions, methods) and of all that they refer to.

    without  dotted names of definitions and methods to leave out, because these roots do not use them
    Raises UnknownCode for a root without a source.
    """
    order: list[Ref] = []
    numbers: dict[Ref, int] = {}
    sha = hashlib.sha256()

    def number(ref: Ref) -> int:
        if ref not in numbers:
            numbers[ref] = len(order)
            order.append(ref)
        return numbers[ref]

    def write(tokens: Sequence[Token]) -> None:
        for token in tokens:
            match token:
                case str():
                    sha.update(f"{token}\0".encode())
                case Ref():
                    # numbered in the order of this walk, so that names do not matter
                    sha.update(f"<{'unused' if str(token) in without else number(token)}>\0".encode())
                case Member() if token.name not in without:
                    write(token.tokens)

    followed = _beside(frozenset(root.partition(".")[0] for root in roots) - {*OURS})
    for root in roots:
        definition, rest = _resolve(root, followed, is_root=True)
        if definition is None:
            raise UnknownCode(f"{root}: is defined in no source")
        write((Ref(definition.module, ".".join([definition.name, *rest])),))
    for ref in order:  # it grows
        write(_tokens(ref, followed))
    return sha.hexdigest()[:12]


def classes_of(value: Any) -> Iterator[str]:
    """Dotted names of a dataclass's class and of those in its fields, a strategy and its parts."""
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    for field in fields(value) if is_dataclass(value) else ():
        part = getattr(value, field.name)
        if field.init and is_dataclass(part):
            yield from classes_of(part)


@dataclass(frozen=True)
class _Module:
    """One source file.

    definitions  name -> the top-level statements that define it, with its place where several are assigned at once
    imports      name -> dotted name of what is imported
    """

    name: str
    definitions: Mapping[str, Sequence[tuple[ast.stmt, int | None]]]
    imports: Mapping[str, str]


@lru_cache(maxsize=512)
def _module(name: str) -> _Module | None:
    """The source of a module, None where there is none."""
    package = name.partition(".")[0]
    path = (ROOT if package == "pw" else SUITE).joinpath(*name.split("."))
    files = [path.with_suffix(".py"), path / "__init__.py"] if package in OURS else [_elsewhere(name)]
    file = next((file for file in files if file is not None and file.is_file()), None)
    if file is None:
        return None
    definitions: dict[str, list[tuple[ast.stmt, int | None]]] = {}
    imports: dict[str, str] = {}
    for statement in _top(ast.parse(file.read_text(encoding="utf-8")).body):
        imports.update(_imported(statement))
        for defined, place in _defined(statement):
            definitions.setdefault(defined, []).append((statement, place))
    return _Module(name, definitions, imports)


def _beside(packages: frozenset[str]) -> frozenset[str]:
    """A user's modules and the others of their folder, which they may import."""
    files = [file for package in packages if (file := _elsewhere(package)) is not None and file.stem == package]
    return packages | {path.stem for file in files for path in file.parent.glob("*.py")} - {*OURS}


def _elsewhere(name: str) -> Path | None:
    """The file of a module that is not ours."""
    if (there := getattr(sys.modules.get(name), "__file__", None)) is not None:
        return Path(there)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _top(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements of a module, also within `if` and `try`, without those under TYPE_CHECKING."""
    for statement in body:
        match statement:
            case ast.If():
                yield from _top([] if _is_for_types(statement.test) else statement.body)
                yield from _top(statement.orelse)
            case ast.Try():
                yield from _top([*statement.body, *(s for h in statement.handlers for s in h.body), *statement.orelse])
            case _:
                yield statement


def _is_for_types(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _defined(statement: ast.stmt) -> Iterator[tuple[str, int | None]]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, None
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
            yield name, None
        case ast.Assign(targets=targets):
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, None
                elif isinstance(target, ast.Tuple):
                    yield from ((t.id, place) for place, t in enumerate(target.elts) if isinstance(t, ast.Name))


def _imported(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    match statement:
        case ast.Import(names=names):
            for name in names:
                yield name.asname or name.name.partition(".")[0], name.name if name.asname else name.name.split(".")[0]
        case ast.ImportFrom(names=names, module=module):
            yield from ((name.asname or name.name, f"{module}.{name.name}") for name in names)


def _resolve(dotted: str, followed: frozenset[str], *, is_root: bool = False) -> tuple[Ref | None, list[str]]:
    """The definition that a dotted name refers to, and the attributes after it; None, and the name to hash, if its code
    is not hashed."""
    parts = dotted.split(".")
    if parts[0] not in OURS and parts[0] not in followed:
        return None, parts
    for cut in range(len(parts), 0, -1):
        module = _module(".".join(parts[:cut]))
        if module is None:
            continue
        first, rest = "".join(parts[cut : cut + 1]), parts[cut + 1 :]
        if first in module.definitions:
            is_followed = is_root or parts[0] in followed or f"{module.name}.{first}.".startswith(COMPUTES)
            return (Ref(module.name, first), rest) if is_followed else (None, [first, *rest])
        if first in module.imports:  # handed on
            return _resolve(".".join([module.imports[first], *rest]), followed, is_root=is_root)
        return None, parts[cut:] or parts[-1:]
    return None, parts


@lru_cache(maxsize=4096)
def _tokens(ref: Ref, followed: frozenset[str]) -> tuple[Token, ...]:
    """Tokens of a definition, without its name."""
    module = _module(ref.module)
    assert module is not None
    first, *members = ref.name.split(".")
    reader = _Reader(module, followed)
    tokens: list[Token] = []
    for statement, place in module.definitions[first]:
        node: ast.stmt = statement
        for member in members:
            inner = [s for s in getattr(node, "body", []) if getattr(s, "name", None) == member]
            if not inner:
                raise UnknownCode(f"{ref}: is defined in no source")
            node = inner[-1]
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                tokens += reader.function(node, {})
            case ast.ClassDef():
                tokens += reader.type(node, str(ref), {})
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                tokens += ["" if place is None else str(place), *(reader.node(node.value, {}) if node.value else ())]
    return tuple(tokens)


BUILTIN_TESTS = ("isinstance", "issubclass")
SKIPPED = {"ctx", "kind", "type_comment", "type_params", "type_ignores", "returns", "annotation", "simple"}


class _Reader:
    """Turns syntax of one module into tokens."""

    def __init__(self, module: _Module, followed: frozenset[str]) -> None:
        self.module, self.followed = module, followed

    def node(self, node: Any, scope: Scope) -> list[Token]:
        match node:
            case list():
                return [token for part in node for token in self.node(part, scope)]
            case ast.Name() | ast.Attribute() if (named := self.reference(node, scope)) is not None:
                return named
            case ast.Name(id=name):
                return [name]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return [node.name, *self.function(node, scope)]
            case ast.ClassDef():
                return [node.name, *self.type(node, "", scope)]
            case ast.Lambda():
                inner = {**scope, **dict.fromkeys(_arguments(node.args))}
                return ["Lambda", *self.node(node.args, scope), *self.node(node.body, inner)]
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                bound = {n.id: None for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
                return self.fields(node, {**scope, **bound})
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Expr(value=ast.Constant()):
                return []
            case ast.Raise():
                return ["Raise"]
            case ast.Assert():
                return ["Assert", *self.node(node.test, scope)]
            case ast.If() if _is_for_types(node.test):
                return self.node(node.orelse, scope)
            case ast.Call(func=ast.Name(id=name), args=[value, kind]) if name in BUILTIN_TESTS and name not in scope:
                return [name, *self.node(value, scope), *_names(kind)]
            case ast.MatchClass():
                return [*_names(node.cls), *self.node([*node.patterns, *node.kwd_patterns], scope), *node.kwd_attrs]
            case ast.Constant(value=value):
                return [repr(value)]
            case ast.AST():
                return self.fields(node, scope)
        return [repr(node)]

    def fields(self, node: ast.AST, scope: Scope) -> list[Token]:
        tokens: list[Token] = [type(node).__name__]
        for name, value in ast.iter_fields(node):
            if name not in SKIPPED:
                tokens += ["[", *self.node(value, scope), "]"] if isinstance(value, list) else self.node(value, scope)
        return tokens

    def reference(self, node: ast.Name | ast.Attribute, scope: Scope) -> list[Token] | None:
        """Tokens of a name, or of a dotted one, that leads out of the function; None where it does not."""
        attributes: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            attributes.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return None
        name = base.id
        if name in scope:
            what = scope[name]
        elif name in self.module.definitions:
            what = f"{self.module.name}.{name}"
        else:
            what = self.module.imports.get(name, name if hasattr(builtins, name) else None)
        if what is None:
            return None
        dotted = ".".join([what, *reversed(attributes)]).removeprefix(LAZY)
        definition, rest = _resolve(dotted, self.followed)
        return [".".join(rest)] if definition is None else [definition, *(f".{part}" for part in rest)]

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> list[Token]:
        """Without its name, as `type`."""
        inner = {**scope, **dict.fromkeys(_arguments(node.args)), **_bound(node.body)}
        head = [*self.node(node.decorator_list, scope), *self.node(node.args, scope)]
        return [type(node).__name__, *head, "[", *self.node(node.body, inner), "]"]

    def type(self, node: ast.ClassDef, name: str, scope: Scope) -> list[Token]:
        """Names bound in a class's body are not visible in its methods."""
        head = self.node([*node.decorator_list, *node.bases, *node.keywords], scope)
        body = {**scope, **_bound(node.body)}
        tokens: list[Token] = ["ClassDef", *head, "["]
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                method = (statement.name, *self.function(statement, scope))
                tokens.append(Member(f"{name}.{statement.name}", method))
            else:
                tokens += self.node(statement, body)
        return [*tokens, "]"]


def _names(kind: ast.AST) -> list[Token]:
    """The classes that a value is tested for, by their last names."""
    if isinstance(kind, ast.Name | ast.Attribute):
        return [kind.id if isinstance(kind, ast.Name) else kind.attr]
    return [name for part in ast.iter_child_nodes(kind) for name in _names(part)]


def _arguments(arguments: ast.arguments) -> list[str]:
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra)]


def _bound(body: Iterable[ast.stmt]) -> dict[str, str | None]:
    """Names bound by a function's statements: variables and imports."""
    names: dict[str, str | None] = {}
    outer: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.setdefault(name, None)
                continue  # its body is another scope
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                continue
            case ast.Import() | ast.ImportFrom():
                names.update(_imported(node))
            case ast.Name(id=name, ctx=ast.Store()):
                names.setdefault(name, None)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.setdefault(name, None)
            case ast.Global(names=globals_) | ast.Nonlocal(names=globals_):
                outer.update(globals_)
        waiting += ast.iter_child_nodes(node)
    return {name: what for name, what in names.items() if name not in outer}
