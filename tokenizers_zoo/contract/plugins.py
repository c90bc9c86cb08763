"""Installed plugins: listed from entry points without importing them, loaded one by one, checked, and called."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import numpy as np
import pluggy

from tokenizers_zoo.contract.hookspecs import CONTRACT, PROJECT, ModalityHooks, Score, SourceHooks, hookimpl
from tokenizers_zoo.contract.spec import EXACT, ModalitySpec
from tokenizers_zoo.contract.validation import array_bytes, array_of, describe, json_of, text_of, values_equal
from tokenizers_zoo.errors import (
    CheckpointError,
    InvalidValueError,
    MachineError,
    OneLineError,
    PluginError,
    is_of_the_machine,
)
from tokenizers_zoo.records.config import Settings

if TYPE_CHECKING:
    from tokenizers_zoo.files.published import PublishedCheckpoint

MODALITIES, SOURCES, WRAPPERS = "tokenizers_zoo", "tokenizers_zoo.sources", "tokenizers_zoo.wrappers"
EXTENSIONS = {"array": "npy", "text": "txt", "object": "json"}
MOST_CANDIDATES = 32
BYTE_ORDER_MARK = "\ufeff"
HOOKS = {
    name: [argument for argument in inspect.signature(function).parameters if argument != "self"]
    for owner in (ModalityHooks, SourceHooks)
    for name, function in vars(owner).items()
    if not name.startswith("_")
}
"""The arguments of each hook."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A distribution's claim to a name in an entry-point group."""

    name: str
    group: str
    distribution: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} ({self.entry_point.value})"


def installed_claims() -> dict[str, dict[str, list[Claim]]]:
    """Return all claims by group and name, in a fixed order. Reads metadata only."""
    claims_by_group: dict[str, dict[str, list[Claim]]] = {MODALITIES: {}, SOURCES: {}, WRAPPERS: {}}
    installed = entry_points()
    named = functools.cache(lambda dist: f"{dist.name} {dist.version}" if dist else "an unknown distribution")
    for group, names in claims_by_group.items():
        for entry_point in installed.select(group=group):
            distribution = named(entry_point.dist)
            claim = Claim(name=entry_point.name, group=group, distribution=distribution, entry_point=entry_point)
            names.setdefault(entry_point.name, []).append(claim)
        for claims in names.values():
            claims.sort(key=lambda claim: (claim.distribution, claim.entry_point.value))
    return claims_by_group


def error_text(error: BaseException) -> str:
    """Return an exception as one line, with its place in the plugin's source."""
    skipped = ("importlib", "pluggy", __file__)  # files of the frames between our code and the plugin
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(name in f.filename for name in skipped)]
    location = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    unwritten = frames and isinstance(error, NotImplementedError)
    text = " ".join(str(error).split()) or (f"{frames[-1].name} is to be written" if unwritten else "")
    return f"{type(error).__name__}{': ' + text if text else ''}{location}"


def call_error(call: str, error: BaseException) -> OneLineError:
    """Return the error to raise for an unexpected exception: MachineError if memory ran out, else PluginError."""
    if is_of_the_machine(error):
        return MachineError(
            f"{call} ran out of memory, or its device failed: {error_text(error)}; what was finished is kept: free "
            "some memory, or ask for smaller batches, fewer workers or another device, and run the same command again"
        )
    return PluginError(f"{call} failed: {error_text(error)}")


def check_hooks(pm: pluggy.PluginManager, plugin: Any, claim: Claim, required: Iterable[str]) -> frozenset[str]:
    """Return the hooks that a plugin implements.

    Raises PluginError that lists all missing, misspelt and mismatched ones.
    """
    version = getattr(plugin, "contract", 1)
    if version != CONTRACT:
        older = isinstance(version, int) and version < CONTRACT
        update = claim.distribution.partition(" ")[0] if older else "tokenizers-zoo"
        mismatch = f"was made for version {version} of the plugin contract, this is version {CONTRACT}"
        raise PluginError(f"{claim.name}: {claim} {mismatch}; pip install --upgrade {update}")
    implemented, wrapped, errors = set[str](), set[str](), list[str]()
    for attribute in dir(plugin):
        options = pm.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        (wrapped if options.get("wrapper") or options.get("hookwrapper") else implemented).add(attribute)
        if attribute in HOOKS:
            errors += _signature_problems(getattr(plugin, attribute), attribute)
        else:
            close = difflib.get_close_matches(attribute, sorted(HOOKS), n=1)
            offer = f"did you mean {close[0]!r}?" if close else f"known hooks: {', '.join(sorted(HOOKS))}"
            errors.append(f"there is no hook {attribute!r}; {offer}")
    if claim.group == WRAPPERS:
        errors += [f"{hook} has to be a wrapper: @hookimpl(wrapper=True)" for hook in sorted(implemented)]
        errors += [] if implemented or wrapped else ["it wraps no hook"]
    for hook in required:
        if hook not in implemented:
            unmarked = callable(getattr(plugin, hook, None)) and hook not in wrapped
            errors.append(f"{hook} is {'not marked with @tokenizers_zoo.hookimpl' if unmarked else 'missing'}")
    if errors:
        raise PluginError(f"{claim.name}: {claim} breaks the plugin contract: {'; '.join(errors)}")
    return frozenset(implemented)


def _signature_problems(method: Any, hook: str) -> Iterator[str]:
    for name, parameter in inspect.signature(method).parameters.items():
        named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
        if name not in HOOKS[hook] or not named:
            signature = f"{hook}({', '.join(HOOKS[hook])})"
            yield f"{hook} takes {parameter}, expected arguments of {signature} by name, without defaults"


class Defaults:
    """The default plugin: implements the optional hooks for all plugins that leave them out."""

    @hookimpl
    def read_value(self, data: bytes, extension: str, spec: ModalitySpec) -> Any:
        """Read `.npy`, `.txt` (UTF-8) or `.json` bytes, by the kind of value.

        The last line feed of a `.txt` is not part of the text, and Windows line ends become line feeds.
        """
        kind = spec.value.kind
        if extension != EXTENSIONS[kind]:
            raise InvalidValueError(f"expected a .{EXTENSIONS[kind]} file, got .{extension}")
        try:
            if kind == "array":
                return array_of(data)
            return text_of(data).replace("\r\n", "\n").removesuffix("\n") if kind == "text" else json_of(data)
        except (ValueError, OSError) as error:
            raise InvalidValueError(f"damaged .{extension} file: {error}") from error

    @hookimpl
    def write_value(self, value: Any, spec: ModalitySpec) -> tuple[bytes, str]:
        """Write a value as `read_value` reads it. Raises InvalidValueError for a text with a carriage return."""
        kind = spec.value.kind
        if kind == "array":
            return array_bytes(np.asarray(value, order="C")), EXTENSIONS[kind]
        if kind == "text" and "\r" in value:
            raise InvalidValueError("a text with a carriage return has no file; end its lines with line feeds alone")
        text = f"{value}\n" if kind == "text" else json.dumps(value, ensure_ascii=False, allow_nan=False)
        mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""  # reading removes the first one
        return f"{mark}{text}".encode(), EXTENSIONS[kind]

    @hookimpl
    def example_files(self) -> Mapping[str, tuple[bytes, str]]:
        return {}

    @hookimpl
    def transform(self, value: Any) -> Any:
        return value

    @hookimpl
    def render(self, value: Any, spec: ModalitySpec) -> str:
        if spec.value.kind == "array":
            return describe(value)
        return value if spec.value.kind == "text" else json.dumps(value, ensure_ascii=False, indent=1)

    @hookimpl
    def score(self, predicted: Sequence[Any], target: Sequence[Any]) -> Mapping[str, float]:
        return {EXACT.name: float(np.mean([values_equal(p, t) for p, t in zip(predicted, target, strict=True)]))}

    @hookimpl
    def constant_baseline(self, values: Sequence[Any], spec: ModalitySpec, score: Score) -> Any:
        """Return the best of up to 32 evenly spaced `values` by the main metric, the first of equals."""
        candidates = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_CANDIDATES)).round().astype(int))
        scores = [score([values[index]] * len(values), values)[spec.metrics[0].name] for index in candidates]
        return values[candidates[spec.metrics[0].best(scores)]]

    @hookimpl
    def vocabulary_tokens(self) -> Sequence[str]:
        return ()

    @hookimpl
    def vocabulary_texts(self) -> Sequence[str]:
        return ()

    @hookimpl
    def single_ids(self) -> Sequence[int]:
        return ()

    @hookimpl
    def import_published(self, settings: Settings) -> Mapping[str, Any]:
        raise CheckpointError(f"{settings.name}: has no published counterpart: its plugin has no import_published")

    @hookimpl
    def export_published(self, settings: Settings) -> PublishedCheckpoint:
        raise CheckpointError(f"{settings.name}: has no published counterpart: its plugin has no export_published")


@dataclass(frozen=True, eq=False)
class Plugin:
    """A loaded plugin: its claim, its object, and the hooks that it implements itself."""

    claim: Claim
    object: Any
    hooks: frozenset[str]
    plugins: Plugins

    def call_raw(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call a hook, or the default for it, inside every wrapper, for the instance `name`.

        Every exception passes; an InvalidValueError gets the name.
        """
        implementation = self.object if hook in self.hooks else self.plugins.defaults
        excluded = self.plugins.exclusive - {implementation}
        token = _CALLED.set(self)
        try:
            return self.plugins.pm.subset_hook_caller(hook, remove_plugins=excluded)(**arguments)
        except InvalidValueError as error:
            named = str(error).startswith(f"{name}:")
            raise error if named else InvalidValueError(f"{name}: {error}") from error
        finally:
            _CALLED.reset(token)

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call a hook for the instance `name`. Our own errors pass; others become PluginError or MachineError."""
        try:
            result = self.call_raw(name, hook, **arguments)
        except OneLineError:
            raise
        except (Exception, SystemExit) as error:
            raise call_error(f"{name}: {hook} of {self.claim}", error) from error
        if result is None:
            raise PluginError(f"{name}: {hook} of {self.claim} gave None")
        return result


_CALLED: ContextVar[Plugin | None] = ContextVar("called", default=None)
"""The plugin whose hook runs."""


def hook_calls(plugin: Any, settings: Settings) -> Callable[..., Any]:
    """Return `call(hook, **arguments)`: a hook of `plugin` calls its other hooks with it, inside every wrapper.

    A plugin object that a script uses without a registry has no wrappers.
    """
    called = _CALLED.get()
    if called is None or called.object is not plugin:
        location = EntryPoint(settings.name, type(plugin).__qualname__, MODALITIES)
        claim = Claim(name=settings.name, group=MODALITIES, distribution="no distribution", entry_point=location)
        called = Plugins().add(claim, plugin, ())
    return functools.partial(called.call, settings.name, settings=settings)


class Plugins:
    """The plugin manager and the plugins loaded so far; each is loaded by name, once, and checked."""

    def __init__(self) -> None:
        self.pm = pluggy.PluginManager(PROJECT)
        self.pm.add_hookspecs(ModalityHooks)
        self.pm.add_hookspecs(SourceHooks)
        self.defaults = Defaults()
        self.pm.register(self.defaults)
        self.exclusive: set[Any] = {self.defaults}
        """Plugins whose hooks are called one at a time."""
        self._loaded: dict[tuple[str, str], Plugin] = {}

    @functools.cached_property
    def claims(self) -> dict[str, dict[str, list[Claim]]]:
        """All claims by group and name; `Zoo` reads them when it opens."""
        return installed_claims()

    def load(self, group: str, name: str, required: Iterable[str]) -> Plugin:
        """Load an installed plugin, after all wrappers. Raises PluginError, also if several distributions have it."""
        if group != WRAPPERS:
            _ = self.wrapper_errors
        if (group, name) not in self._loaded:
            claim, *rivals = self.claims[group][name]
            if rivals:
                owners = " and ".join(f"{owner.distribution} ({owner.entry_point.value})" for owner in (claim, *rivals))
                raise PluginError(f"{name}: claimed by {owners}; uninstall one, or ask its author to rename it")
            try:
                plugin = claim.entry_point.load()
            except (Exception, SystemExit) as error:
                raise PluginError(f"{name}: {claim} fails to import: {error_text(error)}") from error
            if inspect.isclass(plugin):
                raise PluginError(f"{name}: {claim} is a class; point the entry point at an instance of it")
            self._loaded[group, name] = self.add(claim, plugin, required)
        return self._loaded[group, name]

    def add(self, claim: Claim, plugin: Any, required: Iterable[str]) -> Plugin:
        """Check a plugin object and register it. Raises PluginError."""
        hooks = check_hooks(self.pm, plugin, claim, required)
        try:
            if claim.group != WRAPPERS:
                self.exclusive.add(plugin)
            if not self.pm.is_registered(plugin):  # one object may stand behind two names
                self.pm.register(plugin, name=f"{claim.group}:{claim.name}")
        except Exception as error:
            raise PluginError(f"{claim.name}: {claim} is refused by pluggy: {error_text(error)}") from error
        return Plugin(claim, plugin, hooks, self)

    @functools.cached_property
    def wrapper_errors(self) -> dict[str, str]:
        """Load every installed wrapper; the errors by name."""
        errors = {}
        for name in sorted(self.claims[WRAPPERS]):
            try:
                self.load(WRAPPERS, name, ())
            except PluginError as error:
                errors[f"wrapper {name}"] = str(error)
        return errors
