"""A tool behind the gate: its declaration, its schema, and its arguments as they are shown, bound and passed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.tools import BaseTool, InjectedToolCallId, Tool
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .calls import INVALID_CALL
from .canonical import digest
from .errors import NeedsError, RefusedError
from .needs import Needs, needs_of

__all__ = ["GuardedTool"]


@dataclass(frozen=True, slots=True)
class GuardedTool:
    """A tool with what it declares, a digest of its arguments' schema, and the names that a model may use.

    Args:
        names: the arguments that a model may give; ``None``: any but the injected ones.
        schema: what validates the arguments: a model, or a JSON schema that nothing validates against.
        injected: arguments that are the runtime's to give.
        call_id: those of them in which LangChain puts the id of the call.
    """

    tool: BaseTool
    needs: Needs
    schema_digest: str
    names: frozenset[str] | None
    schema: type[BaseModel] | dict[str, Any]
    injected: frozenset[str] = frozenset()
    call_id: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tool: BaseTool, *, injects: bool = False) -> GuardedTool:
        """
        Args:
            injects: what runs the tool gives it the arguments that are the runtime's, as ``ToolNode`` does.

        Raises:
            NeedsError: the tool cannot be called through a gate.
        """
        if tool.name == INVALID_CALL:
            raise NeedsError(f"A tool is called {INVALID_CALL!r}", "Give it another name; this one has a meaning here")
        schema = _schema(tool)
        if isinstance(schema, dict):
            of_schema = digest({"name": tool.name, "schema": schema})
            return cls(tool, needs_of(tool), of_schema, frozenset(schema.get("properties", {})), schema)
        if injects:
            schema = _without_injected(tool, schema)
        injected = _injected(tool, schema)
        call_id = _call_id(tool, schema, injected)
        of_schema = digest({"name": tool.name, "schema": schema.model_json_schema()})
        names = frozenset(_spelling(n, f) for n, f in schema.model_fields.items() if n not in injected)
        anything = schema.model_config.get("extra") == "allow"
        return cls(tool, needs_of(tool), of_schema, None if anything else names, schema, injected, call_id)

    def validated(self, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
        """The arguments as the tool will see them.

        Raises:
            RefusedError: unknown names or values that do not fit. Values are not repeated: they may be anything.
        """
        if unknown := (set(arguments) & self.injected if self.names is None else set(arguments) - self.names):
            # A token, a user id or a host that a model was talked into passing has no parameter to land in, and one that
            # the runtime is to inject is not a model's to choose (E15).
            raise RefusedError(f"{self.tool.name} has no argument {', '.join(sorted(map(str, unknown)))}")
        schema = self.schema
        if isinstance(schema, dict):
            if missing := set(schema.get("required", ())) - set(arguments):
                raise RefusedError(f"{self.tool.name} needs {', '.join(sorted(missing))}")
            return dict(arguments)
        values = self._validated(schema, arguments, call_id)
        if self._validated(schema, self.spelled(values), call_id) != values:
            # LangChain validates again. A validator that adds a fee, or turns dollars into cents, would do it twice, and
            # what runs would not be what was shown (B26).
            raise RefusedError(
                f"{self.tool.name} changes its arguments each time that they are validated",
                "Let its validators leave alone what they have made",
            )
        return values

    def _validated(self, schema: type[BaseModel], arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
        try:
            model = schema.model_validate({**arguments, **dict.fromkeys(self.call_id, call_id)})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RefusedError(f"{self.tool.name}: {where}: {first['msg']}") from None
        values = {name: getattr(model, name) for name in type(model).model_fields if name not in self.injected}
        return values | (model.model_extra or {})

    def spelled(self, validated: Mapping[str, Any]) -> dict[str, Any]:
        """Validated arguments as the tool is invoked with them: by alias, where it has some."""
        fields = {} if isinstance(self.schema, dict) else self.schema.model_fields
        return {_spelling(n, fields[n]) if n in fields else n: value for n, value in validated.items()}


def _schema(tool: BaseTool) -> type[BaseModel] | dict[str, Any]:
    if isinstance(tool.args_schema, dict):
        return tool.args_schema
    if isinstance(tool, Tool) and tool.args_schema is None:  # of the old kind: one string, which models call this
        return {"type": "object", "properties": {"__arg1": {"type": "string"}}, "required": ["__arg1"]}
    model = tool.get_input_schema()
    if not issubclass(model, BaseModel):
        raise NeedsError(f"{tool.name} has a schema of pydantic 1", "Write its arguments with pydantic 2")
    return model


def _spelling(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


def _injected(tool: BaseTool, schema: type[BaseModel]) -> frozenset[str]:
    shown: Mapping[str, Any] = getattr(tool.tool_call_schema, "model_fields", {})
    return frozenset(schema.model_fields) - frozenset(shown)


def _without_injected(tool: BaseTool, schema: type[BaseModel]) -> type[BaseModel]:
    """The schema that models are shown, where the tool's own can be validated against only with what is injected."""
    required = {name for name in _injected(tool, schema) if schema.model_fields[name].is_required()}
    if required <= _call_ids(schema, required):
        return schema
    made = schema.__pydantic_decorators__
    if made.field_validators or made.model_validators or made.validators or made.root_validators:
        # They would not run here and would run there: what was shown would not bound what runs (B26).
        raise NeedsError(
            f"{tool.name} has validators, and wants {min(required)!r} to be injected",
            "Check the arguments in the tool, or take what is injected from get_runtime()",
        )
    return cast("type[BaseModel]", tool.tool_call_schema)


def _call_ids(schema: type[BaseModel], names: Iterable[str]) -> set[str]:
    def marked(name: str) -> bool:
        found = schema.model_fields[name].metadata
        return any(m is InjectedToolCallId or isinstance(m, InjectedToolCallId) for m in found)

    return {name for name in names if marked(name)}


def _call_id(tool: BaseTool, schema: type[BaseModel], injected: frozenset[str]) -> frozenset[str]:
    found = _call_ids(schema, injected)
    for name in sorted(injected - found):
        if schema.model_fields[name].is_required():
            raise NeedsError(
                f"{tool.name} wants {name!r} to be injected, which the gate does not do",
                "Give it a default, or bind it when the tool is made",
            )
    return frozenset(found)
