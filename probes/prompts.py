"""Templates: Jinja2 text for the system turn, the user turn, few-shot examples and the start of the answer.

What a template makes of an item goes through the model's own chat template in ``probes.rendering``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from probes.errors import KindError, TemplateError, did_you_mean
from probes.sources import describe
from probes.spanned import FIELD, SCALE, SHOT, SpannedText
from probes.traced import TracedTemplate

if TYPE_CHECKING:
    from probes.items import Item
    from probes.scale import Scale


@dataclass(frozen=True)
class Shot:
    """One few-shot example: the fields of an item and the answer a good judge gives."""

    fields: Mapping[str, str]
    answer: str


@dataclass(frozen=True)
class Turn:
    """One turn of a chat, and what its stretches came from."""

    role: str
    content: SpannedText


@dataclass(frozen=True)
class Template:
    """How an item becomes chat messages.

    Attributes:
        name: For provenance and messages.
        user: Jinja2 text of the user turn. It sees the item's fields, ``criterion`` and ``scale``.
        system: Jinja2 text of the system turn; empty for none.
        shots: Few-shot examples, each a user turn and an assistant turn.
        prefill: Start of the assistant's answer, for example ``Score:``.
        separator: Text between the prefill and the label; a space after a prefill that does not end in
            white space, else nothing, unless given.
        pair: Names of two fields that hold the responses of a pair; each item is then shown in both orders.
        first_label: For pairs, the label which says that the response shown first is better.
        chat_options: Passed on to the model's chat template (``enable_thinking: false`` for Qwen3).
        plain: The user text goes to the model as it stands, without its chat template (published task prompts).
        control_tokens: Texts of items, examples and choices may hold control tokens of the chat, such as
            ``<|im_end|>``. Off unless asked for: they are then tokenised as the text that they are.

    Raises:
        TemplateError: The Jinja2 text does not parse.
    """

    name: str
    user: str
    system: str = ""
    shots: tuple[Shot, ...] = ()
    prefill: str = ""
    separator: str | None = None
    pair: tuple[str, str] | None = None
    first_label: str = ""
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    control_tokens: bool = False

    def __post_init__(self) -> None:
        for part in ("system", "user", "prefill"):
            try:
                TracedTemplate(getattr(self, part))
            except jinja2.TemplateSyntaxError as error:
                raise TemplateError(
                    f"template {self.name!r}, {part}, line {error.lineno}: {error.message}; correct the Jinja2 text"
                ) from None
        if not self.user.strip():
            raise TemplateError(f"template {self.name!r} has no user text; add a `user:` entry")

    @property
    def answer_separator(self) -> str:
        """What stands between the prefill and the label."""
        if self.separator is not None:
            return self.separator
        return " " if self.prefill and not self.prefill[-1].isspace() else ""

    def messages(self, item: Item, scale: Scale) -> tuple[list[dict[str, str]], str]:
        """Chat messages for an item, and the rendered prefill that follows them.

        Raises:
            TemplateError: The template names a field that the item lacks.
        """
        turns, prefill = self.turns(item, scale)
        return [{"role": turn.role, "content": turn.content.text} for turn in turns], prefill.text

    def turns(self, item: Item, scale: Scale) -> tuple[list[Turn], SpannedText]:
        """The same, with what every stretch of them came from: a system turn if there is one, shots, the item."""
        turns = []
        if self.system:
            turns.append(Turn("system", self._render_for("system", item, scale).strip()))
        turns += self._shot_turns(item.criterion, scale)
        turns.append(Turn("user", self.render_user(item, scale).strip()))
        return turns, self.render_prefill(item, scale)

    def render_user(self, item: Item, scale: Scale) -> SpannedText:
        """The user text of an item, as it stands."""
        return self._render_for("user", item, scale)

    def render_prefill(self, item: Item, scale: Scale) -> SpannedText:
        """The start of the answer to an item."""
        return self._render_for("prefill", item, scale)

    def _render_for(self, part: str, item: Item, scale: Scale) -> SpannedText:
        values = {**item.fields, "criterion": item.criterion, "scale": scale}
        return self._render(part, values, f"item {item.id!r}")

    def _shot_turns(self, criterion: str, scale: Scale) -> list[Turn]:
        """Turns of the few-shot examples, rendered once a criterion."""
        if (criterion, scale) not in self._shot_cache:
            turns = []
            for number, shot in enumerate(self.shots, start=1):
                # A shot sees its own fields only: an item's context must never stand in for a missing one, and
                # equal shots are what makes the prompts of a run share their beginning.
                values = {"criterion": criterion, "scale": scale, **shot.fields}
                where = f"few-shot example {number}"
                answer = self._render("prefill", values, where) + self.answer_separator
                turns.append(Turn("user", self._render("user", values, where).strip()))
                turns.append(Turn("assistant", answer + SpannedText.of(shot.answer, SHOT + "answer")))
            self._shot_cache[criterion, scale] = [
                Turn(turn.role, turn.content.renamed(FIELD, SHOT).renamed(SCALE, SHOT + SCALE)) for turn in turns
            ]
        return self._shot_cache[criterion, scale]

    @cached_property
    def _shot_cache(self) -> dict[tuple[str, Scale], list[Turn]]:
        return {}

    def _render(self, part: str, values: Mapping[str, Any], where: str) -> SpannedText:
        try:
            return self._compiled[part].render(values)
        except jinja2.UndefinedError as error:
            raise TemplateError(
                f"template {self.name!r}, {part}, at {where}: {error.message}; there are: {', '.join(sorted(values))}"
                f"{_advice(str(error.message), values, where)}"
            ) from None
        except Exception as error:
            raise TemplateError(
                f"template {self.name!r}, {part}, at {where}: {error}; correct the Jinja2 text"
            ) from error

    @cached_property
    def _compiled(self) -> dict[str, TracedTemplate]:
        return {part: TracedTemplate(getattr(self, part)) for part in ("system", "user", "prefill")}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``from_dict`` reads it back."""
        return {
            "name": self.name,
            "system": self.system,
            "user": self.user,
            "shots": [{"fields": dict(shot.fields), "answer": shot.answer} for shot in self.shots],
            "prefill": self.prefill,
            "separator": self.separator,
            "pair": list(self.pair) if self.pair else None,
            "first_label": self.first_label,
            "chat_options": dict(self.chat_options),
            # Only where it is so, which leaves the hashes of all other judges as they are.
            **({"plain": True} if self.plain else {}),
            **({"control_tokens": True} if self.control_tokens else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str = "template") -> Template:
        """Build a template from plain data (a parsed YAML file).

        Raises:
            TemplateError: An entry is missing, unknown or of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise TemplateError(
                f"template {name!r}: expected entries such as `user:`, got {describe(data)}; write `user: |-`, and the "
                "text of the user turn indented below it"
            )
        name = str(data.get("name", name))
        known = {"name", "system", "user", "shots", "prefill", "separator", "pair", "first_label", "chat_options"}
        known |= {"plain", "control_tokens"}
        if unknown := sorted(set(data) - known):
            raise TemplateError(
                f"template {name!r} has unknown entries {', '.join(map(str, unknown))}"
                f"{did_you_mean(unknown[0], known)}; known: {', '.join(sorted(known))}"
            )
        for part in ("system", "user", "prefill", "separator"):
            if not isinstance(data.get(part) or "", str):
                raise TemplateError(f"template {name!r}: `{part}` must be text, got {data[part]!r}")
        pair = data.get("pair")
        if pair is not None and not (
            isinstance(pair, (list, tuple)) and len(set(pair)) == 2 and all(isinstance(name, str) for name in pair)
        ):
            raise TemplateError(f"template {name!r}: `pair` must name two different fields, got {pair!r}")
        first_label = str(data.get("first_label") or "")
        if bool(pair) != bool(first_label):
            raise TemplateError(
                f"template {name!r}: `pair` (two fields) and `first_label` (the label which says that the response "
                "shown first is better) go together; give both or neither"
            )
        shots = []
        for number, shot in enumerate(data.get("shots") or [], start=1):
            if not isinstance(shot, Mapping) or set(shot) != {"fields", "answer"}:
                raise TemplateError(
                    f"template {name!r}, few-shot example {number}: give `fields:` (name: text) and `answer:`"
                )
            where = f"template {name!r}, few-shot example {number}"
            if not isinstance(shot["fields"], Mapping):
                raise TemplateError(f"{where}: `fields:` must be names with texts, got {shot['fields']!r}")
            fields = {str(key): _shot_text(value, f"{where}, {key}") for key, value in shot["fields"].items()}
            shots.append(Shot(fields, _shot_text(shot["answer"], f"{where}, answer")))
        plain = data.get("plain", False)
        if not isinstance(plain, bool) or (plain and (data.get("system") or shots)):
            raise TemplateError(
                f"template {name!r}: `plain` is true or false, and a plain template has a user text and a prefill only"
            )
        control_tokens = data.get("control_tokens", False)
        if not isinstance(control_tokens, bool):
            raise TemplateError(f"template {name!r}: `control_tokens` is true or false, got {control_tokens!r}")
        options = dict(data.get("chat_options") or {})
        try:
            json.dumps(options)
        except TypeError as error:
            raise TemplateError(f"template {name!r}, chat_options: {error}; put quotes around the value") from None
        return cls(
            name=name,
            user=(data.get("user") or "").strip(),
            system=(data.get("system") or "").strip(),
            shots=tuple(shots),
            prefill=data.get("prefill") or "",
            separator=data.get("separator"),
            pair=tuple(pair) if pair else None,
            first_label=first_label,
            chat_options=options,
            plain=plain,
            control_tokens=control_tokens,
        )


def _advice(problem: str, values: Mapping[str, Any], where: str) -> str:
    """What to do about a name that a template uses and an item does not have."""
    undefined = re.fullmatch(r"'(\w+)' is undefined", problem)
    if undefined is None:
        return "; correct the template"
    name = undefined[1]
    if not where.startswith("item"):
        return f"; give {where} a field {name}, or correct the template"
    column = f"fields={{{name!r}: COLUMN}} (--field {name}=COLUMN)"
    near = did_you_mean(name, values.keys() - {"criterion", "scale"})
    return f"{near}; correct the template, or name the column that holds it: {column}"


def _shot_text(value: Any, where: str) -> str:
    # YAML reads an unquoted yes or no as a truth value, and the model would be shown True.
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise TemplateError(f"{where}: {value!r} is not text; put quotes around it")


def template_names() -> list[str]:
    """Names of the templates that come with the package."""
    folder = resources.files("probes") / "templates"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_template(source: str | Path | Template) -> Template:
    """Load a template by name (see ``template_names``) or from a YAML file.

    Raises:
        TemplateError: There is no such template or file, or it is not well formed.
    """
    if isinstance(source, Template):
        return source
    if not isinstance(source, str | Path):
        raise KindError(
            f"template: expected a name, a YAML file or a Template, got {source!r}; probes.Template.from_dict makes a "
            "Template of a dict"
        )
    path = Path(source)
    if str(source) in template_names():
        text = (resources.files("probes") / "templates" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise TemplateError(
            f"no template {str(source)!r}{did_you_mean(source, template_names())}: give a YAML file or one of "
            f"{', '.join(template_names())}"
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TemplateError(f"{source}{yaml_problem(error)}; correct the file") from None
    return Template.from_dict(data, name=path.stem)


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong in a YAML file, behind its name: ``, line 3, column 1: not valid YAML (...)``."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{where}: not valid YAML ({problem or ' '.join(str(error).split())})"
