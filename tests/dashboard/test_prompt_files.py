"""Files of prompts that a person gives to the page: names, contents, previews, and the route that takes them."""

import json
import stat
from pathlib import Path

import gradio as gr
import pytest
from http_requests import PASSWORD, ask, log_in, running, stream, visited
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from lowrank_rlhf.dashboard.access.guard import MAX_UPLOAD_BYTES, RequestGuard
from lowrank_rlhf.dashboard.guided import answers, prompt_files
from lowrank_rlhf.dashboard.guided import form as tab
from lowrank_rlhf.dashboard.guided.answers import answers_from, run_name
from lowrank_rlhf.dashboard.guided.form_html import preview_html
from lowrank_rlhf.dashboard.guided.prompt_files import column_map, keep, kept, preview
from lowrank_rlhf.dashboard.guided.settings import guided
from lowrank_rlhf.dashboard.guided.sizes import DATASET, HUMAN, Refused
from lowrank_rlhf.dashboard.guided.summary import summarise
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served.uploads import PREFIX, upload_routes
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.data.readers.sources import read_rows
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import write_atomic

LINES = "".join(f"How is number {number}?\n" for number in range(40))


class TestKeep:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("mine.txt", "mine.txt"),
            ("My prompts (1).CSV", "My-prompts-1.csv"),
            ("../../etc/passwd.txt", "etc-passwd.txt"),
            ("..\\x.jsonl", "x.jsonl"),
            (".hidden.json", "hidden.json"),
            ("\u202eabc\x00.txt", "abc.txt"),
            ("提示词.parquet", "提示词.parquet"),
            ("-.txt", "prompts.txt"),
            ("x" * 300 + ".txt", "x" * 80 + ".txt"),
            ("x" * 79 + " (1).txt", "x" * 79 + ".txt"),
            ("提" * 100 + ".txt", "提" * 26 + ".txt"),
            ("e\u0301" * 100 + ".txt", "é" * 40 + ".txt"),
        ],
    )
    def test_a_name_is_made_safe(self, tmp_path, name, expected) -> None:
        path = keep(tmp_path, name, b"x")
        assert path == tmp_path / "_data" / expected
        assert kept(tmp_path, path.name) == path

    @pytest.mark.parametrize("name", ["a.py", "a", "", "a.txt.gz", "..", "a.txt/", "....txt"])
    def test_another_type_is_refused(self, tmp_path, name) -> None:
        with pytest.raises(UserError, match="unknown file type"):
            keep(tmp_path, name, b"x")
        assert list(tmp_path.iterdir()) == []

    def test_no_file_is_overwritten(self, tmp_path) -> None:
        """A run may still read the first one."""
        first = keep(tmp_path, "a.txt", b"one")
        assert keep(tmp_path, "a.txt", b"one") == first
        second = keep(tmp_path, "a.txt", b"two")
        assert (first.read_bytes(), second.name, second.read_bytes()) == (b"one", "a-2.txt", b"two")
        (tmp_path / "_data" / "b.txt").symlink_to(tmp_path / "outside.txt")
        assert keep(tmp_path, "b.txt", b"three").name == "b-2.txt"
        assert not (tmp_path / "outside.txt").exists()

    def test_the_second_file_of_a_long_name_is_found(self, tmp_path) -> None:
        for name in ("x" * 80, "提" * 80):
            keep(tmp_path, f"{name}.txt", b"one")
            second = keep(tmp_path, f"{name}.txt", b"two")
            assert second.stem.endswith("-2")
            assert kept(tmp_path, second.name) == second

    def test_a_full_folder_is_refused(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(prompt_files, "MAX_KEPT_BYTES", 5)
        keep(tmp_path, "a.txt", b"one")
        with pytest.raises(UserError, match="Delete files that no run reads"):
            keep(tmp_path, "b.txt", b"two")
        assert [path.name for path in (tmp_path / "_data").iterdir()] == ["a.txt"]

    def test_a_linked_folder_is_refused(self, tmp_path) -> None:
        (tmp_path / "_data").symlink_to(tmp_path)
        with pytest.raises(UserError, match="a link"):
            keep(tmp_path, "a.txt", b"x")

    def test_a_large_file_is_refused(self, tmp_path) -> None:
        with pytest.raises(UserError, match="larger than 32 MiB"):
            keep(tmp_path, "a.txt", b"x" * (MAX_UPLOAD_BYTES + 1))

    @pytest.mark.parametrize("name", ["../config.txt", "../config.yaml", "a.txt", "_data", "/etc/passwd", "", ".txt"])
    def test_only_kept_files_are_read(self, tmp_path, name) -> None:
        for outside in ("config.yaml", "config.txt"):
            (tmp_path / outside).write_text("x")
        with pytest.raises(UserError):
            kept(tmp_path, name)

    def test_the_folder_is_no_run(self, tmp_path) -> None:
        write_atomic(keep(tmp_path, "a.txt", b"x").parent / "config.yaml", "name: x\n")
        assert RunsFolder(tmp_path).names() == []


class TestPreview:
    def test_what_is_in_the_file_is_shown_as_text(self, tmp_path) -> None:
        file = tmp_path / "a.csv"
        file.write_text("prompt,response\n<b>one</b>,1\ntwo,2,3\nthree,4\n", encoding="utf-8")
        found = preview(file, {})
        assert (found.names, found.rows[0]) == (["prompt", "response"], {"prompt": "<b>one</b>", "response": "1"})
        shown = preview_html(found, "en")
        assert "&lt;b&gt;one&lt;/b&gt;" in shown
        assert "<b>" not in shown
        assert html(f"{file}:3: 3 cells, expected 2") in shown
        counts = t("file.counts", "en", rows=3, prompts=2, format="prompt-completion", responses=2, comparisons=0)
        assert html(counts) in shown

    def test_an_unknown_format_shows_the_columns_to_choose_from(self, tmp_path) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps({"frage": "a", "antwort": "b", "label": 1, "nr": 2}) + "\n", encoding="utf-8")
        found = preview(file, {})
        assert (found.loaded, found.names) == (None, ["frage", "antwort", "label", "nr"])
        assert "unknown format" in found.problem[0]
        columns = column_map(found.names, "frage", "antwort")
        assert columns == {"prompt": "frage", "response": "antwort", "label": None}
        (entry,) = preview(file, columns).loaded.located
        assert (entry.example.prompt[0].content, entry.example.response) == ("a", "b")

    def test_a_chosen_prompt_keeps_the_comparisons(self, tmp_path) -> None:
        file = tmp_path / "a.jsonl"
        rows = [{"q": f"q {i}", "chosen": f"good {i}", "rejected": "bad", "score": 1} for i in range(20)]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        columns = column_map(preview(file, {}).names, "q", "")
        assert columns == {"prompt": "q", "score": None}
        found = preview(file, columns)
        assert html(t("file.ignored", "en", columns="score")) in preview_html(found, "en")
        made = answers_from(file, columns, "owner/model", DATASET, None)
        assert len(made.compared) == 20
        assert guided(made).config.rank.columns == columns
        imitated = column_map(found.names, "q", "chosen")
        assert imitated == {"prompt": "q", "response": "chosen", "rejected": None, "score": None}
        assert answers_from(file, imitated, "owner/model", DATASET, None).compared == ()

    def test_without_a_choice_no_column_is_mapped(self) -> None:
        assert column_map(["prompt", "label"], "", None) == {}
        assert column_map(["prompt", "label"], "prompt", "") == {"label": None}

    def test_a_file_that_cannot_be_read_says_why(self, tmp_path) -> None:
        file = tmp_path / "a.parquet"
        file.write_bytes(b"no parquet")
        assert "cannot be read as Parquet" in preview_html(preview(file, {}), "en")


class TestAnswers:
    def test_bad_rows_are_left_out_and_said(self, tmp_path) -> None:
        file = tmp_path / "a.csv"
        file.write_text("prompt,x\n" + "".join(f"n {i},1\n" for i in range(40)) + "too,many,cells\n", encoding="utf-8")
        made = guided(answers_from(file, {}, "owner/model", HUMAN, None))
        assert made.config.data.skip_bad_rows == 0.03
        assert made.choices[0].values == {"count": 1}

    def test_a_file_of_comparisons_is_counted_by_prompt(self, tmp_path) -> None:
        prompts, pairs = tmp_path / "提示.txt", tmp_path / "pairs.jsonl"
        prompts.write_text(LINES, encoding="utf-8")
        rows = [{"prompt": f"p {i // 2}", "chosen": f"a {i}", "rejected": "b"} for i in range(60)]
        pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        found = answers_from(prompts, {}, "owner/model", DATASET, str(pairs))
        assert (len(found.compared), found.comparisons, found.name) == (30, str(pairs), "mine")
        assert guided(found).config.rank.dataset == str(pairs)
        with pytest.raises(Refused):
            guided(answers_from(prompts, {}, "owner/model", DATASET, None))

    def test_the_run_is_named_after_the_file(self) -> None:
        names = [run_name(text) for text in ("mine", "Meine Fragen 2", "提示词", "-x", "x" * 90)]
        assert names == ["mine", "Meine-Fragen-2", "mine", "x", "x" * 60]


class TestTab:
    def test_a_sent_file_is_taken_by_its_name_alone(self, tmp_path) -> None:
        path = keep(tmp_path, "a.txt", b"x")
        assert tab._received(tmp_path, 200, "a.txt", "en") == (str(path), "")
        for status, answer in ((200, "../secret.txt"), (415, "a.py: unknown file type"), (0, ""), (401, "")):
            found, problem = tab._received(tmp_path, status, answer, "en")
            assert (found, bool(problem)) == (None, True)
        assert "32 MiB" in tab._received(tmp_path, 413, "a.txt", "zh")[1]

    def test_why_no_file_came_is_said_in_the_language(self, tmp_path) -> None:
        for status, key in ((0, "drop.unreachable"), (401, "drop.logged_out")):
            assert tab._received(tmp_path, status, "Log in first.", "zh") == (None, t(key, "zh"))

    def test_a_taken_file_stays_shown_in_another_language_and_can_be_removed(self, tmp_path) -> None:
        *_, zone, _ = tab._in_language("zh", str(tmp_path / "pairs.jsonl"))
        assert "pairs.jsonl" in zone
        assert t("drop.remove", "zh") in zone
        assert tab._received(tmp_path, 204, "", "en") == (None, "")
        assert t("drop.remove", "zh") not in tab._comparisons_zone(None, "zh")

    def test_a_file_is_read_and_tokenized_once(self, tmp_path, monkeypatch) -> None:
        read: list[Path] = []
        monkeypatch.setattr(prompt_files, "read_rows", lambda path: read.append(path) or read_rows(path))
        counted: list[int] = []
        monkeypatch.setattr(answers, "summarise", lambda *given: counted.append(1) or summarise(*given))
        file, _ = tab._pasted(tmp_path, LINES, "en")
        for language in ("en", "zh", "en"):
            tab._columns(file)
            tab._look(file, "", "", "quickstart", language)
        assert (len(read), len(counted)) == (1, 1)
        Path(file).write_text("one\ntwo\n", encoding="utf-8")  # deleted and sent again
        assert prompt_files.preview(Path(file), {}).counts.prompts == 2

    def test_without_a_model_nothing_is_measured(self, tmp_path) -> None:
        file, _ = tab._pasted(tmp_path, LINES, "en")
        for none in (None, ""):
            shown, models, _ = tab._look(file, "", "", none, "en")
            assert "bad" not in shown
            assert models == gr.skip()

    def test_a_run_reads_its_file_from_any_folder(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        file, _ = tab._pasted(Path("runs"), LINES, "en")
        found = answers_from(Path(file), {}, "owner/model", HUMAN, None)
        assert found.file == str(tmp_path / "runs" / "_data" / "my-prompts.txt")

    def test_pasted_lines_become_a_file(self, tmp_path) -> None:
        path, problem = tab._pasted(tmp_path, LINES, "en")
        assert (Path(path).read_text(encoding="utf-8"), problem) == (LINES, "")
        assert tab._pasted(tmp_path, " \n", "en") == (None, t("guided.prompts_first", "en"))

    def test_the_models_are_labelled_with_their_memory(self, tmp_path) -> None:
        file, _ = tab._pasted(tmp_path, LINES, "en")
        _, update, _ = tab._look(file, "", "", "owner/model", "en")
        labels = {value: label for label, value in update["choices"]}
        assert "SmolLM2-135M-Instruct · " in labels["quickstart"]
        assert labels["owner/model"].endswith(t("guided.unknown", "en"))
        few, _ = tab._pasted(tmp_path, "one\ntwo\n", "en")
        assert html(t("refused.too_few", "en", least=16, prompts=2)) in tab._look(few, "", "", "quickstart", "en")[0]
        shown = tab._look(file, "", "", "./no/such/folder", "en")[0]
        assert "not found on the computer that serves this page" in shown

    @pytest.mark.parametrize(
        ("missing", "key"), [({"file": None}, "guided.prompts_first"), ({"model": ""}, "guided.model_first")]
    )
    def test_what_is_missing_is_named(self, tmp_path, missing, key) -> None:
        from dashboard_runs import page_of

        file, _ = tab._pasted(tmp_path, LINES, "en")
        given = {"file": file, "prompt": "", "response": "", "model": "quickstart", "comparisons": None} | missing
        *_, shown = tab._make(page_of(tmp_path), HUMAN, **given, language="en")
        assert html(t(key, "en")) in shown


class TestRoute:
    def test_the_dashboard_keeps_a_file(self, tmp_path) -> None:
        with running("dashboard", tmp_path) as url:
            status, content, _ = ask(url, "/data/My%20file.txt", "POST", LINES.encode(), Origin=url)
            assert (status, content) == (200, b"My-file.txt")
            path = tmp_path / "runs" / "_data" / "My-file.txt"
            assert path.read_text(encoding="utf-8") == LINES
            assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0
            assert ask(url, "/data/x.py", "POST", b"x", Origin=url)[0] == 415
            assert ask(url, "/data/..%2f..%2fx.txt", "POST", b"x", Origin=url)[0] == 404
            assert ask(url, "/data/My-file.txt", Origin=url)[0] == 405  # nothing is read back
            for headers in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
                assert ask(url, "/data/evil.txt", "POST", b"x", **headers)[0] == 403
            body = [b"x" * 2**20] * 33
            assert stream(url, "/data/large.txt", body, Origin=url) == 413
            assert stream(url, "/data/large.txt", body[:5], Origin=url) == 200
        assert sorted(path.name for path in (tmp_path / "runs" / "_data").iterdir()) == ["My-file.txt", "large.txt"]

    def test_the_password_protects_it(self, tmp_path) -> None:
        with running("dashboard", tmp_path, PASSWORD) as url:
            assert ask(url, "/data/a.txt", "POST", b"x", Origin=url)[0] == 401
            assert ask(url, "/data/a.txt", "POST", b"x", Origin=url, Cookie=log_in(url))[0] == 200

    def test_the_annotators_page_takes_no_file(self, tmp_path) -> None:
        with visited("annotators", tmp_path) as visitor:
            assert visitor.ask("/data/a.txt", "POST", b"x", Origin=visitor.url)[0] == 404
        assert not list(tmp_path.rglob(prompt_files.FOLDER))

    def test_a_page_that_names_no_upload_lets_none_pass(self, tmp_path) -> None:
        """Even if the route were there."""
        routes = upload_routes(tmp_path)
        for settings, expected in (({}, 404), ({"upload_prefixes": (PREFIX,)}, 200)):
            guard = Middleware(RequestGuard, hosts=["testserver"], **settings)
            client = TestClient(Starlette(routes=routes, middleware=[guard]))
            assert client.post("/data/a.txt", content=b"x").status_code == expected
