"""A hash of the source code that computes a result: definitions, and all definitions that they refer to.

`code_hash(("pw.method.weighting.DeltaSigma",))` covers the class and every class, function and constant in
`HASHED_CODE` that it refers to, directly or not. Comments, docstrings, annotations, formatting, error messages, imports
and the names of modules and top-level definitions do not enter the hash: moving or renaming code changes nothing. Of
other code (torch, the standard library, operations such as `pw.parallel`), and of classes in `isinstance` tests, only
the name enters. Nothing is imported or run.
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

from pw.io.paths import IS_CHECKOUT, ROOT, SUITE, commit_of

PACKAGES = ("pw", "experiments", "benchmarks")
# Prefixes of the dotted names whose definitions are hashed. Our other code runs, stores and prints.
HASHED_CODE = (
    *("pw.method.", "pw.nn.", "pw.stages.", "pw.data.", "pw.io.video.to_float.", "pw.io.video.to_uint8."),
    "benchmarks.metrics.",
)
LAZY = "pw.io.lazy."  # `from pw.io.lazy import torch` is torch


@dataclass(frozen=True)
class Ref:
    """A reference to a definition: its module, and its dotted name in the module."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Member:
    """A method, which a caller of `code_hash` can exclude."""

    name: str
    tokens: Sequence[Token]


@dataclass(frozen=True)
class CallStatement:
    """A call of a function as a statement of its own, `f(…)`, which a caller of `code_hash` can exclude as `f()`."""

    name: str
    tokens: Sequence[Token]


Token = str | Ref | Member | CallStatement
# Local name -> None for a variable, the dotted name for an import inside a function.
Scope = Mapping[str, str | None]


class UnknownCode(LookupError):
    """A definition without a source."""


@lru_cache(maxsize=1)
def suite_version() -> tuple[str, bool | None, str]:
    """(commit, whether it has uncommitted changes, hash of all code of `pw` and `benchmarks`): what made a result.

    Outside a checkout of git the commit is unknown, and its text has the hash instead.
    """
    folders = (ROOT / "pw", SUITE / "benchmarks")
    files = [(folder, path) for folder in folders for path in sorted(folder.rglob("*.py"))]
    sources = (path for folder, path in files if "_suite" not in path.relative_to(folder).parts)  # inside a wheel
    code = hash_of_files(sources)
    # an environment may be in the git repository of another project
    commit, is_dirty = commit_of(ROOT) if IS_CHECKOUT else (None, None)
    return commit or f"unknown, code {code}", is_dirty, code


def hash_of_files(paths: Iterable[Path]) -> str:
    """12 hex digits of the bytes of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


@lru_cache(maxsize=256)
def code_hash(roots: tuple[str, ...], exclude: frozenset[str] = frozenset()) -> str:
    """12 hex digits of the code of classes, functions and methods (dotted names) and of all that they refer to.

    exclude  dotted names of definitions and methods that these roots do not use; `f()` for calls of `f` that do nothing
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
                    # its number in the order of this walk, so that names do not matter
                    sha.update(f"<{'unused' if str(token) in exclude else number(token)}>\0".encode())
                case Member() | CallStatement() if token.name not in exclude:
                    write(token.tokens)

    refs, user_modules = _roots(roots)
    for ref in refs:
        write((ref,))
    for ref in order:  # `write` appends to it
        write(_tokens(ref, user_modules))
    return sha.hexdigest()[:12]


def _roots(roots: Sequence[str]) -> tuple[list[Ref], frozenset[str]]:
    """(references to roots, user modules). Raises UnknownCode."""
    user_modules = _modules_of_user(frozenset(root.partition(".")[0] for root in roots) - {*PACKAGES})
    refs = []
    for root in roots:
        definition, rest = _resolve(root, user_modules, is_root=True)
        if definition is None:
            raise UnknownCode(f"{root}: is defined in no source")
        refs.append(Ref(definition.module, ".".join([definition.name, *rest])))
    return refs, user_modules


def definitions(roots: Sequence[str], exclude: frozenset[str] = frozenset()) -> dict[str, str]:
    """Dotted name -> hash of every definition and method that `code_hash` of the same covers, each without what it
    refers to: those of two versions say which functions differ. Raises UnknownCode for a root without a source."""
    pending, user_modules = _roots(roots)
    hashes: dict[str, str] = {}

    def add(name: str, tokens: Sequence[Token]) -> None:
        texts, rest = [], [*reversed(tokens)]
        while rest:
            match token := rest.pop():
                case Ref():
                    pending.append(token)
                    texts.append(token.name)
                case Member() if token.name not in exclude:
                    add(token.name, token.tokens)
                case CallStatement() if token.name not in exclude:
                    rest += reversed(token.tokens)
                case str():
                    texts.append(token)
        hashes[name] = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]

    while pending:
        ref = pending.pop()
        if str(ref) not in hashes and str(ref) not in exclude:
            add(str(ref), _tokens(ref, user_modules))
    return hashes


def classes_of(value: Any) -> Iterator[str]:
    """Dotted names of the classes of a strategy (a dataclass) and of its parts."""
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    for field in fields(value) if is_dataclass(value) else ():
        part = getattr(value, field.name)
        if field.init and is_dataclass(part):
            yield from classes_of(part)


@dataclass(frozen=True)
class _Module:
    """One source file.

    definitions  name -> its top-level statements, each with the position in a tuple assignment or None
    imports      local name -> imported dotted name
    """

    name: str
    definitions: Mapping[str, Sequence[tuple[ast.stmt, int | None]]]
    imports: Mapping[str, str]


@lru_cache(maxsize=512)
def _module(name: str) -> _Module | None:
    """The parsed source of a module, None if it has none."""
    package = name.partition(".")[0]
    path = (ROOT if package == "pw" else SUITE).joinpath(*name.split("."))
    files = [path.with_suffix(".py"), path / "__init__.py"] if package in PACKAGES else [_source_of(name)]
    file = next((file for file in files if file is not None and file.is_file()), None)
    if file is None:
        return None
    definitions: dict[str, list[tuple[ast.stmt, int | None]]] = {}
    imports: dict[str, str] = {}
    for statement in _flat(ast.parse(file.read_text(encoding="utf-8")).body):
        imports.update(_imported_names(statement))
        for definition, index in _defined_names(statement):
            definitions.setdefault(definition, []).append((statement, index))
    return _Module(name, definitions, imports)


def _modules_of_user(packages: frozenset[str]) -> frozenset[str]:
    """User modules, and the other modules of their folders, which they may import."""
    files = [file for package in packages if (file := _source_of(package)) is not None and file.stem == package]
    return packages | {path.stem for file in files for path in file.parent.glob("*.py")} - {*PACKAGES}


def _source_of(name: str) -> Path | None:
    """The source file of a module outside `PACKAGES`."""
    if (file := getattr(sys.modules.get(name), "__file__", None)) is not None:
        return Path(file)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements of a module, also inside `if` and `try`, but not under TYPE_CHECKING."""
    for statement in body:
        match statement:
            case ast.If():
                yield from _flat([] if _is_type_checking(statement.test) else statement.body)
                yield from _flat(statement.orelse)
            case ast.Try():
                yield from _flat([*statement.body, *(s for h in statement.handlers for s in h.body), *statement.orelse])
            case _:
                yield statement


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _defined_names(statement: ast.stmt) -> Iterator[tuple[str, int | None]]:
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
                    yield from ((t.id, index) for index, t in enumerate(target.elts) if isinstance(t, ast.Name))


def _imported_names(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    match statement:
        case ast.Import(names=names):
            for name in names:
                yield name.asname or name.name.partition(".")[0], name.name if name.asname else name.name.split(".")[0]
        case ast.ImportFrom(names=names, module=module):
            yield from ((name.asname or name.name, f"{module}.{name.name}") for name in names)


def _resolve(dotted_name: str, user_modules: frozenset[str], *, is_root: bool = False) -> tuple[Ref | None, list[str]]:
    """(definition of a dotted name, attributes after it); (None, name to hash) if the code is not hashed."""
    parts = dotted_name.split(".")
    if parts[0] not in PACKAGES and parts[0] not in user_modules:
        return None, parts
    for end in range(len(parts), 0, -1):
        module = _module(".".join(parts[:end]))
        if module is None:
            continue
        first, rest = "".join(parts[end : end + 1]), parts[end + 1 :]
        if first in module.definitions:
            is_hashed = is_root or parts[0] in user_modules or f"{module.name}.{first}.".startswith(HASHED_CODE)
            return (Ref(module.name, first), rest) if is_hashed else (None, [first, *rest])
        if first in module.imports:  # re-exported
            return _resolve(".".join([module.imports[first], *rest]), user_modules, is_root=is_root)
        return None, parts[end:] or parts[-1:]
    return None, parts


@lru_cache(maxsize=4096)
def _tokens(ref: Ref, user_modules: frozenset[str]) -> tuple[Token, ...]:
    """Tokens of a definition, without its name."""
    module = _module(ref.module)
    assert module is not None
    first, *members = ref.name.split(".")
    reader = _Reader(module, user_modules)
    tokens: list[Token] = []
    for statement, index in module.definitions[first]:
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
                tokens += ["" if index is None else str(index), *(reader.node(node.value, {}) if node.value else ())]
    return tuple(tokens)


BUILTIN_TESTS = ("isinstance", "issubclass")
SKIPPED = {"ctx", "kind", "type_comment", "type_params", "type_ignores", "returns", "annotation", "simple"}


class _Reader:
    """Turns syntax of one module into tokens."""

    def __init__(self, module: _Module, user_modules: frozenset[str]) -> None:
        self.module, self.user_modules = module, user_modules

    def node(self, node: Any, scope: Scope) -> list[Token]:
        match node:
            case list():
                return [token for part in node for token in self.node(part, scope)]
            case ast.Name() | ast.Attribute() if (tokens := self.reference(node, scope)) is not None:
                return tokens
            case ast.Name(id=name):
                return [name]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return [node.name, *self.function(node, scope)]
            case ast.ClassDef():
                return [node.name, *self.type(node, "", scope)]
            case ast.Lambda():
                inner_scope = {**scope, **dict.fromkeys(_argument_names(node.args))}
                return ["Lambda", *self.node(node.args, scope), *self.node(node.body, inner_scope)]
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                variables = {n.id: None for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
                return self.fields(node, {**scope, **variables})
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Expr(value=ast.Constant()):
                return []
            case ast.Raise():
                return ["Raise"]
            case ast.Assert():
                return ["Assert", *self.node(node.test, scope)]
            case ast.If() if _is_type_checking(node.test):
                return self.node(node.orelse, scope)
            case ast.Expr(value=ast.Call(func=ast.Name() as function)) if (
                tokens := self.reference(function, scope)
            ) is not None and isinstance(tokens[0], Ref):
                return [CallStatement(f"{tokens[0]}()", self.fields(node, scope))]
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
        """Tokens of a plain or dotted name that is defined outside the function, else None."""
        attributes: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            attributes.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return None
        name = base.id
        if name in scope:
            target = scope[name]
        elif name in self.module.definitions:
            target = f"{self.module.name}.{name}"
        else:
            target = self.module.imports.get(name, name if hasattr(builtins, name) else None)
        if target is None:
            return None
        dotted_name = ".".join([target, *reversed(attributes)]).removeprefix(LAZY)
        definition, rest = _resolve(dotted_name, self.user_modules)
        return [".".join(rest)] if definition is None else [definition, *(f".{part}" for part in rest)]

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> list[Token]:
        """Tokens of a function without its name."""
        inner_scope = {**scope, **dict.fromkeys(_argument_names(node.args)), **_bound_names(node.body)}
        head = [*self.node(node.decorator_list, scope), *self.node(node.args, scope)]
        return [type(node).__name__, *head, "[", *self.node(node.body, inner_scope), "]"]

    def type(self, node: ast.ClassDef, name: str, scope: Scope) -> list[Token]:
        """Tokens of a class without its name. Methods do not see names of the class body."""
        head = self.node([*node.decorator_list, *node.bases, *node.keywords], scope)
        body = {**scope, **_bound_names(node.body)}
        tokens: list[Token] = ["ClassDef", *head, "["]
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                method = (statement.name, *self.function(statement, scope))
                tokens.append(Member(f"{name}.{statement.name}", method))
            else:
                tokens += self.node(statement, body)
        return [*tokens, "]"]


def _names(kind: ast.AST) -> list[Token]:
    """Last parts of the class names in an `isinstance` test."""
    if isinstance(kind, ast.Name | ast.Attribute):
        return [kind.id if isinstance(kind, ast.Name) else kind.attr]
    return [name for part in ast.iter_child_nodes(kind) for name in _names(part)]


def _argument_names(arguments: ast.arguments) -> list[str]:
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra)]


def _bound_names(body: Iterable[ast.stmt]) -> dict[str, str | None]:
    """Names that the statements of a function bind: variables and imports."""
    names: dict[str, str | None] = {}
    outer_names: set[str] = set()
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.setdefault(name, None)
                continue  # its body is another scope
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                continue
            case ast.Import() | ast.ImportFrom():
                names.update(_imported_names(node))
            case ast.Name(id=name, ctx=ast.Store()):
                names.setdefault(name, None)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.setdefault(name, None)
            case ast.Global(names=globals_) | ast.Nonlocal(names=globals_):
                outer_names.update(globals_)
        stack += ast.iter_child_nodes(node)
    return {name: target for name, target in names.items() if name not in outer_names}
