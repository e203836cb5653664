"""Which storage class a content deserves: facts about it + an ordered list of rules -> a decision that says why.

Decides what a rule file may say, which rule comes first, and what is told about those that were passed over. Does not decide
what a class is (erasure/geometry.py), how facts are gathered, where the file lies, nor when a decision is made: a put asks it
once, tiering asks it again. The rules that come with dds are policy.toml beside this file. What the creator names never comes
here. Source: docs/spec/policy.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from dds.erasure.geometry import ARCHIVE_CLASS, Geometry, class_geometry
from dds.primitives.errors import ConfigError, InputError
from dds.primitives.units import ARCHIVE_AFTER_DAYS_MAX, KIB

AUTO: Final = "auto"  # the class that stands for "by the policy"
FALLBACK_CLASS: Final = "standard"
POLICY_BYTES_MAX: Final = 256 * KIB
RULES_MAX: Final = 256
GLOBS_MAX: Final = 64  # of one condition
TEXT_CHARS_MAX: Final = 128
SIZE_BYTES_MAX: Final = (1 << 63) - 1
NUMBER_MAX: Final = 1e12
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*(?:([KMGTP])(?:iB)?|B)?", re.ASCII)
_DAYS: Final = re.compile(r"([1-9][0-9]{0,4})d", re.ASCII)
_TERM: Final = re.compile(r"[1-9][0-9]{0,11}(d|h|m|s|epochs?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a content. None: not known, and then no bound on it is met."""

    name: str  # the file's or directory's own
    kind: str  # "file", "directory", "stream"
    content_type: str
    size_bytes: int | None  # of the user's data
    reads_per_day: float | None = None
    age_days: float | None = None  # since it was first put
    idle_days: float | None = None  # since it was read last


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of a rule; `wants` is how a person reads it."""

    key: str
    wants: str
    miss: Callable[[Facts], str | None]  # why it does not hold; None: it holds


@dataclass(frozen=True, slots=True)
class Rule:
    number: int  # from 1, as they stand in the file
    label: str
    conditions: tuple[Condition, ...]
    class_name: str
    k: int | None = None
    m: int | None = None
    term: str = ""
    archive_after_days: int | None = None

    @property
    def geometry(self) -> Geometry:
        return class_geometry(self.class_name, self.k, self.m)

    def miss(self, facts: Facts) -> str | None:
        """Why the rule does not match: its first condition that does not hold."""
        return next((why for condition in self.conditions if (why := condition.miss(facts)) is not None), None)


@dataclass(frozen=True, slots=True)
class Policy:
    where: str  # the file
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A rule that came before the one that decided."""

    number: int
    label: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` 0: none matched."""

    class_name: str
    k: int | None
    m: int | None
    term: str
    archive_after_days: int | None
    rule: int
    label: str
    why: str
    passed_over: tuple[PassedOver, ...] = ()
    refused_class: str = ""  # what the rule says, where the network cannot have it

    @property
    def geometry(self) -> Geometry:
        return class_geometry(self.class_name, self.k, self.m)


def decide(facts: Facts, rules: Sequence[Rule]) -> Decision:
    """The first rule whose conditions all hold; where none does, standard."""
    passed: list[PassedOver] = []
    for rule in rules:
        miss = rule.miss(facts)
        if miss is None:
            why = "; ".join(condition.wants for condition in rule.conditions) or "it has no conditions"
            return Decision(
                rule.class_name,
                rule.k,
                rule.m,
                rule.term,
                rule.archive_after_days,
                rule.number,
                rule.label,
                why,
                tuple(passed),
            )
        passed.append(PassedOver(rule.number, rule.label, miss))
    return Decision(FALLBACK_CLASS, None, None, "", None, 0, "", "no rule matches", tuple(passed))


def where_archive_fits(decision: Decision, *, has_archive: bool) -> Decision:
    """The decision, or standard in its place where the network has too few archive nodes for it.

    For what a rule decided; a creator who names archive gets it, or the error that says why not.
    """
    if decision.class_name != ARCHIVE_CLASS or has_archive:
        return decision
    why = f"{decision.why}; but too few archive nodes with room are known for one segment: {FALLBACK_CLASS} instead"
    return replace(decision, class_name=FALLBACK_CLASS, why=why, refused_class=decision.class_name)


# -- reading a rule file --------------------------------------------------------------------------------------------------


def parse_policy(text: str, where: str) -> Policy:
    """A rule file.

    Raises:
        ConfigError: naming file, rule and key.
    """
    if len(text.encode()) > POLICY_BYTES_MAX:
        raise ConfigError(f"{where}: larger than {POLICY_BYTES_MAX} bytes")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    for key in table:
        if key != "rule":
            raise ConfigError(f"{where}: unknown key {key[:64]!r}", hint="a policy is a list of [[rule]]", key=key[:64])
    rows = table.get("rule", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{where}: rule: not a list of tables", hint="write [[rule]], not [rule]", key="rule")
    if not 0 < len(rows) <= RULES_MAX:
        raise ConfigError(f"{where}: {len(rows)} rules; there must be 1 to {RULES_MAX}", key="rule")
    rules = tuple(_rule(_Row(where, number, row)) for number, row in enumerate(rows, 1))
    _check_reach(where, rules)
    return Policy(where, rules)


class _Row:
    """One rule's table, and where it stands, for messages."""

    def __init__(self, where: str, number: int, table: Mapping[str, Any]) -> None:
        self.number, self._where, self.table = number, where, table
        label = table.get("label", "")
        self.label = label if isinstance(label, str) else ""

    def wrong(self, key: str, problem: str, hint: str | None = None) -> ConfigError:
        title = f"rule {self.number}" + (f" ({self.label[:40]})" if self.label else "")
        return ConfigError(f"{self._where}: {title}: {key}: {problem}", hint=hint, rule=self.number, key=key)

    def text(self, key: str, form: re.Pattern[str] | None = None, example: str = "") -> str:
        value = self.table.get(key, "")
        if type(value) is not str or len(value) > TEXT_CHARS_MAX or not value.isprintable():
            raise self.wrong(key, f"not a text of at most {TEXT_CHARS_MAX} printable characters")
        if value and form is not None and form.fullmatch(value) is None:
            raise self.wrong(key, f"not understood: {value!r}", hint=f"for example {example}")
        return value

    def globs(self, key: str) -> tuple[str, ...]:
        value = self.table[key]
        globs = [value] if isinstance(value, str) else value
        if not isinstance(globs, list) or not 0 < len(globs) <= GLOBS_MAX:
            raise self.wrong(key, f"not a pattern, nor a list of 1 to {GLOBS_MAX}", hint=f'for example {key} = "*.iso"')
        for glob in globs:
            if type(glob) is not str or not 0 < len(glob) <= TEXT_CHARS_MAX:
                raise self.wrong(key, f"a pattern must be a text of 1 to {TEXT_CHARS_MAX} characters")
        return tuple(glob.lower() for glob in globs)

    def size(self, key: str) -> int:
        value = self.table[key]
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is not None:
            value = int(found[1]) << 10 * (" KMGTP".index(found[2]) if found[2] else 0)
        if type(value) is not int or not 0 <= value <= SIZE_BYTES_MAX:
            raise self.wrong(key, f"not a size: {str(self.table[key])[:40]!r}", hint='for example "10MiB", or bytes')
        return value

    def number_at(self, key: str) -> float:
        value = self.table[key]
        if type(value) not in (int, float) or not 0 <= value <= NUMBER_MAX:  # nan is neither
            raise self.wrong(key, f"not a number from 0 to {NUMBER_MAX:g}: {str(value)[:40]}")
        return float(value)

    def count(self, key: str) -> int | None:
        value = self.table.get(key)
        if value is not None and type(value) is not int:
            raise self.wrong(key, "not a whole number")
        return value


def _rule(row: _Row) -> Rule:
    for key in row.table:
        if key not in _KEYS:
            raise row.wrong(key[:64], "unknown key", hint="known keys: " + ", ".join(_KEYS))
    conditions = tuple(make(row, key) for key, make in _CONDITIONS.items() if key in row.table)
    k, m, name = row.count("k"), row.count("m"), row.text("class")
    if not name or name == AUTO:
        raise row.wrong("class", "missing" if not name else "a rule must name one", hint="standard, hot, archive or custom")
    try:
        class_geometry(name, k, m)
    except InputError as error:
        raise row.wrong("class", error.message, hint=error.hint) from None
    after = row.text("archive_after", _DAYS, '"90d"').removesuffix("d")
    if after and int(after) > ARCHIVE_AFTER_DAYS_MAX:
        raise row.wrong(
            "archive_after", f"{after} days; at most {ARCHIVE_AFTER_DAYS_MAX}", hint="older reads are not remembered"
        )
    return Rule(
        row.number,
        row.text("label"),
        conditions,
        name,
        k,
        m,
        row.text("term", _TERM, '"90d", "12h" or "720" (epochs)'),
        int(after) if after else None,
    )


def _check_reach(where: str, rules: Sequence[Rule]) -> None:
    """Rules behind one without conditions never come to pass: a slip that nothing else would show."""
    for rule in rules[:-1]:
        if not rule.conditions:
            lost = f"rule {rule.number + 1}" if rule.number + 1 == len(rules) else f"rules {rule.number + 1} to {len(rules)}"
            raise ConfigError(
                f"{where}: rule {rule.number}: it has no conditions, so {lost} can never match",
                hint="move it to the end",
                rule=rule.number,
            )


# -- conditions -----------------------------------------------------------------------------------------------------------


def _glob_condition(row: _Row, key: str, what: str, fact: Callable[[Facts], str]) -> Condition:
    globs = row.globs(key)
    wants = f"{what} is {' or '.join(globs)}"

    def miss(facts: Facts) -> str | None:
        value = fact(facts).lower()
        return None if any(fnmatchcase(value, glob) for glob in globs) else f"{what} is {value}, not {' or '.join(globs)}"

    return Condition(key, wants, miss)


def _bound_condition(
    key: str, what: str, bound: float, fact: Callable[[Facts], float | None], show: Callable[[float], str]
) -> Condition:
    """At least, where the key ends with _min; less than, where it ends with _max."""
    is_min = key.endswith("_min")
    wants = f"{what} is {'at least' if is_min else 'less than'} {show(bound)}"

    def miss(facts: Facts) -> str | None:
        value = fact(facts)
        if value is None:
            return f"{what} is not known, and must be {'at least' if is_min else 'less than'} {show(bound)}"
        if (value >= bound) if is_min else (value < bound):
            return None
        return f"{what} is {show(value)}, {'less than' if is_min else 'not less than'} {show(bound)}"

    return Condition(key, wants, miss)


def _size_condition(row: _Row, key: str) -> Condition:
    return _bound_condition(key, "its size", row.size(key), lambda facts: facts.size_bytes, lambda v: f"{v:,.0f} bytes")


def _reads_condition(row: _Row, key: str) -> Condition:
    return _bound_condition(
        key, "its popularity", row.number_at(key), lambda facts: facts.reads_per_day, lambda v: f"{v:g} reads a day"
    )


def _age_condition(row: _Row, key: str) -> Condition:
    return _bound_condition(key, "its age", row.number_at(key), lambda facts: facts.age_days, lambda v: f"{v:g} days")


def _idle_condition(row: _Row, key: str) -> Condition:
    return _bound_condition(
        key, "the time since it was read", row.number_at(key), lambda facts: facts.idle_days, lambda v: f"{v:g} days"
    )


_CONDITIONS: Final[dict[str, Callable[[_Row, str], Condition]]] = {
    "type": lambda row, key: _glob_condition(row, key, "its type", lambda facts: facts.content_type),
    "name": lambda row, key: _glob_condition(row, key, "its name", lambda facts: facts.name),
    "size_min": _size_condition,
    "size_max": _size_condition,
    "reads_per_day_min": _reads_condition,
    "reads_per_day_max": _reads_condition,
    "age_days_min": _age_condition,
    "age_days_max": _age_condition,
    "idle_days_min": _idle_condition,
    "idle_days_max": _idle_condition,
}
_KEYS: Final = ("label", *_CONDITIONS, "class", "k", "m", "term", "archive_after")
