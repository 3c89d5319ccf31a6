"""The evidence page: what it says, its clips, what is missing on it, and in a real browser what it does when used."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, needs_browser
from PIL import Image

from benchmarks import paper
from benchmarks.report.grid import PAPER, Cell, Column, Grid
from benchmarks.report.page import Evidence, page_html, write_page
from benchmarks.report.page_media import SIDE, Clip, make_media
from benchmarks.report.paper_comparison import compose
from benchmarks.report.paper_tables import render
from pw.io.video import probe, read_video, write_video

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\n\x1b[2J\u202e{{ 7 * 7 }}\\u003c"
SHOWN = "</script><img src=x onerror=alert(1)>\"'& \\x1b[2J\\u202e{{ 7 * 7 }}\\u003c"
"""How `pw.io.console.one_line` shows it."""

LEVELS = {"real": 40, "base": 90, "full": 130}
"""Row -> the grey of its first frame; each frame is 10 lighter, clip 1 of `full` 60 more."""


def grey(row: str, clip: int, frame: int) -> int:
    return LEVELS[row] + 10 * frame + 60 * (row == "full" and clip == 1)


def write_clip(path: Path, level: int, frames: int = 3, height: int = 24, width: int = 24) -> Clip:
    """A grey clip, each frame 10 lighter, with a black left half of its top row."""
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = (level + 10 * np.arange(frames))[:, None, None, None]
    video[:, : height // 8, : width // 2] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, video, fps=8)
    return Clip(path)


def table() -> Grid:
    columns = (Column("scores", "PSD ↓", "psd"), Column("scores", "seeds"), Column(PAPER, "MUSIQ"))
    rows = [("base", 1.5, 50.0), ("\u2003ours", 99.0, None), ("middle", 12.0, None), ("full", 0.25, 57.0)]
    return Grid(
        columns,
        tuple(
            (
                name,
                (
                    Cell(f"{psd} ± 0.1", verdict="better", value=psd, detail=f"seeds 0: {psd}; compared with base"),
                    Cell("2"),
                    Cell() if musiq is None else Cell(f"{musiq}", value=musiq),
                ),
            )
            for name, psd, musiq in rows
        ),
    )


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    rows = [
        (row, {f"{i:04d}": write_clip(tmp_path / "videos" / row / f"{i:04d}.mkv", grey(row, i, 0)) for i in range(2)})
        for row in LEVELS
    ]
    return Evidence(
        "Does it help?",
        "It helps & more.",
        "if it does not",
        [("holds", "full is better", "psd 1.5 → 0.25"), ("not resolved", "middle is better", "")],
        [("Scores", table()), ("Cost", Grid((Column("cost", "updates"),), (("base", (Cell("160", value=160.0),)),)))],
        rows=rows,
        compared=("base", "full"),
        about="Two clips.",
        changes=[("base → full", ["weighting: uniform → delta_sigma"])],
        runs=[("full", [("training 0123abcd, commit 89ab", "pw sample stage=hires")])],
        notes=[("seeds", "0, 1")],
    )


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.tags if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads."""
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


def page_of(evidence: Evidence, folder: Path) -> Page:
    return Page(write_page(evidence, folder).read_text())


class TestThePage:
    def test_says_all_in_the_order_of_a_talk_and_fetches_nothing(self, evidence: Evidence, tmp_path: Path) -> None:
        text = write_page(evidence, tmp_path / "out").read_text()
        words = (
            "<h1>Does it help?",
            "It helps &amp; more.",
            "✓ holds",
            "psd 1.5 → 0.25",
            "1.5 ± 0.1",
            'id="players"',
            '"160.0"',
        )
        places = [
            text.partition("</style>")[2].index(word)
            for word in (*words, "uniform → delta_sigma", "pw sample stage=hires", "<dd>0, 1")
        ]
        assert places == sorted(places)
        assert "http" not in text.replace("http-equiv", "")
        page = Page(text)
        cells = [td for td in page.attributes("td") if "data-value" in td]
        assert [td["data-value"] for td in cells] == ["1.5", "50.0", "99.0", "12.0", "0.25", "57.0", "160.0"]
        assert cells[0]["data-detail"] == cells[0]["title"] == "seeds 0: 1.5; compared with base"
        assert not [tag for tag, values in page.tags for key in values if key.startswith("on")]

    def test_of_a_table_alone_has_no_players(self, evidence: Evidence) -> None:
        page = Page(page_html(Evidence("t", tables=evidence.tables)))
        assert len(page.attributes("script")) == 1
        assert not page.attributes("canvas")

    def test_is_changed_by_no_name(self, evidence: Evidence, tmp_path: Path) -> None:
        """Quotes, tags, ends of line and of the script, an escape, a direction of writing, and jinja's braces."""
        clip = write_clip(tmp_path / HOSTILE.replace("/", "%2F?#") / "0.mkv", 30)

        def named(t: str) -> Evidence:
            grid = Grid((Column(t, t),), ((t, (Cell(t, detail=t, note=t),)),))
            return Evidence(
                *(t, t, t, [("holds", t, t)], [(t, grid), ("Cost", grid)], [(t, "a#b.png")]),
                rows=[(t, {t: clip, "gone": Clip(tmp_path / "gone.mkv")})],
                about=t, changes=[(t, [t])], runs=[(t, [(t, t)])], notes=[(t, t)], files=[t],
            )  # fmt: skip

        page, other = page_of(named(HOSTILE), tmp_path / "out"), page_of(named("t"), tmp_path / "plain")
        assert [(tag, list(values)) for tag, values in page.tags] == [(tag, list(values)) for tag, values in other.tags]
        assert page.texts["h1"] == [SHOWN]
        assert page.data["labels"] == [SHOWN]
        assert SHOWN in [td.get("title") for td in page.attributes("td")]
        text = (tmp_path / "out" / "index.html").read_text()
        assert not {"\x1b", "\u202e"} & set(text)
        source = page.data["clips"][0][page.data["names"].index(SHOWN)]["source"]
        assert not set(source) & set("<>\"'\n\x1b#?")

    def test_is_the_same_bytes_again_and_makes_no_file_twice(self, evidence: Evidence, tmp_path: Path) -> None:
        def files(folder: Path) -> dict[str, bytes]:
            return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

        write_page(evidence, tmp_path / "a")
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "page").glob("*[!n]")}
        written = files(tmp_path / "a")
        assert len(times) == 2 * 6
        write_page(evidence, tmp_path / "a")
        write_page(evidence, tmp_path / "b")
        assert files(tmp_path / "a") == files(tmp_path / "b") == written
        assert {path: path.stat().st_mtime_ns for path in times} == times

    def test_has_the_files_of_its_clips_alone(self, evidence: Evidence, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        write_page(evidence, folder)
        before = {path.name for path in (folder / "page").iterdir()}
        (folder / "page" / "media.json").write_text('{"0": [], "1": {"bytes": 3}}')  # damaged: all are made again
        next((folder / "page").glob("*.png")).write_bytes(b"cut off")
        write_clip(tmp_path / "videos" / "full" / "0000.mkv", 7)
        data = page_of(evidence, folder).data
        after = {path.name for path in (folder / "page").iterdir()}
        assert len(before - after) == len(after - before) == 2
        strip = np.asarray(Image.open(folder / "page" / data["clips"][2][0]["strip"]))
        assert strip[20, 20].tolist() == [7, 7, 7]

    def test_names_a_clip_that_is_missing_and_shows_the_others(self, evidence: Evidence, tmp_path: Path) -> None:
        (tmp_path / "videos" / "base" / "0000.mkv").write_bytes(b"no video")
        (tmp_path / "videos" / "base" / "0001.mkv").unlink()
        rows = [*evidence.rows, ("few", {"0001": Clip(tmp_path / "x.mkv", gap="is damaged by a test")})]
        page = page_of(Evidence("t", rows=rows), tmp_path / "out")
        listed = [text for text in page.texts["li"] if text.strip()]
        assert [text.split(":")[0] for text in listed] == ["base, clip 0000", "base, clip 0001", "few, clip 0001"]
        assert "damaged, truncated or not a video" in listed[0]
        assert listed[1].endswith("is gone")
        assert listed[2].endswith("is damaged by a test")
        shown = {
            label: ["mp4" in clip for clip in row]
            for label, row in zip(page.data["labels"], page.data["clips"], strict=True)
        }
        assert shown == {"real": [True] * 2, "base": [False] * 2, "full": [True] * 2, "few": [False] * 2}
        assert page.data["differences"][0][0][1] is None

    def test_that_cannot_be_written_is_an_error_of_the_file_system(self, evidence: Evidence, tmp_path: Path) -> None:
        (tmp_path / "page").write_text("in the way")
        with pytest.raises(OSError, match="page"):
            write_page(evidence, tmp_path)

    def test_links_clips_from_its_own_folder(self, evidence: Evidence, tmp_path: Path) -> None:
        folder = tmp_path / "outputs" / "ansc"
        for row in page_of(evidence, folder).data["clips"]:
            for clip in row:
                assert (folder / clip["source"]).resolve().is_file()
                assert clip["frames"] == 3
                assert (folder / "page" / clip["mp4"]).is_file()


class TestAWideTable:
    def test_has_the_papers_columns_open_in_a_part_that_has_room_for_them(self, evidence: Evidence) -> None:
        ours = tuple(Column("scores", f"a-metric-with-a-long-name-{i}") for i in range(8))
        columns = (*ours, Column(PAPER, "MUSIQ"))
        grid = Grid(columns, (("base", tuple(Cell("1.0 ± 0.1") for _ in columns)),))
        first, last = grid.split_for_page()
        assert (first.fits_page(), last.fits_page(), grid.fits_page()) == (True, True, False)
        text = page_html(replace(evidence, tables=[("Scores", grid)], rows=[]))
        assert 'class="aside"><button type="button">MUSIQ' not in text
        text = page_html(replace(evidence, tables=[("Scores", grid.select([0, 8]))], rows=[]))
        assert 'class="aside"><button type="button">MUSIQ' in text


class TestTheFilesOfAClip:
    @pytest.mark.parametrize(
        ("height", "width", "size"),
        # 16 times 24; 25 x 37 by 15 is odd, so by 16; 300 by 1 and one row more; at its own size
        [(24, 24, (384, 384)), (25, 37, (400, 592)), (301, 333, (302, 334)), (400, 600, (400, 600))],
    )
    def test_are_h264_of_a_whole_factor_with_the_same_frames(
        self, height: int, width: int, size: tuple[int, int], tmp_path: Path
    ) -> None:
        clip = write_clip(tmp_path / "0.mkv", 60, 5, height, width)
        entry = make_media([("a", {"0": clip})], tmp_path / "page").rows[0][1][0]
        file = tmp_path / "page" / entry["mp4"]
        info, frames, source = probe(file), read_video(file).astype(int), read_video(clip.path).astype(int)
        assert (info.codec, info.frames, info.fps, (info.height, info.width)) == ("h264", 5, 8, size)
        factor = max(1, size[0] // height)
        small = frames[:, factor // 2 :: factor, factor // 2 :: factor][:, :height, :width]
        assert np.abs(small - source).mean() < 3
        assert np.abs(small - source)[:, -1].max() < 12

    def test_of_many_small_clips_are_h264_for_the_first_alone(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        clips = {}
        for i in range(18):
            write_video(tmp_path / f"{i:04d}.mkv", rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
            clips[f"{i:04d}"] = Clip(tmp_path / f"{i:04d}.mkv")
        media = make_media([("a", clips)], tmp_path / "page")
        assert ["mp4" in entry for entry in media.rows[0][1]] == [True] * 16 + [False] * 2
        assert all((tmp_path / "page" / entry["strip"]).is_file() for entry in media.rows[0][1])
        later = {name: clip for name, clip in clips.items() if name > "0001"}  # those that are first now have one, too
        assert all("mp4" in entry for entry in make_media([("a", later)], tmp_path / "page").rows[0][1])

    def test_of_a_small_clip_are_all_frames_without_loss(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        video = rng.integers(0, 256, (4, 10, 14, 3), dtype=np.uint8)
        write_video(tmp_path / "0.mkv", video)
        entry = make_media([("a", {"0": Clip(tmp_path / "0.mkv")})], tmp_path / "page").rows[0][1][0]
        strip = np.asarray(Image.open(tmp_path / "page" / entry["strip"]))
        assert np.array_equal(strip.reshape(4, 10, 14, 3), video)

    def test_of_a_large_clip_have_a_preview(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "0.mkv", 60, 9, 700, 900)  # 5.7e6 pixels
        entry = make_media([("a", {"0": clip})], tmp_path / "page").rows[0][1][0]
        assert "strip" not in entry
        info = probe(tmp_path / "page" / entry["preview"])
        assert (info.height, info.width, info.frames) == (SIDE, 494, 9)

    def test_are_compared_pixel_by_pixel(self, evidence: Evidence, tmp_path: Path) -> None:
        """Greys differ by 40 or 100 where they are not black; black are 3 of 24 rows, by half."""
        other = write_clip(tmp_path / "other.mkv", 0, 3, 24, 26)
        media = make_media([*evidence.rows, ("other", {"0000": other})], tmp_path / "page")
        share = 1 - 3 / 24 / 2
        assert media.differences[0][1][2] == media.differences[0][2][1] == pytest.approx(40 * share, abs=0.01)
        assert media.differences[1][1][2] == pytest.approx(100 * share, abs=0.01)
        assert media.differences[0][0][3] is None  # of another size
        assert make_media([*evidence.rows, ("other", {"0000": other})], tmp_path / "page") == media


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """tmp_path on a local web server: pixels of a page from file:// cannot be read by a script."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pixels(browser: Browser, right: float = 0.75, down: float = 0.75) -> list[int]:
    """The red of one place of every player."""
    return browser.value(
        f"[...document.querySelectorAll('#players canvas')].map(c => c.getContext('2d').getImageData("
        f"c.width * {right} | 0, c.height * {down} | 0, 1, 1).data[0])"
    )


def wiped(browser: Browser, right: float) -> int:
    return browser.value(
        f"(c => c.getContext('2d').getImageData(c.width * {right} | 0, c.height / 2 | 0, 1, 1).data[0])"
        "(document.getElementById('wipe'))"
    )


def greys(clip: int, frame: int) -> list[int]:
    return [grey(row, clip, frame) for row in LEVELS]


def text_of(browser: Browser, selector: str) -> str:
    return browser.value(f"document.querySelector({json.dumps(selector)}).textContent")


def first_column(browser: Browser) -> list[str]:
    return browser.value("[...document.querySelectorAll('tbody')[0].rows].map(r => r.cells[0].textContent)")


@needs_browser
class TestInABrowser:
    def test_a_page_does_what_its_buttons_say(self, evidence: Evidence, tmp_path: Path, site: str) -> None:
        write_page(evidence, tmp_path / "out")
        with Browser(tmp_path / "profile") as browser:
            browser.open((tmp_path / "out" / "index.html").as_uri())  # from disk, without a server
            browser.wait("document.querySelectorAll('#players canvas').length === 3")
            assert not browser.errors
            browser.open(f"{site}/out/index.html")
            browser.wait("document.querySelectorAll('#players canvas').length === 3")
            self.check_table(browser)
            self.check_frames(browser)
            self.check_wipe_and_clips(browser)
            self.check_zoom(browser)
            for width in (1400, 390):
                browser.resize(width, 900)
                assert browser.value("document.documentElement.scrollWidth") == width
            assert not browser.errors

    @pytest.mark.parametrize("name", ["table_1", "table_8_1"])
    def test_all_columns_of_a_wide_table_are_seen_at_1400_px(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "table.html").write_text(render(compose(paper.load(name), {}), "html"))
        with Browser(tmp_path / "profile") as browser:
            browser.open((tmp_path / "table.html").as_uri())
            browser.resize(1400, 900)
            boxes = "[...document.querySelectorAll('.scroll')]"
            assert browser.value(f"{boxes}.length") == {"table_1": 1, "table_8_1": 2}[name]
            assert browser.value(f"{boxes}.every(box => box.scrollWidth <= box.clientWidth)")

    def check_table(self, browser: Browser) -> None:
        head = "section.table th[aria-sort]:nth-child(2) button"
        browser.click(head)
        assert first_column(browser) == ["full", "base", "\u2003ours", "middle"]
        browser.click(head)
        assert first_column(browser) == ["middle", "base", "\u2003ours", "full"]
        assert browser.value(f"document.querySelector({json.dumps(head)}).parentNode.ariaSort") == "descending"
        assert text_of(browser, ".reading").startswith("Sorted by PSD ↓, descending.")
        browser.click(head)
        assert first_column(browser) == ["base", "\u2003ours", "middle", "full"]
        browser.click("tbody tr td")
        assert "base, PSD ↓: seeds 0: 1.5; compared with base" in text_of(browser, ".reading")
        browser.click("tbody th button")
        assert "seeds 0: 1.5" in text_of(browser, "tr.detail")
        assert text_of(browser, ".columns output") == "2 of 3"  # the paper's are hidden at first
        browser.value("document.querySelector('.columns').open = true")
        browser.click(".columns label:last-child input")
        assert text_of(browser, ".columns output") == "3 of 3"
        assert browser.value("getComputedStyle(document.querySelector('td.aside')).display") == "table-cell"

    def check_frames(self, browser: Browser) -> None:
        end = time.monotonic() + 20
        while pixels(browser) != greys(0, 0):
            assert time.monotonic() < end, pixels(browser)
        browser.click("#next")
        assert pixels(browser) == greys(0, 1)
        assert text_of(browser, "#at") == "2 of 3"
        browser.value("document.activeElement.blur()")
        browser.press("ArrowRight")
        browser.press("ArrowRight")
        assert pixels(browser) == greys(0, 0)  # after the last comes the first
        browser.press("ArrowLeft")
        assert pixels(browser) == greys(0, 2)
        assert browser.value("document.getElementById('speed').value") == "0.125"  # 3 frames at 8 a second are short
        browser.press(" ")
        assert text_of(browser, "#play") == "❚❚ pause"
        browser.wait("document.getElementById('at').textContent === '2 of 3'")
        browser.press(" ")
        assert text_of(browser, "#play") == "▶ play"
        frame = int(text_of(browser, "#at")[0]) - 1
        assert pixels(browser) == greys(0, frame)
        browser.press("ArrowLeft")
        browser.value("document.getElementById('frame').value = 0; document.getElementById('frame').oninput()")
        assert pixels(browser) == greys(0, 0)

    def check_wipe_and_clips(self, browser: Browser) -> None:
        assert (wiped(browser, 0.3), wiped(browser, 0.7)) == (grey("base", 0, 0), grey("full", 0, 0))
        for kind, right in (("mousePressed", 0.5), ("mouseMoved", 0.2), ("mouseReleased", 0.2)):
            browser.mouse(kind, *browser.place("#wipe", right))
        assert wiped(browser, 0.3) == grey("full", 0, 0)
        browser.click("#split", 0.9)
        assert wiped(browser, 0.7) == grey("base", 0, 0)
        browser.click("#swap")
        assert (wiped(browser, 0.7), wiped(browser, 0.97)) == (grey("full", 0, 0), grey("base", 0, 0))
        assert text_of(browser, "#measured") == "differ by 37.50 of 255"
        browser.choose("#order", "most")
        browser.wait("document.getElementById('name').value === '1'")
        assert text_of(browser, "#name option") == "0001 (93.75)"
        end = time.monotonic() + 20
        while pixels(browser) != greys(1, 0):
            assert time.monotonic() < end, pixels(browser)
        browser.value("document.activeElement.blur()")
        browser.press("n")
        browser.wait("document.getElementById('name').value === '0'")
        browser.choose("#name", "1")
        browser.choose("#a", "0")
        assert text_of(browser, "#of-a") == "A real"

    def check_zoom(self, browser: Browser) -> None:
        browser.wait("document.querySelectorAll('#players canvas').length === 3")
        browser.value("new Promise(done => setTimeout(done, 200))")
        assert pixels(browser, 0.25, 0.2) == greys(1, 0)
        for key in "++":
            browser.press(key)
        assert text_of(browser, "#zoom") == "4×"
        canvas = "#players figure:nth-child(2) canvas"
        for kind, right, down in (
            ("mousePressed", 0.1, 0.1),
            ("mouseMoved", 0.99, 0.99),
            ("mouseReleased", 0.99, 0.99),
        ):
            browser.mouse(kind, *browser.place(canvas, right, down))
        for kind, right, down in (
            ("mousePressed", 0.1, 0.1),
            ("mouseMoved", 0.99, 0.99),
            ("mouseReleased", 0.99, 0.99),
        ):
            browser.mouse(kind, *browser.place(canvas, right, down))
        assert pixels(browser, 0.25, 0.2) == [0, 0, 0]  # all show the upper left corner
        browser.press("0")
        assert pixels(browser, 0.25, 0.2) == greys(1, 0)

    @pytest.mark.slow
    def test_large_clips_keep_step_and_a_file_that_is_gone_is_named(self, tmp_path: Path, site: str) -> None:
        rows = [
            (row, {"0": write_clip(tmp_path / row / "0.mkv", level, 20, 480, 480)})
            for row, level in (("a", 20), ("b", 40), ("c", 10))
        ]
        data = page_of(Evidence("t", rows=rows), tmp_path / "out").data
        os.remove(tmp_path / "out" / "page" / data["clips"][2][0]["preview"])
        with Browser(tmp_path / "profile") as browser:
            browser.open(f"{site}/out/index.html")
            browser.wait("document.querySelector('.gap')?.textContent.includes('is not beside this page')")

            def shows(frame: int) -> bool:
                return all(
                    abs(pixel - level - 10 * frame) < 5 for pixel, level in zip(pixels(browser), (20, 40), strict=True)
                )

            for frame in (0, 1, 2):
                end = time.monotonic() + 30
                while not shows(frame):
                    assert time.monotonic() < end, (frame, pixels(browser))
                    time.sleep(0.05)
                browser.click("#next")
            browser.click("#play")
            browser.wait("Number(document.getElementById('at').textContent.split(' ')[0]) > 9")
            browser.click("#play")
            frame = int(text_of(browser, "#at").split()[0]) - 1
            end = time.monotonic() + 30
            while not shows(frame):
                assert time.monotonic() < end, (frame, pixels(browser))
                time.sleep(0.05)
            assert not browser.errors
