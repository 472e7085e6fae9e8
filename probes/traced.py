"""Jinja2 texts that say, piece by piece, what they rendered: their own words, or which fields.

Nothing is searched for in what came out. When a text is compiled, every expression in it is wrapped in a filter that
marks its value with the names that the expression reads, through loops, assignments and macros; the pieces then come
out of Jinja2's own stream one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import jinja2
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment

from probes.spanned import FIELD, SCALE, SpannedText

if TYPE_CHECKING:
    from collections.abc import Mapping

# What the template's author names and no item fills.
_OWN: Final = frozenset({SCALE})
# These collect what is inside them into one text before anything is written, so that pieces are lost.
_COLLECTING: Final = (nodes.FilterBlock, nodes.CallBlock, nodes.ScopedEvalContextModifier, nodes.EvalContextModifier)
_FILTER: Final = "probes_trace"


class _Traced(str):
    """A rendered expression; ``str()`` of it is itself, so that it comes through Jinja2's stream unharmed."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return self


def _trace(value: Any, names: tuple[str, ...]) -> _Traced:
    traced = _Traced(str(value))  # of an undefined name, this is where Jinja2 raises
    traced.names = names
    return traced


# StrictUndefined: a misspelt field must fail, not vanish. Sandboxed: templates travel with runs.
_ENVIRONMENT = SandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters[_FILTER] = _trace


class TracedTemplate:
    """A Jinja2 text, ready to be rendered.

    Args:
        source: The text.

    Raises:
        jinja2.TemplateSyntaxError: It does not parse.
    """

    def __init__(self, source: str) -> None:
        tree = _ENVIRONMENT.parse(source)
        origins = _origins(tree)
        collects = any(tree.find_all(_COLLECTING)) or any(loop.recursive for loop in tree.find_all(nodes.For))
        # Where pieces are lost, all of the text counts as what it may hold: better too much data than too little.
        self._whole = _names(tree, origins) if collects else ()
        for output in tree.find_all(nodes.Output):
            output.nodes = [_traced(node, _names(node, origins)) for node in output.nodes]
        self._compiled = _ENVIRONMENT.from_string(tree)

    def render(self, values: Mapping[str, Any]) -> SpannedText:
        """Render with values; whatever Jinja2 raises is raised."""
        pieces = list(self._compiled.generate(values))
        if self._whole:
            return SpannedText.of("".join(pieces), _part(self._whole, values))
        return SpannedText.joined(
            SpannedText.of(piece[:], _part(piece.names, values)) if isinstance(piece, _Traced) else piece
            for piece in pieces
        )


def _part(names: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """What an expression over some names is a part of; empty for the template's own words."""
    # Names that no value has are the template's own: loop variables, macros, functions of Jinja2.
    known = [name for name in names if name in values]
    if fields := [name for name in known if name not in _OWN]:
        return FIELD + "+".join(fields)
    return SCALE if known else ""


def _traced(node: nodes.Expr, names: tuple[str, ...]) -> nodes.Expr:
    if isinstance(node, nodes.TemplateData) or not names:
        return node
    return nodes.Filter(node, _FILTER, [nodes.Const(names)], [], None, None, lineno=node.lineno)


def _names(node: nodes.Node, origins: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Names that an expression reads, and those that local ones among them were made of."""
    found = [node] if isinstance(node, nodes.Name) else node.find_all(nodes.Name)
    read = {name.name for name in found if name.ctx == "load"}
    return tuple(sorted(read.union(*(origins.get(name, set()) for name in read))))


def _origins(tree: nodes.Template) -> dict[str, set[str]]:
    """Names that a template gives to values of its own, and all the names that these are made of."""
    made: list[tuple[set[str], list[nodes.Node]]] = []

    def targets(target: nodes.Node) -> set[str]:
        found = [target, *target.find_all((nodes.Name, nodes.NSRef))]
        return {name.name for name in found if isinstance(name, (nodes.Name, nodes.NSRef))}

    for assign in tree.find_all(nodes.Assign):
        made.append((targets(assign.target), [assign.node]))
    for block in tree.find_all(nodes.AssignBlock):
        made.append((targets(block.target), list(block.body)))
    for loop in tree.find_all(nodes.For):
        made.append((targets(loop.target) | {"loop"}, [loop.iter]))
    for scope in tree.find_all(nodes.With):
        made += [(targets(target), [value]) for target, value in zip(scope.targets, scope.values, strict=True)]
    for macro in tree.find_all(nodes.Macro):
        # What a macro shows of its arguments is named where it is called.
        made.append(({macro.name}, list(macro.body)))
    for call in tree.find_all(nodes.Call):
        # A method may put its arguments into the object that it belongs to, as a list's append does.
        made.append((targets(call.node), [*call.args, *(keyword.value for keyword in call.kwargs)]))
    origins: dict[str, set[str]] = {}
    while True:
        before = {name: set(found) for name, found in origins.items()}
        for names, sources in made:
            for name in names:
                origins.setdefault(name, set()).update(*(_names(source, origins) for source in sources))
        if origins == before:
            return origins
