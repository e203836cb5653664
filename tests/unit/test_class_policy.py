"""The class policy: what a rule file may say, which rule decides, and what it tells of the others."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.erasure.geometry import HOT, STANDARD, Geometry, loss_probability
from dds.placement.content_type import UNKNOWN, content_type, dominant_type
from dds.placement.policy import Facts, Policy, decide, parse_policy, where_archive_fits
from dds.primitives.errors import ConfigError, InputError
from dds.primitives.units import GIB, MIB
from dds.runtime.class_choice import choose_class, explain_put, loss_chances
from dds.runtime.results import PutOptions
from dds.storage.home import Home
from dds.storage.policy_file import BUILT_IN, default_policy_text, load_policy, write_default_policy
from dds.storage.source import SourceOptions
from dds.storage.source_facts import facts_of

FILM = Facts("holiday.MP4", "file", "video/mp4", 2 * GIB)
NOTE = Facts("note.txt", "file", "text/plain", 500)


def policy(*rules: str) -> Policy:
    return parse_policy("\n".join(f"[[rule]]\n{rule}" for rule in rules), "rules.toml")


# -- rules ----------------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides_and_says_why_the_others_before_it_did_not() -> None:
    rules = policy(
        'label = "small"\nsize_max = "1MiB"\nclass = "hot"',
        'type = ["audio/*", "video/*"]\nsize_min = "1GiB"\nclass = "standard"\nterm = "30d"\narchive_after = "90d"',
        'class = "archive"',
    ).rules
    decision = decide(FILM, rules)
    assert (decision.class_name, decision.rule, decision.term, decision.archive_after_days) == ("standard", 2, "30d", 90)
    assert decision.why == "its type is audio/* or video/*; its size is at least 1,073,741,824 bytes"
    (passed,) = decision.passed_over
    assert (passed.number, passed.label) == (1, "small")
    assert passed.why == "its size is 2,147,483,648 bytes, not less than 1,048,576 bytes"
    assert decide(NOTE, rules).class_name == "hot"


def test_without_a_match_it_is_standard() -> None:
    decision = decide(NOTE, policy('type = "video/*"\nclass = "hot"').rules)
    assert (decision.class_name, decision.rule, decision.why) == ("standard", 0, "no rule matches")


def test_what_is_not_known_meets_no_bound() -> None:
    for key in ("reads_per_day_min", "reads_per_day_max", "age_days_min", "age_days_max", "idle_days_min", "idle_days_max"):
        decision = decide(NOTE, policy(f'{key} = 0\nclass = "hot"').rules)
        assert decision.class_name == "standard"
        assert "is not known" in decision.passed_over[0].why
    stream = replace(NOTE, size_bytes=None)
    assert decide(stream, policy('size_min = 0\nclass = "hot"').rules).class_name == "standard"


def test_a_minimum_holds_at_its_value_and_a_maximum_below_it() -> None:
    at = replace(NOTE, reads_per_day=10.0, size_bytes=MIB)
    for key, matches in (("reads_per_day_min", True), ("reads_per_day_max", False)):
        assert (decide(at, policy(f'{key} = 10\nclass = "hot"').rules).class_name == "hot") is matches
    for key, matches in (("size_min", True), ("size_max", False)):
        assert (decide(at, policy(f'{key} = "1MiB"\nclass = "hot"').rules).class_name == "hot") is matches


def test_names_and_types_are_compared_without_case() -> None:
    assert decide(FILM, policy('name = "*.Mp4"\nclass = "hot"').rules).class_name == "hot"
    assert decide(FILM, policy('type = "VIDEO/*"\nclass = "hot"').rules).class_name == "hot"


def test_a_rule_may_name_a_geometry_of_its_own() -> None:
    decision = decide(NOTE, policy('class = "custom"\nk = 4\nm = 3').rules)
    assert (decision.class_name, decision.geometry) == ("custom", Geometry(4, 3))


def test_archive_by_a_rule_becomes_standard_where_there_are_too_few_archive_nodes() -> None:
    decision = decide(NOTE, policy('class = "archive"').rules)
    assert where_archive_fits(decision, has_archive=True) is decision
    instead = where_archive_fits(decision, has_archive=False)
    assert (instead.class_name, instead.refused_class) == ("standard", "archive")
    assert "too few archive nodes" in instead.why


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ('class = "frozen"', "rule 1: class: no storage class"),
        ('label = "films"\nclass = "auto"', r"rule 1 \(films\): class: a rule must name one"),
        ('size_min = "1MiB"', "rule 1: class: missing"),
        ('class = "hot"\nk = 3\nm = 2', "rule 1: class: class hot has its own k and m"),
        ('class = "custom"\nk = 65\nm = 2', "rule 1: class: k must be 1 to 64"),
        ('class = "custom"\nk = true\nm = 2', "rule 1: k: not a whole number"),
        ('class = "hot"\nsize = "1MiB"', "rule 1: size: unknown key"),
        ('class = "hot"\nsize_min = "1 mile"', "rule 1: size_min: not a size"),
        ('class = "hot"\nsize_min = -1', "rule 1: size_min: not a size"),
        ('class = "hot"\nsize_min = "999999999999999999PiB"', "rule 1: size_min: not a size"),
        ('class = "hot"\nreads_per_day_min = nan', "rule 1: reads_per_day_min: not a number"),
        ('class = "hot"\nidle_days_min = inf', "rule 1: idle_days_min: not a number"),
        ('class = "hot"\ntype = []', "rule 1: type: not a pattern"),
        ('class = "hot"\nname = [""]', "rule 1: name: a pattern must be"),
        ('class = "hot"\nterm = "for ever"', "rule 1: term: not understood"),
        ('class = "hot"\narchive_after = "soon"', "rule 1: archive_after: not understood"),
        ('class = "hot"\narchive_after = "121d"', "rule 1: archive_after: 121 days; at most 120"),
        ('class = 1\nlabel = "x"', r"rule 1 \(x\): class: not a text"),
        ('class = "hot"\n[[rule]]\nclass = "hot"', "rule 1: it has no conditions, so rule 2 can never match"),
    ],
)
def test_a_rule_that_does_not_hold_is_named_with_its_key(rule: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^rules.toml: {words}"):
        policy(rule)


@pytest.mark.parametrize("text", ["", "rule = 3", "[rule]\nclass = 'hot'", "[[rules]]", "x = [", "rule = [1]"])
def test_what_is_no_rule_file_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^rules.toml: "):
        parse_policy(text, "rules.toml")


VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=12), st.lists(st.text(max_size=4), max_size=3))
KEYS = st.sampled_from(
    ["label", "type", "name", "size_min", "reads_per_day_max", "class", "k", "m", "term", "archive_after", "x"]
)


@given(st.dictionaries(KEYS, VALUES | st.sampled_from(["hot", "custom", "1MiB", "90d"]), max_size=6))
def test_whatever_a_rule_says_it_decides_or_is_a_clear_error(table: dict[str, object]) -> None:
    text = "[[rule]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
    with suppress(ConfigError):
        assert decide(FILM, parse_policy(text, "rules.toml").rules).class_name in (table.get("class"), "standard")


def _toml(value: object) -> str:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


@given(
    st.builds(
        Facts,
        st.text(max_size=20),
        st.sampled_from(["file", "directory", "stream"]),
        st.sampled_from(["video/mp4", "text/html", UNKNOWN]),
        st.none() | st.integers(0, 1 << 50),
        *[st.none() | st.floats(0, 1e6)] * 3,
    )
)
def test_the_default_rules_decide_about_everything_the_same_each_time(facts: Facts) -> None:
    rules = parse_policy(default_policy_text(), BUILT_IN).rules
    decision = decide(facts, rules)
    assert decision == decide(facts, rules)
    assert decision.rule == len(decision.passed_over) + 1


def test_the_default_rules_choose_by_popularity_size_and_type() -> None:
    rules = parse_policy(default_policy_text(), BUILT_IN).rules
    assert decide(NOTE, rules).class_name == "standard"
    assert decide(replace(NOTE, reads_per_day=100.0), rules).class_name == "hot"
    assert decide(replace(FILM, idle_days=200.0), rules).class_name == "archive"
    assert decide(FILM, rules).archive_after_days == 90
    assert decide(Facts("disk.iso", "file", "application/x-iso9660-image", GIB), rules).archive_after_days == 30


# -- the file -------------------------------------------------------------------------------------------------------------


def test_the_homes_own_file_overrides_the_default_and_its_mistakes_name_it(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    assert load_policy(home).where == BUILT_IN
    path = write_default_policy(home, overwrite=False)
    assert path.read_text() == default_policy_text()
    assert load_policy(home).where == str(path)
    with pytest.raises(InputError, match="is there already"):
        write_default_policy(home, overwrite=False)
    path.write_text('[[rule]]\nclass = "warm"')
    with pytest.raises(ConfigError, match=f"{path}: rule 1: class"):
        load_policy(home)


# -- facts ----------------------------------------------------------------------------------------------------------------


def test_a_type_comes_from_the_last_suffix_and_from_nothing_else() -> None:
    names = {"a.mp4": "video/mp4", "A.JPG": "image/jpeg", "x.tar.gz": "application/gzip", "Makefile": UNKNOWN, ".mp4": UNKNOWN}
    assert {name: content_type(name) for name in names} == names


def test_a_directory_has_the_type_of_most_of_its_bytes_and_hidden_files_count_only_when_taken(tmp_path: Path) -> None:
    tree = tmp_path / "site"
    (tree / "deep").mkdir(parents=True)
    (tree / "index.html").write_bytes(b"x" * 100)
    (tree / "deep" / "photo.jpg").write_bytes(b"x" * 300)
    (tree / ".cache.mp4").write_bytes(b"x" * 900)
    (tree / "loop").symlink_to(tree)
    assert facts_of(tree, SourceOptions()) == Facts("site", "directory", "image/jpeg", 400)
    assert facts_of(tree, SourceOptions(hidden=True)) == Facts("site", "directory", "video/mp4", 1300)
    assert facts_of(tree / "index.html", SourceOptions()) == Facts("index.html", "file", "text/html", 100)
    assert dominant_type({"b/b": 5, "a/a": 5}) == "a/a"


# -- the choice of a put --------------------------------------------------------------------------------------------------


async def test_auto_becomes_the_rules_class_and_a_named_class_stays(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("hello")
    rules = policy('type = "text/html"\nclass = "hot"\nterm = "9d"')
    chosen = await choose_class(tmp_path / "page.html", PutOptions(), rules, has_archive=False)
    assert (chosen.options.class_name, chosen.options.term) == ("hot", "9d")
    assert chosen.note is not None and chosen.note.startswith("class hot by rule 1 (no label) of rules.toml")
    named = await choose_class(tmp_path / "page.html", PutOptions(class_name="standard"), rules, has_archive=False)
    assert (named.options.class_name, named.decision, named.note) == ("standard", None, None)
    term = await choose_class(tmp_path / "page.html", PutOptions(term="5d"), rules, has_archive=False)
    assert term.options.term == "5d"


async def test_archive_by_a_rule_falls_back_and_says_so_but_the_creators_word_holds(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    rules = policy('class = "archive"')
    fallen = await choose_class(tmp_path / "old", PutOptions(), rules, has_archive=False)
    assert fallen.options.class_name == "standard"
    assert fallen.note is not None and "too few archive nodes" in fallen.note
    named = await choose_class(tmp_path / "old", PutOptions(class_name="archive"), rules, has_archive=False)
    assert named.options.class_name == "archive"


async def test_an_explanation_counts_what_a_put_would_store(tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(bytes(20 * MIB))
    rules = policy('class = "standard"')
    found = await explain_put(source, await choose_class(source, PutOptions(), rules, has_archive=False))
    assert (found.segments, found.nodes_per_segment, found.losses_survived) == (1, 16, 6)
    assert found.content_bytes == 20 * MIB < found.block_bytes < 20 * MIB + 4096
    assert 1.6 * 20 * MIB < found.stored_bytes < 1.6 * 20 * MIB + 64 * 1024
    tiny = tmp_path / "tiny"
    tiny.write_bytes(b"a blog post")
    copies = await explain_put(tiny, await choose_class(tiny, PutOptions(), rules, has_archive=False))
    assert (copies.nodes_per_segment, copies.losses_survived) == (7, 6)
    assert copies.loss_chances[0].segment == pytest.approx(0.01**7)


def test_the_chances_of_loss_are_those_of_the_design() -> None:
    """Binomial tails for 10+6, published as 1e-10, 6e-6 and 5e-4."""
    one = loss_chances(STANDARD, [16])
    assert [float(f"{row.segment:.0e}") for row in one] == [1e-10, 6e-6, 5e-4]
    many = loss_chances(STANDARD, [16] * 1000)
    assert [row.content / row.segment for row in many] == pytest.approx([1000, 1000, 1000], rel=0.4)
    assert loss_chances(HOT, [20])[2].segment == loss_probability(HOT, 0.10)
