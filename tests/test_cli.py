"""The command line: results on stdout, one line for bad input, a config file instead of flags."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pandas as pd
import pytest

import probes
from probes import cli
from tests import tiny


def run(*arguments: object) -> int:
    """Run the command line in process; return its exit code."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A model, a template, items and a finished run."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.save_model(folder / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder / "model")
    (folder / "template.yaml").write_text("user: 'How positive is {{ word }}? Reply with the number only.'\n")
    with (folder / "items.jsonl").open("w") as file:
        for k in range(60):
            word = tiny.WORDS[k % len(tiny.WORDS)]
            record = {"key": f"w{k}", "text": f"{word} {k}", "scores": [k % 9 - 4, (k * 5) % 9 - 4]}
            file.write(json.dumps(record) + "\n")
    assert run("capture", *capture_flags(folder), "--out", folder / "run.h5") == 0
    return folder


def capture_flags(folder):
    return [
        *("--items", folder / "items.jsonl", "--model", folder / "model", "--template", folder / "template.yaml"),
        *("--human-range=-4..4", "--field", "word=text", "--id", "key", "--human", "scores"),
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A model and pairs of responses to one task, each rated by three people: 1 where they prefer A."""
    folder = tmp_path_factory.mktemp("pairs")
    tiny.save_model(folder / "model")
    words = tiny.WORDS
    with (folder / "pairs.jsonl").open("w") as file:
        for k in range(40):
            first, second = f"{words[k % 20]} {k}", f"{words[(k + 9) % 20]} {k + 1}"
            record = {"task": "Say a word.", "response_a": first, "response_b": second}
            file.write(json.dumps(record | {"human": [int(k % 4 > rater) for rater in range(3)]}) + "\n")
    return folder


def pair_flags(folder):
    return [
        *("--items", folder / "pairs.jsonl", "--model", folder / "model", "--template", "pair"),
        *("--scale", "A=1,B=0", "--field", "response_a", "--field", "response_b", "--field", "task"),
    ]


def test_capture_maps_columns_and_counts(workspace, capsys):
    assert run("capture", *capture_flags(workspace), "--out", workspace / "again.h5", "--limit", 7, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"path": str(workspace / "again.h5"), "items": 7, "captured": 7}
    with probes.open_run(workspace / "again.h5") as opened:
        assert opened.ids[:2] == ("w0", "w1")
        assert opened.items[0].fields == {"word": "calm 0"}
        assert opened.human.shape == (7, 2)


def test_dry_run_shows_the_prompt_as_the_model_sees_it(workspace, capsys):
    assert run("capture", *capture_flags(workspace), "--out", workspace / "dry.h5", "--dry-run") == 0
    out = capsys.readouterr().out
    prompt = "<|start|>user\nHow positive is calm 0? Reply with the number only.<|end|>\n<|start|>assistant\n"
    assert prompt in out
    n_tokens = len(tiny.tokenizer()(prompt, add_special_tokens=False)["input_ids"])
    assert f"tokens of it   {n_tokens}\n" in out
    assert "items          60\n" in out
    assert "of these       60 labelled, in 60 groups\n" in out
    assert "fields         word\n" in out
    assert "readings       60\n" in out
    counts = re.search(r"tokens         ([\d,]+) one by one, ([\d,]+) with every shared prefix computed once \(", out)
    assert 0 < int(counts[2].replace(",", "")) < int(counts[1].replace(",", ""))
    assert "generated" not in out
    assert not (workspace / "dry.h5").exists()
    assert not (workspace / "dry.h5.partial").exists()


def test_dry_run_says_what_choices_and_texts_there_are(workspace, tmp_path, capsys):
    rows = [
        {"id": "a", "question": "Red?", "note": "n", "group": "g", "options": ["yes", "no"], "right": "yes"},
        {"id": "b", "question": "Blue?", "note": "n", "group": "g", "options": ["a b", "c", "d"], "right": "c"},
        {"id": "c", "question": "Green?", "note": "n", "group": "", "options": ["yes", "no"]},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.yaml").write_text("user: '{{ question }}'\n")
    flags = ("--items", tmp_path / "items.jsonl", "--choices", "options", "--target", "right", "--field", "question")
    flags = (*flags, "--field", "note", "--template", tmp_path / "t.yaml", "--model", workspace / "model")
    assert run("capture", *flags, "--out", tmp_path / "x.h5", "--dry-run") == 0
    out = capsys.readouterr().out
    judge = probes.Judge.load(str(workspace / "model"), template=tmp_path / "t.yaml", scale="choices")
    items = probes.read_items(
        tmp_path / "items.jsonl", choices="options", target="right", fields=["question", "note"], scale=judge.scale
    )
    lengths = judge.prompt_table(items).choices.n_tokens
    assert out.startswith(
        f"Choices: 7, 2 to 3 an item, scored by {lengths.min()} to {lengths.max()} tokens each; chance gives 0.417; "
        "of the first item: 'yes' | 'no'.\n"
    )
    assert "of these       2 labelled, in 2 groups\n" in out
    assert "fields         question; shown in no prompt: note\n" in out
    assert run("capture", *flags, "--out", tmp_path / "x.h5", "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert (found["fields"], found["unused_fields"]) == (["question"], ["note"])


def test_dry_run_says_why_nothing_is_shared(workspace, capsys):
    assert run("capture", *capture_flags(workspace), "--out", "x.h5", "--dry-run", "--no-share-prefix") == 0
    assert "in padded passes; shared prefixes are not used: switched off\n" in capsys.readouterr().out


def test_dry_run_counts_orders_samples_and_generated_tokens(pairs, capsys):
    flags = [*pair_flags(pairs), "--condition", "generate", "--samples", "3", "--temperature", "1"]
    assert run("capture", *flags, "--max-new-tokens", 4, "--out", "x.h5", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "Labels: B = 0, A = 1; human scores 0 to 1.\n" in out
    assert "readings       240 (40 items x 2 orders x 3 samples)\n" in out
    assert "generated      960 tokens at most\n" in out
    assert run("capture", *flags, "--max-new-tokens", 4, "--out", "x.h5", "--dry-run", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["n_items"], shown["n_readings"], shown["answer_tokens"], shown["sharing_note"]) == (40, 240, 960, "")
    assert shown["tokens_after"] < shown["tokens_before"]


def test_every_flag_of_a_generated_answer_reaches_the_run(workspace, capsys):
    flags = ["--condition", "reasoning", "--rule", "anchor:Verdict", "--max-new-tokens", 3, "--samples", 2]
    flags += ["--temperature", 0.5, "--seed", 7, "--mass", "--entropy", "--limit", 3]
    assert run("capture", *capture_flags(workspace), *flags, "--out", workspace / "generated.h5") == 0
    config = workspace / "generated.yaml"
    config.write_text(
        "condition: reasoning\nrule: anchor:Verdict\nmax-new-tokens: 3\nsamples: 2\ntemperature: 0.5\nseed: 7\n"
        "mass: true\nentropy: true\nlimit: 3\n"
    )
    assert run("capture", *capture_flags(workspace), "--config", config, "--out", workspace / "from-yaml.h5") == 0
    with probes.open_run(workspace / "generated.h5") as one, probes.open_run(workspace / "from-yaml.h5") as other:
        assert one.judge_hash == other.judge_hash
        assert one.extras == other.extras == ("scale_mass", "entropy")
        assert one.readings.sample.tolist() == [0, 1] * 3
        assert one.generated_text == other.generated_text
        described = one.attr("judge")
    assert described["condition"] == "reasoning"
    assert described["decoding"] == {
        "rule": {"kind": "anchor", "anchor": "Verdict"},
        "max_new_tokens": 3,
        "samples": 2,
        "temperature": 0.5,
        "seed": 7,
    }


def test_readings_of_the_prompt_are_flags(workspace, capsys):
    (workspace / "response.yaml").write_text("user: 'How positive is {{ response }}? Reply with the number only.'\n")
    flags = ["--items", workspace / "items.jsonl", "--model", workspace / "model", "--human-range=-4..4", "--limit", 3]
    flags += ["--template", workspace / "response.yaml", "--field", "response=text", "--id", "key", "--human", "scores"]
    flags += ["--last-positions", 4, "--response-mean", "--batch-tokens", 50, "--out", workspace / "prompt.h5"]
    assert run("capture", *flags) == 0
    with probes.open_run(workspace / "prompt.h5") as opened:
        assert opened.extra("last_positions").shape == (3, 4, 4, 48)
        assert opened.extra("response_mean").shape == (3, 4, 48)
        assert opened.attr("config")["batch_tokens"] == 50


def test_pairs_are_judged_and_compared(pairs, capsys):
    assert run("capture", *pair_flags(pairs), "--out", pairs / "run.h5", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"path": str(pairs / "run.h5"), "items": 40, "captured": 40}
    assert "the response shown first gains" in captured.err
    with probes.open_run(pairs / "run.h5") as opened:
        assert opened.items[0].fields == {"response_a": "calm 0", "response_b": "song 1", "task": "Say a word."}
        assert len(opened.status) == 80
        # The share of raters who prefer A.
        assert opened.human_value[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    judges = ["--judge", "final", "--judge", "slope-ridge"]
    assert run("compare", pairs / "run.h5", *judges, "--resamples", 200, "--json") == 0
    rows = {row["judge"]: row for row in json.loads(capsys.readouterr().out)}
    assert {(row["n_used"], row["n_total"]) for row in rows.values()} == {(40, 40)}
    assert all(-1 <= rows[name]["spearman"] <= 1 for name in ("final", "slope-ridge"))


def test_compare_prints_and_writes_a_table(workspace, capsys):
    table = workspace / "tables" / "comparison.csv"
    judges = [flag for judge in ("final", "final-ridge", "slope-ridge", "lager@norm") for flag in ("--judge", judge)]
    assert run("compare", workspace / "run.h5", *judges, "--resamples", 200, "--out", table) == 0
    out = capsys.readouterr().out
    written = pd.read_csv(table)
    assert set(written["judge"]) >= {"final", "final-ridge", "slope-ridge", "lager@norm"}
    wanted = [
        "judge",
        "labels_used",
        "n_used",
        "n_total",
        "spearman",
        "spearman_lo",
        "spearman_hi",
        "pearson",
        "kendall",
    ]
    assert set(wanted) <= set(written.columns)
    assert "60 of 60 items" in out
    assert run("compare", workspace / "run.h5", "--judge", "final", "--resamples", 200, "--json") == 0
    assert any(row["judge"] == "final" for row in json.loads(capsys.readouterr().out))


def test_fit_saves_judges_that_score_the_run(workspace, capsys):
    out = workspace / "judges"
    assert run("fit", workspace / "run.h5", "--judge", "slope-ridge", "--judge", "layer:2", "--out", out) == 0
    assert capsys.readouterr().out.split() == [str(out / "slope-ridge.json"), str(out / "layer-2.json")]
    from probes.artefact import FittedJudge

    with probes.open_run(workspace / "run.h5") as opened:
        assert FittedJudge.load(out / "slope-ridge.json").score(opened).value.shape == (60,)


def test_plot_draws_what_was_asked_for(workspace, capsys):
    out = workspace / "figures"
    judges = ["--judge", "final", "--judge", "slope-ridge"]
    assert run("plot", workspace / "run.h5", *judges, "--out", out, "--format", "svg") == 0
    assert sorted(path.name for path in out.iterdir()) == ["alignment.svg", "weights.svg"]
    assert run("plot", workspace / "run.h5", "--figure", "pie") == 2
    assert capsys.readouterr().err.startswith("error: no figure 'pie': choose one of alignment, weights, forest, ")


def test_a_config_file_stands_for_flags_and_flags_win(workspace, capsys):
    config = workspace / "capture.yaml"
    config.write_text(
        f"items: {workspace / 'items.jsonl'}\nmodel: {workspace / 'model'}\ntemplate: {workspace / 'template.yaml'}\n"
        f"human-range: -4..4\nfield: [word=text]\nid: key\nhuman: scores\nout: {workspace / 'config.h5'}\nlimit: 9\n"
    )
    assert run("capture", "--config", config, "--limit", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"] == 4
    config.write_text("split: no\n")
    assert run("capture", "--config", config) == 2
    assert capsys.readouterr().err == f"error: {config}: split takes a text, got False; put quotes around it\n"
    config.write_text("itemz: x\n")
    assert run("capture", "--config", config) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {config}: `capture` has no setting itemz (did you mean items?); it has ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "none.h5"], "error: no such file: none.h5; give the path of a run that `probes capture` wrote\n"),
        (
            ["capture", "--items", "none.jsonl", "--out", "x.h5"],
            "error: none.jsonl: no such file; check the path\n",
        ),
        (
            ["capture", "--items", "x.jsonl", "--out", "x.h5", "--scale", "5..1"],
            "error: the scale '5..1' must run upwards, for example 1..5\n",
        ),
        (
            ["capture", "--items", "items.jsonl", "--out", "x.h5", "--condition", "guess"],
            "error: unknown condition 'guess': choose one of direct, generate, reasoning\n",
        ),
        (
            ["capture", "--items", "items.jsonl", "--out", "x.h5", "--quantization", "2bit"],
            "error: unknown quantization '2bit': choose 8bit or 4bit\n",
        ),
        (
            ["capture", "--items", "items.jsonl", "--out", "x.h5", "--samples", "2"],
            "error: the condition direct generates nothing; choose generate or reasoning (--condition)\n",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"id": "a", "response": "calm", "criterion_text": "c"}\n')
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == ""


def test_usage_errors_are_one_line_and_exit_with_2(capsys):
    assert run("capture", "--no-such-flag") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such option: --no-such-flag")
    assert error.count("\n") == 1
    assert run("capture", "--items", "x.jsonl") == 2
    assert capsys.readouterr().err == "error: Missing option '--out' / '-o'; see `probes capture --help`\n"


def test_a_path_that_cannot_be_written_is_one_line(workspace, capsys):
    blocked = workspace / "items.jsonl" / "table.csv"
    assert run("compare", workspace / "run.h5", "--judge", "final", "--resamples", 200, "--out", blocked) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {blocked.parent}: ")
    assert error.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(workspace, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("probes.store.open_run", interrupted)
    assert run("compare", workspace / "run.h5") == 130
    assert capsys.readouterr().err.strip() == "interrupted; the same command starts again, a capture where it stopped"


def test_starting_up_loads_nothing_heavy():
    code = "import sys, probes; print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    code = "import sys; from probes import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")
    for command in ("demo", "capture", "fit", "score", "compare", "plot"):
        assert command in done.stdout


def test_a_run_is_extended_selected_and_merged(workspace, tmp_path, capsys):
    path = tmp_path / "run.h5"
    assert run("capture", *capture_flags(workspace), "--limit", 20, "--out", path, "--compress") == 0
    assert run("capture", *capture_flags(workspace), "--limit", 30, "--out", path) == 2
    assert "items (20 there, 30 asked for, 10 of them new); extend=True (--extend) adds" in capsys.readouterr().err
    assert run("capture", *capture_flags(workspace), "--limit", 30, "--out", path, "--extend") == 0
    assert f"{path}: 30 of 30 items captured" in capsys.readouterr().out
    for name, items in (("a", ("w0", "w5")), ("b", ("w7",))):
        flags = [flag for item in items for flag in ("--item", item)]
        assert run("select", path, *flags, "--layer", "3", "--out", tmp_path / f"{name}.h5") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path / 'a.h5'}: 2 of 30 items, 1 layer"
    assert run("merge", tmp_path / "b.h5", tmp_path / "a.h5", "--out", tmp_path / "ba.h5") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ba.h5'}: 3 items of 2 runs\n"
    with probes.open_run(tmp_path / "ba.h5", trusted=False) as merged:
        assert merged.ids == ("w7", "w0", "w5")
        assert merged.layers == ("3",)
    assert run("merge", tmp_path / "a.h5", tmp_path / "a.h5", "--out", tmp_path / "aa.h5") == 2
    assert run("select", path, "--split", "dev", "--out", tmp_path / "aa.h5") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split("; ")[1] for line in errors] == ["select what to take from each", "it has ''"]
    assert not (tmp_path / "aa.h5").exists()
