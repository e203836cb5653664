"""The command line without a network: what is printed where, and with which exit code."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.apps.cli import exits
from dds.apps.cli.doctor import check_clock, check_keys
from dds.apps.cli.get import default_name, parse_range, split_content
from dds.apps.cli.main import run
from dds.apps.cli.session import parse_size, plain, printable
from dds.primitives.cid import cid_text, parse_cid
from dds.primitives.errors import (
    BadBytesError,
    CorruptError,
    DDSError,
    DiskFullError,
    InputError,
    IntegrityError,
    NotEnoughFragments,
    NotEnoughNodes,
    NotFoundError,
    PeerTimeout,
    UnsupportedVersion,
)
from dds.storage.home import Home

HELLO = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"  # "hello world", as Kubo names it
HEAVY = ("aiohttp", "opendht", "rich", "numpy", "uvloop", "pyeclib", "asyncio")


def dds(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    command = [sys.executable, "-m", "dds.apps.cli.main", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


def error_of(text: str) -> dict[str, object]:
    made = json.loads(text.splitlines()[-1])["error"]
    assert isinstance(made, dict)
    return made


def test_cid_prints_the_content_id_alone_and_needs_no_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"hello world")
    assert run(["--home", str(tmp_path / "none"), "cid", str(tmp_path / "a")]) == exits.OK
    out, err = capsys.readouterr()
    assert (out, err) == (HELLO + "\n", "")
    assert not (tmp_path / "none").exists()


def test_cid_reads_standard_input_and_several_paths(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello world")
    done = dds("cid", "-", str(tmp_path / "a"), input="hello world")
    assert done.stdout == f"{HELLO}\n{HELLO}\n"


def test_cid_leaves_hidden_files_out_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"1")
    run(["cid", str(tmp_path)])
    plainly = capsys.readouterr().out
    (tmp_path / ".b").write_bytes(b"2")
    run(["cid", str(tmp_path)])
    assert capsys.readouterr().out == plainly
    run(["cid", "--hidden", str(tmp_path)])
    assert capsys.readouterr().out != plainly


def test_the_common_options_go_before_and_after_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"hello world")
    for argv in (["--json", "cid", str(tmp_path / "a")], ["cid", str(tmp_path / "a"), "--json"]):
        assert run(argv) == exits.OK
        assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path / "a"), "content": HELLO}
    for argv in (["--home", "/no/such", "devnet", "status"], ["devnet", "--home", "/no/such", "status"]):
        assert run(argv) == exits.BAD_INPUT
        assert "/no/such" in capsys.readouterr().err
    assert run(["devnet", "status", "--home", "/no/such"]) == exits.BAD_INPUT


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["nope"], "nope"),
        (["cid"], "PATH"),
        (["cid", "/no/such/file"], "/no/such/file"),
        (["cid", "-", "-"], "standard input"),
        (["cid", "--chunker", "axe", "/"], "axe"),
        (["put", "/no/such/file"], "/no/such/file"),
        (["put", "-k", "3", "/"], "geometry"),
        (["put", "--class", "custom", "-k", "3", "/"], "both"),
        (["put", "--class", "custom", "-k", "100", "-m", "3", "/"], "100+3"),
        (["put", "--class", "custom", "-k", "3", "-m", "0", "/"], "3+0"),
        (["get", "bafy"], "bafy"),
        (["get", "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"], "CIDv0"),
        (["get", HELLO, "--range", "5-3"], "range"),
        (["get", HELLO + "/../x"], ".."),
        (["stat", HELLO + "/x"], "path"),
        (["ls", "/etc"], "ContentID"),
    ],
)
def test_bad_usage_is_one_line_with_exit_code_2(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == exits.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first.startswith("dds: ")
    assert told in first
    assert all(line.startswith("hint: ") for line in rest)
    assert run(["--json", *argv]) == exits.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert error_of(err)["exit_code"] == exits.BAD_INPUT


def test_get_refuses_to_overwrite_before_it_asks_any_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / HELLO).write_text("mine")
    assert run(["--home", str(tmp_path), "get", HELLO]) == exits.BAD_INPUT
    assert "--force" in capsys.readouterr().err
    assert run(["--home", str(tmp_path), "get", HELLO, "-o", str(tmp_path / "no" / "x")]) == exits.BAD_INPUT
    assert "no such directory" in capsys.readouterr().err


def test_an_unconnected_home_says_how_to_connect_it_and_is_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["get", HELLO], ["ls", HELLO], ["stat", HELLO], ["put", str(tmp_path)], ["devnet", "status"]):
        assert run(["--home", str(tmp_path / "h"), *argv]) == exits.BAD_INPUT
        assert "dds devnet up" in capsys.readouterr().err
    assert not (tmp_path / "h").exists()


def test_every_kind_of_error_has_its_documented_exit_code() -> None:
    documented: list[tuple[DDSError, int]] = [
        (InputError("x"), 2),
        (NotFoundError("x"), 3),
        (NotEnoughFragments("x"), 4),
        (NotEnoughNodes("x"), 4),
        (PeerTimeout("x", peer="p"), 4),
        (IntegrityError("x"), 5),
        (CorruptError("x"), 5),
        (BadBytesError("x", peer="p"), 5),
        (DiskFullError("x"), 1),
        (UnsupportedVersion("x"), 1),
    ]
    assert [exits.exit_code(error) for error, _ in documented] == [code for _, code in documented]


def test_a_machine_gets_the_error_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    exits.tell_error(NotEnoughFragments("gone", hint="wait", missing=3, where=["node-1"]), as_json=True)
    assert error_of(capsys.readouterr().err) == {
        "code": "not-enough-fragments",
        "message": "gone",
        "hint": "wait",
        "missing": 3,
        "where": ["node-1"],
        "exit_code": 4,
    }


def test_a_bug_shows_no_traceback_unless_debugging(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dds.storage.source.compute_cid", broken)
    monkeypatch.delenv("DDS_DEBUG", raising=False)
    assert run(["cid", "/"]) == exits.FAILED
    assert "ZeroDivisionError: oops" in capsys.readouterr().err.splitlines()[0]
    monkeypatch.setenv("DDS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["cid", "/"])


def test_help_and_cid_import_nothing_heavy_and_answer_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello world")
    for argv in (["--help"], ["cid", str(tmp_path / "a")], ["--json", "version"]):
        program = (
            "import sys; from dds.apps.cli.main import run; "
            f"code = run({argv!r}); print(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr); sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr.strip()) == (0, "")


def test_no_command_prints_the_help_and_fails() -> None:
    done = dds()
    assert done.returncode == exits.BAD_INPUT
    assert done.stdout == ""
    assert "devnet" in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    names = [str(tmp_path / str(n)) for n in range(3000)]
    for name in names:
        Path(name).touch()
    command = [sys.executable, "-m", "dds.apps.cli.main", "cid", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == exits.BROKEN_PIPE


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    command = [sys.executable, "-m", "dds.apps.cli.main", "cid", str(tmp_path / "a"), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # now it reads standard input, which stays open and silent
        process.send_signal(signal.SIGINT)
        process.wait(30)
        err = process.stderr.read()
    assert (process.returncode, err) == (exits.INTERRUPTED, b"dds: interrupted\n")


def test_node_init_writes_a_configuration_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--home", str(tmp_path / "h"), "node", "init", "--network", "n", "--role", "ssn", "--role", "origin"]
    assert run([*argv, "--capacity", "5GiB", "--upload", "1M"]) == exits.OK
    node_id = capsys.readouterr().out.strip()
    home = Home.open(tmp_path / "h")
    assert 'roles = [\n  "ssn",\n  "origin",\n]' in home.node.config_file.read_text()
    assert f"capacity_bytes = {5 << 30}" in home.node.config_file.read_text()
    assert run(argv) == exits.BAD_INPUT  # never over a node that is there
    capsys.readouterr()
    assert run(["--json", "--home", str(tmp_path / "h"), "node", "status"]) == exits.UNAVAILABLE
    told = json.loads(capsys.readouterr().out)
    assert (told["id"], told["state"], told["pid"]) == (node_id, "stopped", None)


def test_node_init_refuses_what_a_node_could_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--home", str(tmp_path / "h"), "node", "init", "--network", "n"]
    for bad in (["--role", "king"], ["--capacity", "lots"], ["--port", "70000"], ["--bootstrap", "x"], ["--name", "a b"]):
        assert run([*argv, *bad]) == exits.BAD_INPUT
        assert capsys.readouterr().err.startswith("dds: ")
    assert not (tmp_path / "h" / "node" / "node.toml").exists()


def test_doctor_tells_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home.open(tmp_path / "h")
    home.identity()
    assert run(["--json", "--home", str(home.root), "doctor"]) == exits.FAILED
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["python"]["grade"] == checks["versions"]["grade"] == checks["key"]["grade"] == "ok"
    assert checks["config"]["grade"] == "fail"
    assert "devnet up" in checks["config"]["todo"]
    home.identity_file.chmod(0o644)
    assert next(check_keys(home)).todo == f"chmod 600 {home.identity_file}"


def test_doctor_distrusts_a_clock_before_the_release_or_far_ahead() -> None:
    assert [check_clock(float(now)).grade for now in (0, 1_800_000_000, 5_000_000_000, 1e300, -5)] == [
        "fail",
        "ok",
        "fail",
        "fail",
        "fail",
    ]


def test_ranges_are_inclusive_as_in_http() -> None:
    assert parse_range("0-0") == (0, 1)
    assert parse_range("100-199") == (100, 200)
    assert parse_range("7-") == (7, None)
    for text in ("", "-", "-5", "5-3", "a-b", "1-2-3", "1 -2", "0x1-2", "٣-٤", "9" * 19 + "-", "1-" + "9" * 20):
        with pytest.raises(InputError):
            parse_range(text)


def test_content_and_path_are_split_in_every_spelling() -> None:
    root = parse_cid(HELLO)
    for text in (HELLO, f"/ipfs/{HELLO}", f"ipfs://{HELLO}", f"{HELLO}/"):
        assert split_content(text) == (root, "")
    assert split_content(f"{HELLO}/a//b/.", "c") == (root, "a/b/c")
    assert default_name(root, "a/b") == "b"
    assert default_name(root, "") == cid_text(root)


def test_sizes_are_powers_of_1024() -> None:
    assert [parse_size(text) for text in ("0", "10", "1k", "1KiB", "2MB", "3g", "1TiB")] == [
        0,
        10,
        1024,
        1024,
        2 << 20,
        3 << 30,
        1 << 40,
    ]
    for text in ("", "k", "-1", "1.5G", "1e9", "1x", "٣", "9" * 30):
        with pytest.raises(InputError):
            parse_size(text)


@given(st.text())
def test_no_name_steers_the_terminal(name: str) -> None:
    assert printable(name).isprintable()


@given(st.text(max_size=20))
def test_arguments_of_any_text_never_crash(text: str) -> None:
    for parse in (parse_range, parse_size, split_content):
        with suppress(InputError):
            parse(text)


def test_identifiers_are_text_in_json() -> None:
    assert plain({"a": parse_cid(HELLO), "b": [bytes(32)], "c": (b"\x01",)}) == {"a": HELLO, "b": ["a" * 52], "c": ["01"]}


def test_results_survive_a_stream_that_cannot_encode_them() -> None:
    done = dds("get", "b\udcff", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == exits.BAD_INPUT
    assert isinstance(io.StringIO(done.stderr).readline(), str)


def test_the_policy_is_shown_written_checked_and_explained_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, page = ["--home", str(tmp_path / "home"), "--json"], tmp_path / "page.html"
    page.write_text("hello")

    def answer(*argv: str) -> dict[str, Any]:
        assert run([*home, "policy", *argv]) == exits.OK
        made: dict[str, Any] = json.loads(capsys.readouterr().out)
        return made

    assert answer("show")["where"] == "the policy that comes with dds"
    path = Path(answer("init")["path"])
    path.write_text('[[rule]]\nlabel = "pages"\ntype = "text/html"\nclass = "hot"')
    assert [rule["label"] for rule in answer("show")["rules"]] == ["pages"]
    assert answer("explain", str(page))["decision"]["class_name"] == "hot"
    path.write_text('[[rule]]\nclass = "hot"\nsize_min = "big"')
    assert run([*home, "policy", "check", str(path)]) == exits.BAD_INPUT
    error = error_of(capsys.readouterr().err)
    assert (error["code"], error["rule"], error["key"]) == ("config", 1, "size_min")
