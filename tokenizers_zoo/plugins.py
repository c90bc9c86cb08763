"""What is installed: entry points, read without importing anything; and plugins, loaded one by one and checked."""

from __future__ import annotations

import difflib
import functools
import inspect
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from tokenizers_zoo.errors import MachineError, OneLineError, PluginError, is_of_the_machine
from tokenizers_zoo.hookspecs import PROJECT, ModalityHooks, SourceHooks

MODALITIES, SOURCES, WRAPPERS = "tokenizers_zoo", "tokenizers_zoo.sources", "tokenizers_zoo.wrappers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One distribution's claim to one name in one entry point group."""

    name: str
    group: str
    distribution: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} ({self.entry_point.value})"


def installed_claims() -> dict[str, dict[str, list[Claim]]]:
    """All claims by group and name, in a fixed order; reads metadata only."""
    found: dict[str, dict[str, list[Claim]]] = {MODALITIES: {}, SOURCES: {}, WRAPPERS: {}}
    everything = entry_points()
    for group, names in found.items():
        for entry_point in everything.select(group=group):
            dist = entry_point.dist
            distribution = f"{dist.name} {dist.version}" if dist else "an unknown distribution"
            claim = Claim(name=entry_point.name, group=group, distribution=distribution, entry_point=entry_point)
            names.setdefault(entry_point.name, []).append(claim)
        for claims in names.values():
            claims.sort(key=lambda claim: (claim.distribution, claim.entry_point.value))
    return found


def the_claim(claims: list[Claim]) -> Claim:
    """The only claim to a name. Raises PluginError naming the distributions where there are more."""
    if len(claims) > 1:
        owners = " and ".join(f"{claim.distribution} ({claim.entry_point.value})" for claim in claims)
        raise PluginError(f"{claims[0].name}: claimed by {owners}; uninstall one, or ask its author to rename it")
    return claims[0]


def reason(error: BaseException) -> str:
    """An exception in one line, with the place in the plugin's source where it was raised, if it got that far."""
    between = ("importlib", "pluggy", __file__)  # what lies between this project and the plugin
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(name in f.filename for name in between)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    unwritten = frames and isinstance(error, NotImplementedError)
    text = " ".join(str(error).split()) or (f"{frames[-1].name} is to be written" if unwritten else "")
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"


def failed(what: str, error: BaseException) -> OneLineError:
    """What to raise for an error that is not told in one line: MachineError for want of memory, else PluginError."""
    if is_of_the_machine(error):
        return MachineError(
            f"{what} ran out of memory, or its device failed: {reason(error)}; what was finished is kept: free some "
            "memory, or ask for smaller batches, fewer workers or another device, and run the same command again"
        )
    return PluginError(f"{what} failed: {reason(error)}")


def load_object(claim: Claim) -> Any:
    """Import a claim's entry point. Raises PluginError for whatever goes wrong, and for what pluggy cannot hold."""
    try:
        plugin = claim.entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{claim.name}: {claim} fails to import: {reason(error)}") from error
    if inspect.isclass(plugin):
        raise PluginError(f"{claim.name}: {claim} is a class; point the entry point at an instance of it")
    try:
        hash(plugin)
    except TypeError:
        problem = "cannot be hashed, which pluggy needs (a dataclass needs frozen=True or eq=False)"
        raise PluginError(f"{claim.name}: {claim} {problem}") from None
    return plugin


class Manager(pluggy.PluginManager):
    """pluggy's, but for the attributes that every object has: looking for hooks among them takes half of the time."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """What `hookimpl` says of an attribute; None where that is no hook."""
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """One hook that a plugin implements: under which spec name, whether as a wrapper, and what is wrong with it."""

    hook: str
    wrapper: bool
    problem: str | None


def implementations(pm: pluggy.PluginManager, plugin: Any, specs: Iterable[type]) -> list[Implementation]:
    """The hooks that `plugin` marks with hookimpl, each compared with its hookspec in `specs`."""
    known = {name: function for spec in specs for name, function in vars(spec).items() if not name.startswith("_")}
    found = []
    for attribute in dir(plugin):
        options = pm.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        hook = options.get("specname") or attribute
        wrapper = bool(options.get("wrapper") or options.get("hookwrapper"))
        problem: str | None
        if hook in known and hook != attribute and not wrapper:
            problem = (
                f"{attribute} has specname={hook!r}; name the function {hook}"  # callers are restricted by that name
            )
        elif hook in known:
            problem = _signature_problem(getattr(plugin, attribute), hook, known[hook])
        elif options.get("optionalhook"):
            continue
        else:
            close = difflib.get_close_matches(hook, sorted(known), n=1)
            offer = f"did you mean {close[0]!r}?" if close else f"known hooks: {', '.join(sorted(known))}"
            problem = f"there is no hook {hook!r}; {offer}"
        found.append(Implementation(hook=hook, wrapper=wrapper, problem=problem))
    return found


@functools.cache
def _parameters(spec: Any) -> list[str]:
    return [name for name in inspect.signature(spec).parameters if name != "self"]


def _signature_problem(method: Any, hook: str, spec: Any) -> str | None:
    allowed = _parameters(spec)
    for name, parameter in inspect.signature(method).parameters.items():
        signature = f"{hook}({', '.join(allowed)})"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            return f"{hook} takes {parameter}, which is never passed; take arguments of {signature} by name"
        if name not in allowed:
            return f"{hook} takes {name!r}, which {signature} does not give"
        if parameter.default is not parameter.empty:
            return f"{hook} gives {name!r} a default, so it is never passed; remove the default"
    return None


def check_hooks(pm: pluggy.PluginManager, plugin: Any, claim: Claim, required: Iterable[str]) -> frozenset[str]:
    """The hooks that a plugin implements. Raises PluginError listing all missing, misspelt and mismatched ones."""
    try:
        found = implementations(pm, plugin, (ModalityHooks, SourceHooks))
    except Exception as error:
        raise PluginError(f"{claim.name}: {claim} cannot be inspected: {reason(error)}") from error
    problems = [item.problem for item in found if item.problem]
    own = frozenset(item.hook for item in found if not item.wrapper)
    if claim.group == WRAPPERS:
        problems += [f"{hook} has to be a wrapper: @hookimpl(wrapper=True)" for hook in sorted(own)]
        if not found:
            problems.append("it wraps no hook")
    for hook in required:
        if hook not in own:
            unmarked = callable(getattr(plugin, hook, None)) and not any(item.hook == hook for item in found)
            problems.append(f"{hook} is {'not marked with @tokenizers_zoo.hookimpl' if unmarked else 'missing'}")
    if problems:
        raise PluginError(f"{claim.name}: {claim} breaks the plugin contract: {'; '.join(problems)}")
    return own


class Plugins:
    """The plugin manager and the plugin objects loaded so far; each is loaded by name, once, and checked."""

    def __init__(self) -> None:
        self.claims = installed_claims()
        self.pm = Manager(PROJECT)
        self.pm.add_hookspecs(ModalityHooks)
        self.pm.add_hookspecs(SourceHooks)
        self._exclusive: set[Any] = set()
        self._loaded: dict[tuple[str, str], tuple[Any, Claim, frozenset[str]] | PluginError] = {}

    def load(self, group: str, name: str, required: Iterable[str]) -> tuple[Any, Claim, frozenset[str]]:
        """The object, claim and implemented hooks of an installed name. Raises PluginError, the same one each time."""
        if (group, name) not in self._loaded:
            try:
                self._loaded[group, name] = self._load(group, name, required)
            except PluginError as error:
                self._loaded[group, name] = error
        result = self._loaded[group, name]
        if isinstance(result, PluginError):
            raise PluginError(str(result)) from result.__cause__
        return result

    def _load(self, group: str, name: str, required: Iterable[str]) -> tuple[Any, Claim, frozenset[str]]:
        claim = the_claim(self.claims[group][name])
        plugin = load_object(claim)
        hooks = check_hooks(self.pm, plugin, claim, required)
        if not self.pm.is_registered(plugin):  # one object may stand behind two names
            try:
                self.pm.register(plugin, name=f"{group}:{name}")
            except Exception as error:
                if self.pm.is_registered(plugin):
                    self.pm.unregister(plugin)
                raise PluginError(f"{name}: {claim} is refused by pluggy: {reason(error)}") from error
        if group != WRAPPERS:
            self._exclusive.add(plugin)
        return plugin, claim, hooks

    def load_wrappers(self) -> dict[str, PluginError]:
        """Load every installed wrapper; gives the errors of those that cannot be."""
        errors = {}
        for name in sorted(self.claims[WRAPPERS]):
            try:
                self.load(WRAPPERS, name, ())
            except PluginError as error:
                errors[name] = error
        return errors

    def call(self, plugin: Any, hook: str, arguments: Mapping[str, Any]) -> Any:
        """Call one plugin's hook, with every wrapper around it and without any other modality or source."""
        caller = self.pm.subset_hook_caller(hook, remove_plugins=self._exclusive - {plugin})
        return caller(**arguments)
