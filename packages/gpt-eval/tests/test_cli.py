"""The command as a person uses it: results on stdout, progress and one sentence on stderr, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from judge_server import first, openai_saying, refusing, running, saying, scoring

from gpt_eval.cli import main

ENTRIES = [
    {"instruction": f"Say {i}.", "input": "", "output": str(i), "model_response": f"It is {i}."} for i in range(20)
]


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(ENTRIES, indent=4), encoding="utf-8")
    return path


def judge(path, server, *further):
    url = server if isinstance(server, str) else server.url
    quick = ["--backoff", "0", "--retries", "1", "--timeout", "5", "--url", url]
    return main(["judge", str(path), *quick, *further])


def test_judging_prints_a_report_and_writes_it(answers, tmp_path, capsys):
    with running(scoring(80)) as server:
        assert judge(answers, server, "--out", str(tmp_path / "report"), "--no-canaries") == 0
    out, err = capsys.readouterr()
    assert "| mean score | 80.0000 |" in out
    assert "judged 20/20" in err
    told = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (told["facts"]["n_scored"], told["facts"]["judge"]["model"]) == (20, "llama3")
    assert (tmp_path / "report" / "report.md").read_text(encoding="utf-8") == out.removesuffix("\n")
    assert len(server.bodies) == 20


def test_json_is_one_object_and_canaries_are_no_items(answers, capsys):
    with running(scoring(80)) as server:
        assert judge(answers, server, "--json") == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)["facts"]
    assert (facts["n"], len(facts["canaries"]), len(server.bodies)) == (20, 12, 32)
    assert "canaries as it should not" in err


def test_an_openai_server_judges_as_well(answers, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with running(openai_saying('{"score": 70}')) as server:
        assert judge(answers, server, "--openai", "--model", "gpt", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["figures"][0]["measured"]["value"] == 70
    assert "sk-very-secret" not in out + err


@pytest.mark.parametrize(("n_bad", "share", "code"), [(1, "5%", 0), (2, "5%", 1), (2, "0.1", 0), (1, "0", 1)])
def test_more_without_a_score_than_is_let_pass_is_a_failure(answers, capsys, n_bad, share, code):
    with running(first(n_bad, saying("eighty"), scoring())) as server:
        assert judge(answers, server, "--no-canaries", "--max-failed", share) == code
    assert f"{n_bad} of 20 have no result; the first reason: it holds no number" in capsys.readouterr().err


def test_a_judge_who_never_replies_is_the_networks_fault_and_one_who_goes_away_a_failure(answers, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
    assert judge(answers, nowhere) == 4
    assert "cannot be reached" in capsys.readouterr().err
    with running(refusing(404, "model 'llama3' not found")) as server:
        assert judge(answers, server) == 4
        assert len(server.bodies) == 5
    assert "404: model 'llama3' not found" in capsys.readouterr().err
    cache = tmp_path / "cache.jsonl"
    with running(first(8, scoring(), refusing(503, "gone"))) as server:
        assert judge(answers, server, "--no-canaries", "--cache", str(cache)) == 1
    assert "asks only for the rest" in capsys.readouterr().err
    assert judge(answers, nowhere, "--no-canaries", "--cache", str(cache)) == 4
    with running(scoring()) as server:
        assert judge(answers, server, "--no-canaries", "--cache", str(cache)) == 0
        assert len(server.bodies) == 12


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "COMMAND"),
        (["jugde"], 2, "jugde"),
        (["judge"], 2, "answers"),
        (["judge", "{answers}", "--url", "ftp://x"], 2, "http or https"),
        (["judge", "{answers}", "--timeout", "0"], 2, "total must be above 0"),
        (["judge", "{answers}", "--retries", "-1"], 2, "retries"),
        (["judge", "{answers}", "--seed", "-1"], 2, "--seed"),
        (["judge", "{answers}", "--max-failed", "5x"], 2, "no share"),
        (["judge", "{answers}.gone"], 3, "No such file"),
        (["judge", "{answers}", "--key", "mine"], 3, "item 1: the item has no 'mine'"),
        (["judge", "{answers}", "--cache", "{answers}"], 3, "no reply as this program keeps them"),
        (["judge", "{answers}", "--checkpoint", "{answers}.gone"], 3, "no checkpoint"),
        (["judge", "{answers}", "--openai"], 2, "--openai names no judge; give --model"),
        (["judge", "{answers}", "--url", "127.0.0.1:9", "--out", "{answers}/report"], 2, "--out"),
        (["judge", "{answers}", "--url", "127.0.0.1:9", "--out", "{answers}/deep/report.json"], 2, "cannot be written"),
        (["compare", "{answers}", "{answers}", "--url", "127.0.0.1:9", "--out", "{answers}/x"], 2, "cannot be written"),
        (["compare", "{answers}"], 2, "b"),
        (["perplexity", "x", "{answers}", "--context-length", "0"], 2, "no whole number of at least 1"),
        (["perplexity", "x", "{answers}", "--batch-size", "0"], 2, "no whole number of at least 1"),
        (["harness", "x", "--tasks", "y", "--batch-size", "0"], 2, "no whole number of at least 1"),
    ],
)
def test_what_a_person_can_correct_is_one_sentence(answers, arguments, code, sentence, capsys):
    assert main([one.replace("{answers}", str(answers)) for one in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err


def test_no_control_character_of_the_judge_reaches_the_terminal(answers, capsys):
    evil = "\x1b]52;c;ZXZpbA==\x07\x9b31m\u202eoops"
    for answer in (saying(evil, model=f"llama{evil}"), refusing(500, evil), refusing(404, evil.encode())):
        with running(answer) as server:
            judge(answers, server)
        out, err = capsys.readouterr()
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)


def test_two_files_are_compared_by_scores_and_by_pairs(answers, tmp_path, capsys):
    better = [{**entry, "model_response": f"It is {i}, gladly."} for i, entry in enumerate(ENTRIES)]
    other = tmp_path / "b.jsonl"
    other.write_text("".join(json.dumps(entry) + "\n" for entry in better[:-1]), encoding="utf-8")
    with running(saying(lambda question: json.dumps({"score": 90 if "gladly" in question else 60}))) as server:
        assert main(["compare", str(answers), str(other), "--url", server.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["figures"][0]["measured"]["value"], told["figures"][0]["measured"]["n"]) == (30, 19)
    assert (told["facts"]["n_wins"], told["facts"]["n_unpaired"]) == (19, 1)

    def gladly(question):
        return json.dumps({"better": "1" if "gladly" in question.split("END OF ANSWER 1")[0] else "2"})

    with running(saying(gladly)) as server:
        assert main(["compare", str(answers), str(other), "--url", server.url, "--json", "--pairwise"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [figure["measured"]["value"] for figure in told["figures"]] == [1, 0.5]
    assert len(server.bodies) == 38


def test_comparing_tells_what_was_cut_and_why_something_has_no_result(answers, capsys):
    replies = [saying('{"score": 80}', done_reason="length"), saying("eighty"), saying("90", prompt_eval_count=4096)]
    for further in ([], ["--pairwise"]):
        n = len(ENTRIES) * 2
        with running(first(1, replies[0], first(1, replies[1], replies[2]))) as server:
            code = main(["compare", str(answers), str(other_answers(answers)), "--url", server.url, "--json", *further])
        facts = json.loads(capsys.readouterr().out)["facts"]
        assert (facts["n_prompt_cut"], facts["n_reply_cut"]) == (n - 2, 1)
        assert sum(facts["reasons"].values()) == facts["n_unparsed"] == (n if further else 1)
        assert (facts["n_scored"] + facts["n_unparsed"], facts["n_failed"]) == (n, 0)
        assert facts["models that replied"] == ["llama3"]
        assert code == (1 if further else 0)


def other_answers(answers):
    path = answers.with_name("other.json")
    path.write_text(json.dumps([{**entry, "model_response": "Hm."} for entry in ENTRIES]), encoding="utf-8")
    return path


def test_only_what_both_files_have_is_judged(answers, tmp_path, capsys):
    one, none = tmp_path / "one.json", tmp_path / "none.json"
    one.write_text(json.dumps(ENTRIES[:1]), encoding="utf-8")
    none.write_text(json.dumps([{**ENTRIES[0], "instruction": "Sing."}]), encoding="utf-8")
    with running(scoring()) as server:
        assert main(["compare", str(answers), str(one), "--url", server.url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["facts"]["n_unpaired"] == len(ENTRIES) - 1
        assert len(server.bodies) == 1
        for further in ([], ["--pairwise"]):
            assert main(["compare", str(answers), str(none), "--url", server.url, *further]) == 3
            assert "share no item" in capsys.readouterr().err
        assert len(server.bodies) == 1


def test_a_report_that_cannot_be_saved_any_more_is_printed(answers, tmp_path, capsys):
    out = tmp_path / "report.json"

    def taking_the_place(handler):
        out.mkdir(exist_ok=True)
        scoring()(handler)

    with running(taking_the_place) as server:
        assert judge(answers, server, "--out", str(out), "--no-canaries") != 0
    assert "| mean score | 80.0000 |" in capsys.readouterr().out


def test_a_judge_who_replied_to_a_canary_alone_has_replied(answers, capsys):
    with running(first(1, saying("90"), refusing(500, "gone"))) as server:
        assert judge(answers, server) == 1
    assert "500: gone" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_sentence(answers, capsys):
    pytest.importorskip("torch", reason="needs the extra model")
    for device in ("foo", "meta"):
        assert main(["perplexity", "x", str(answers), "--device", device]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"gpt-eval: --device '{device}' cannot be used here: ")
        assert len(err.splitlines()) == 1


def test_a_perplexity_without_a_place_to_save_it_is_not_computed(answers, capsys):
    pytest.importorskip("gpt_core", reason="needs the extra model")
    assert main(["perplexity", "no-checkpoint", str(answers), "--out", str(answers / "report")]) == 2
    assert "--out" in capsys.readouterr().err


def test_help_and_judging_import_no_torch_and_name_every_command():
    code = (
        "import sys; from gpt_eval.cli import main; main(['--help']); main(['judge', '--help']);"
        "sys.exit(bool({'torch', 'lm_eval', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("judge", "compare", "perplexity", "harness", "--max-failed"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_keeps_what_was_answered(answers, tmp_path, number, code):
    cache = tmp_path / "cache.jsonl"
    asked = threading.Event()

    def then_hang(handler):
        asked.set()
        threading.Event().wait(20)

    with running(first(3, scoring(), then_hang)) as server:
        # A shell's background jobs ignore SIGINT, and so would what they start.
        code_of_child = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from gpt_eval.cli import main; sys.exit(main())"
        )
        command = [sys.executable, "-c", code_of_child, "judge", str(answers), "--url", server.url, "--no-canaries"]
        process = subprocess.Popen([*command, "--cache", str(cache)], stderr=subprocess.PIPE, env={**os.environ})
        assert asked.wait(30)
        process.send_signal(number)
        assert process.wait(20) == code
        assert "Traceback" not in process.stderr.read().decode()
        process.stderr.close()
    assert cache.read_bytes().count(b"\n") == 3


def test_a_report_replaces_an_older_one_and_nothing_else(answers, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("mine", encoding="utf-8")
    before = answers.read_bytes()
    with running(scoring()) as server:
        arguments = ["judge", str(answers), "--url", server.url, "--no-canaries", "--out"]
        for place in (answers, tmp_path / "notes.json"):
            assert main([*arguments, str(place)]) == 2
        assert not server.bodies
        assert [main([*arguments, str(tmp_path / "report")]) for _ in range(2)] == [0, 0]

    assert answers.read_bytes() == before
    assert notes.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "notes.json").exists()
