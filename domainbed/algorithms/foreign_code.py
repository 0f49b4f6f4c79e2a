"""How a fork's train script makes and calls its classes, as their code and the scripts' say.

Train scripts add to the hyper-parameters what their methods read there, so that all of it is here
under the names that forks use.
"""

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from domainbed.config.run_facts import Handed, RunFacts
from domainbed.core.forks import VARIADIC, arguments, code_of, evaluated, required
from domainbed.errors import UserError

_NAMES = {
    "x": ("x", "xs", "image", "images", "img", "imgs", "input", "inputs", "data"),
    "y": ("y", "ys", "label", "labels", "target", "targets"),
    "domain": ("d", "e", "env", "envs", "domain", "domains", "domain_label", "domain_labels"),
    "attribute": ("a", "attr", "attrs", "attribute", "attributes"),
    "index": ("i", "idx", "index", "indices"),
    "step": ("step", "global_step", "current_step", "iteration", "iter", "it"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
# What DomainBed's constructors take, in this order, under whatever names.
_USUAL = ("input_shape", "num_classes", "num_domains", "hparams")
# What a method calls that trains; and what stands for setting an attribute.
_STEPS, _STORES = {"step", "backward"}, "="
_STANDARD = {"update", "predict", "forward", "train", "eval", "clone"}


def role(name: str) -> str:
    """What a fork means by a name: a part of a minibatch, "step", or just that name.

    Examples:
        >>> role("all_x"), role("env"), role("depth")
        ('x', 'domain', 'depth')
    """
    return _ROLES.get(name.removeprefix("all_"), name.removeprefix("all_"))


class Batch(NamedTuple):
    """What an `update` unpacks of the minibatches that it is called with.

    Attributes:
        parts: the role of each.
        pooled: whether it is called with one minibatch of all domains, and not with one of each.
    """

    parts: tuple[str, ...] = ("x", "y")
    pooled: bool = False


@cache
def batch_of(cls: Any) -> Batch:
    """As a class unpacks its minibatches in `update`, in a loop or an assignment.

    They are the first argument, or the first that is called a batch.
    """
    names = list(inspect.signature(cls.update).parameters)[1:]
    first = next((name for name in names if "batch" in name), "".join(names[:1]))
    methods, used = _methods(cls)
    reached = {"update", *_reaches("update", used)}
    nodes = [n for name, code in methods.items() if name in reached for n in ast.walk(code)]
    loops = [node for node in nodes if isinstance(node, (ast.For, ast.comprehension))]
    pairs: list[tuple[Any, Any]] = [(loop.iter, loop.target) for loop in loops]
    pairs += [(node.value, node.targets[0]) for node in nodes if isinstance(node, ast.Assign)]
    for place, (source, target) in enumerate(pairs):
        text = ast.unparse(source)
        if text == f"enumerate({first})" and isinstance(target, ast.Tuple):
            text, target = first, target.elts[-1]
        if text in (first, f"zip(*{first})") and isinstance(target, ast.Tuple):
            parts = tuple(role(ast.unparse(each)) for each in target.elts)
            if not any(isinstance(each, ast.Tuple) for each in target.elts):
                is_pooled = place >= len(loops) and text == first
                return Batch(parts if len(parts) != 2 else ("x", "y"), is_pooled)
    return Batch()


def undriven(cls: Any, folder: Path | None) -> list[str]:
    """Methods of a class that train, and that only its train script calls.

    Args:
        cls: the class.
        folder: of the fork with its scripts, in which a method that sets attributes counts too.
            Without any, those are meant that step an optimizer and that nothing in the file calls.
    """
    methods, used = _methods(cls)
    sources = {sys.modules[getattr(cls, name).__module__] for name in methods}
    called = set().union(*(_attributes(code_of(each)) for each in sources))
    by_scripts = _called_by_scripts(folder) if folder else set()
    marks = {*_STEPS, _STORES} if by_scripts else _STEPS
    driven = methods.keys() & (by_scripts or methods.keys()) - _STANDARD - called
    return sorted(n for n in driven if not n.startswith("_") and _reaches(n, used) & marks)


def _reaches(name: str, used: dict[str, set[str]]) -> set[str]:
    """What a method uses, and the other methods of its class that it calls."""
    reached = used[name]
    for _ in used:  # each time one call deeper
        reached = reached.union(*(used[each] for each in reached & used.keys()))
    return reached


@cache
def _called_by_scripts(folder: Path) -> set[str]:
    """The methods that scripts call on what they call `update` of."""
    found: set[str] = set()
    for file in folder.rglob("*ain*.py"):  # train, trainer, main
        calls = [node.func for node in ast.walk(code_of(file)) if isinstance(node, ast.Call)]
        methods = [(c.attr, ast.unparse(c.value)) for c in calls if isinstance(c, ast.Attribute)]
        objects = {object_ for name, object_ in methods if name == "update"}
        found |= {name for name, object_ in methods if object_ in objects}
    return found


def _attributes(code: ast.AST) -> set[str]:
    """The names of attributes that are read, and `_STORES` where one is set."""
    return {
        _STORES if isinstance(node.ctx, ast.Store) else node.attr
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute)
    }


def _methods(cls: Any) -> tuple[dict[str, ast.AST], dict[str, set[str]]]:
    """The code of the methods that are not PyTorch's, `update` first, and what each uses."""
    found = {"update": cls.update, **dict(inspect.getmembers(cls, inspect.isfunction))}
    codes = {
        name: code_of(function)
        for name, function in found.items()
        if not function.__module__.startswith(("torch.", "domainbed."))
    }
    return codes, {name: _attributes(code) for name, code in codes.items()}


def construct(
    cls: Any, folder: Path | None, of: Any, more: Mapping[str, Any], elsewhere: Any
) -> Any:
    """An object of a fork's class of algorithms, as the fork's train script makes it.

    Args:
        cls: the class. Arguments go by their names; the first four are else DomainBed's.
        folder: of the fork, whose train scripts say which `args` there are.
        of: the algorithm of this package whose data, hyper-parameters and run it is made for.
        more: what else is known, by name.
        elsewhere: see `Handed`.
    """
    of_run = _of_run(of.facts, of.num_classes, of.num_domains)
    handed = Handed({**of_run, **dict(of.facts.data_options), **of.hparams}, of.facts, elsewhere)
    args = arguments(folder, {**of_run, "hparams": handed})
    needed = {name: value for name, value in vars(args).items() if name in needs_of(cls)}
    known = {
        **{**needed, **_passed(cls, folder, {**vars(args), "args": args}), **of_run, **more},
        **{"input_shape": of.input_shape, "hparams": handed, "args": args},
    }
    values = given(
        *(parameters_of(cls), known, _USUAL),
        f"the constructor of {cls.__name__} needs {{}}, which nothing here gives: take a subclass "
        "that does",
    )
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(cls).parameters.values())
    first = [values.pop(name) for name in list(values)[: len(_USUAL) * takes_all]]
    return cls(*first, **values)


def parameters_of(cls: Any) -> list[inspect.Parameter]:
    """Those of its constructor, or of the one that this hands `*args` to."""
    found = list(inspect.signature(cls).parameters.values())
    takes_all = any(each.kind is each.VAR_POSITIONAL for each in found)
    return parameters_of(cls.__mro__[1]) if takes_all else found


def needs_of(cls: Any) -> set[str]:
    """What a constructor needs beside DomainBed's four arguments."""
    return required(parameters_of(cls)[len(_USUAL) :])


def given(
    parameters: Iterable[inspect.Parameter],
    known: Mapping[str, Any],
    first: Sequence[str],
    needs: str,
) -> dict[str, Any]:
    """What a function is called with, by name.

    Args:
        parameters: of the function.
        known: by name, or by what a name means.
        first: what the first ones are where their names say nothing.
        needs: the error where nothing is known of others without a default; `{}` are their names.
    """
    named = {each.name: each for each in parameters if each.kind not in VARIADIC}
    found: dict[str, Any] = {}
    for place, name in enumerate(named):
        usual = [each for each in first[place : place + 1] if each not in named]
        names = [each for each in (name, role(name), *usual) if each in known]
        if names:
            found[name] = known[names[0]]
    if lacking := sorted(required(named.values()) - found.keys()):
        raise UserError(needs.format(", ".join(map(repr, lacking))))
    return found


def _passed(cls: Any, folder: Path | None, names: Mapping[str, Any]) -> dict[str, Any]:
    """What train scripts hand to a constructor after DomainBed's four arguments, or by name."""
    further = [parameter.name for parameter in parameters_of(cls)][len(_USUAL) :]
    found: dict[str, Any] = {}
    scripts = sorted(folder.rglob("*train*.py")) if folder else []
    calls = [n for file in scripts for n in ast.walk(code_of(file)) if isinstance(n, ast.Call)]
    for call in [each for each in calls if ast.unparse(each.func).endswith("_class")]:
        by_name = [(word.arg or "", word.value) for word in call.keywords]
        for name, node in [*zip(further, call.args[len(_USUAL) :]), *by_name]:
            if value := evaluated(node, names):
                found[name] = value[0]
    return found


@cache
def _scratch() -> TemporaryDirectory[str]:
    """Where classes write what only their train scripts read; it goes with the process."""
    return TemporaryDirectory(prefix="domainbed-")


def _of_run(facts: RunFacts, num_classes: int, num_domains: int) -> dict[str, Any]:
    """The facts of a run, under the names that forks give them."""
    named: dict[str, Any] = {
        "class_names classnames classes": list(facts.class_names),
        "steps n_steps n_step num_steps max_steps iters total_steps": facts.steps,
        "dataset dataset_name": facts.dataset,
        "device": torch.device(facts.device),
        "output_dir out_dir logdir log_dir save_dir": Path(_scratch().name),
        "test_envs test_env target_env": list(facts.test_envs),
        "group_sizes data_sizes num_examples env_sizes": list(facts.group_sizes),
        "domain_names env_names": list(facts.domain_names),
        "num_classes n_classes class_num": num_classes,
        "num_domains n_domains num_envs domain_num": num_domains,
    }
    return {name: value for names, value in named.items() for name in names.split()}
