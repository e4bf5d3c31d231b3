"""The cluster file: what may stand in it, and every mistake in it at once, each with its line.

*Pure (but for reading one file).* Runs in the command line and in programs that start clusters.

1. Nothing starts from a file with a mistake in it.
2. A mistake is reported as ``FILE:LINE: path.to.key: what is wrong, and what would be right``.
3. A scalar has the type that YAML gives it: ``yes`` is no string and ``"4"`` no number.

The structs of ``cluster_schema`` say what may stand there. The walk follows them over the composed YAML nodes, which
know their lines; ``cluster_meaning`` then judges the whole.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from meshray import cluster_meaning, config
from meshray.cluster_schema import FOREIGN_KEYS, ClusterConfig, HostName, Name, Size, SizeOrNothing
from meshray.errors import MeshrayError

_UNITS = {"": 1, "B": 1, "KIB": config.KIB, "MIB": config.MIB, "GIB": config.GIB, "TIB": 1024 * config.GIB,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", re.IGNORECASE)


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake, at ``line`` (from 1) under the key ``path``."""

    line: int
    path: str
    text: str


class ClusterConfigError(MeshrayError, ValueError):
    """A cluster file has mistakes; the message lists all of them, and nothing was started."""

    def __init__(self, message: str, problems: list[Problem] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []


def read_cluster_config(file: str) -> ClusterConfig:
    """Read and check a cluster file. Raise ClusterConfigError with all that is wrong with it."""
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
    except OSError as error:
        raise ClusterConfigError(f"cannot read cluster file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClusterConfigError(f"cannot read cluster file {file}: it is not UTF-8 text ({error.reason})") from error
    return parse_cluster_config(text, file, mounts_from=os.path.dirname(os.path.abspath(file)))


def parse_cluster_config(text: str, file: str = "cluster.yaml", *, mounts_from: str = "") -> ClusterConfig:
    """Check the text of a cluster file and return its meaning; ``file`` names it in error messages.

    With ``mounts_from``, sources of ``file_mounts`` are relative to it, must exist, and come back as absolute paths.
    """
    walk = _Walk()
    root = None
    try:
        walk.loader = yaml.SafeLoader(text)
        root = walk.loader.get_single_node()
        value = walk.check(root, ClusterConfig, "") if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        walk.note(mark.line if mark else 0, "", f"not valid YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        walk.note(0, "", f"not valid YAML: {' '.join(str(error).split())}")
    else:
        if root is None:
            walk.note(0, "", "the file is empty: it needs at least cluster_name and nodes")
        elif not walk.problems:
            cluster = msgspec.convert(value, ClusterConfig)
            for path, found in cluster_meaning.mistakes(cluster):
                walk.note_at(path, found)
            if mounts_from:
                cluster.file_mounts = walk.check_mounts(cluster.file_mounts, mounts_from)
            if not walk.problems:
                return cluster_meaning.in_one_form(cluster)
    problems = sorted(set(walk.problems))
    lines = [f"{file}:{problem.line}: {problem.path + ': ' if problem.path else ''}{problem.text}"
             for problem in problems]
    raise ClusterConfigError("\n".join(lines), problems)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a cluster file, for editors."""
    return msgspec.json.schema(ClusterConfig)


def parse_size(text: str) -> int:
    """Return the bytes that ``512MiB``, ``1.5 GB`` or ``1024`` mean. Raise ValueError."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else "?"
    factor = _UNITS.get(unit, _UNITS.get(unit + "IB" if len(unit) == 1 and unit != "B" else "?"))
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size: write bytes, or a number with KiB, MiB, GiB, TiB (512MiB)")
    return int(float(match[1]) * factor)


class _Walk:
    """One pass over the composed nodes along the schema; collects problems and returns plain values."""

    loader: yaml.SafeLoader

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}

    def note(self, line: int, path: str, text: str) -> None:
        self.problems.append(Problem(line + 1, path, text))

    def note_at(self, path: str, text: str) -> None:
        """Note a problem at the line of a key, or of the nearest one around it that stands in the file."""
        known = path
        while known not in self.lines:
            known = known.rpartition(".")[0]
        self.note(self.lines[known], path, text)

    def check(self, node: yaml.Node, kind: Any, path: str) -> Any:
        """Return the plain value of ``node``, noting what does not fit the type ``kind``."""
        line = node.start_mark.line
        self.lines[path] = line
        if type(None) in get_args(kind) and isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return None
        kind, bare = _without_none(kind), _bare(kind)
        if _is_struct(bare):
            return self._struct(node, bare, path)
        if get_origin(bare) is dict:
            return self._mapping(node, get_args(bare)[1], path)
        if get_origin(bare) is list:
            return self._sequence(node, kind, path)
        return self._scalar(node, kind, path)

    def _pairs(self, node: yaml.Node, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the entries of a mapping by key, with ``<<`` merged; a key given twice is noted."""
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        if not isinstance(node, yaml.MappingNode):
            self.note(node.start_mark.line, path, f"must be a mapping (key: value), not {_kind_of(node)}")
            return pairs
        given = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.loader.flatten_mapping(node)
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.note(key.start_mark.line, path, f"a key must be a word, not {_kind_of(key)}")
                continue
            if given.count(key.value) > 1:
                self.note(key.start_mark.line, _join(path, key.value), "given twice")
            pairs[key.value] = key, value
        return pairs

    def _struct(self, node: yaml.Node, struct: type[msgspec.Struct], path: str) -> dict[str, Any]:
        hints = get_type_hints(struct, include_extras=True)
        value: dict[str, Any] = {}
        pairs = self._pairs(node, path)
        for name, (key, child) in pairs.items():
            if name in hints:
                value[name] = self.check(child, hints[name], _join(path, name))
                continue
            if struct is ClusterConfig and name in FOREIGN_KEYS:
                self.note(key.start_mark.line, name, f"this key of Ray has no meaning here: {FOREIGN_KEYS[name]}")
                continue
            close = difflib.get_close_matches(name, hints, n=1, cutoff=0.6)
            advice = f"did you mean {close[0]}?" if close else f"possible here: {', '.join(hints)}"
            self.note(key.start_mark.line, _join(path, name), f"unknown key, {advice}")
        if isinstance(node, yaml.MappingNode):
            for field in msgspec.structs.fields(struct):
                if field.required and field.name not in pairs:
                    self.note(node.start_mark.line, path, f"{field.name} is missing")
        return value

    def _mapping(self, node: yaml.Node, kind: Any, path: str) -> dict[str, Any]:
        pairs = self._pairs(node, path)
        return {name: self.check(child, kind, _join(path, name)) for name, (_, child) in pairs.items()}

    def _sequence(self, node: yaml.Node, kind: Any, path: str) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            self.note(node.start_mark.line, path, f"must be a list (- ...), not {_kind_of(node)}")
            return []
        if not node.value and any(meta.min_length for meta in _metas(kind)):
            self.note(node.start_mark.line, path, "needs at least one entry")
        entry = get_args(_bare(kind))[0]
        return [self.check(child, entry, f"{path}[{index}]") for index, child in enumerate(node.value)]

    def _scalar(self, node: yaml.Node, kind: Any, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self.note(node.start_mark.line, path, f"must be {_wanted(kind)}, not {_kind_of(node)}")
            return None
        try:
            value = self.loader.construct_object(node)
            if kind in (Size, SizeOrNothing) and isinstance(value, str):
                value = parse_size(value)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError("must be finite")
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            self.note(node.start_mark.line, path, f"must be {_wanted(kind)}, not {_kind_of(node)}")
        except ValueError as error:
            self.note(node.start_mark.line, path, str(error))
        return None

    def check_mounts(self, mounts: dict[str, str], directory: str) -> dict[str, str]:
        """Return the mounts with absolute sources, noting those that are not there."""
        found = {}
        for target, source in mounts.items():
            found[target] = os.path.normpath(os.path.join(directory, os.path.expanduser(source)))
            if not os.path.exists(found[target]):
                self.note_at(f"file_mounts.{target}", f"{found[target]} does not exist on this machine")
        return found


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(option for option in get_args(kind) if option is not type(None))
    return kind


def _bare(kind: Any) -> Any:
    kind = _without_none(kind)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _metas(kind: Any) -> list[Meta]:
    return [argument for argument in get_args(kind)[1:] if isinstance(argument, Meta)]


def _wanted(kind: Any) -> str:
    """Say in words what a scalar of this type may be."""
    bare = _bare(kind)
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(get_args(bare))
    if kind is Size:
        return "a size above zero (bytes, or 512MiB)"
    if kind is SizeOrNothing:
        return "a size (bytes, or 512MiB), or 0 for never"
    if kind is Name:
        return "a name of at most 32 lower-case letters, digits and hyphens"
    if kind is HostName:
        return "the name or address of a machine, without user and port"
    if bare is bool:
        return "true or false"
    if bare is str:
        return "text (put it in quotes)"
    bounds = next(((meta.ge, meta.le) for meta in _metas(kind)), (None, None))
    number = "a whole number" if bare is int else "a number"
    if bounds[1] is not None:
        return f"{number} from {bounds[0]} to {bounds[1]}"
    least = {0: ", zero or more", 1: ", 1 or more"}
    return number + (least[int(bounds[0])] if bounds[0] is not None else "")


def _kind_of(node: yaml.Node) -> str:
    """Say in words what stands there."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node.tag.endswith(":null"):
        return "empty"
    kinds = {"int": "the number ", "float": "the number ", "bool": "the truth value "}
    kind = kinds.get(node.tag.rpartition(":")[2])
    return f"{kind}{node.value}" if kind else repr(node.value)
