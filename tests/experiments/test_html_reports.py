"""The reports for a browser: a page by itself, in which text of strangers is text, and whose first words are right."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO

import pytest

from art_aft.cli.scan import STATUS
from art_aft.experiments.reports.charts import bars, matrix, meters
from art_aft.experiments.reports.comparison import comparison_report, comparison_verdict
from art_aft.experiments.reports.parts import Source, escaped, table
from art_aft.experiments.reports.purification import purification_report, purification_verdict
from art_aft.experiments.reports.scan import scan_report, scan_verdict

HOSTILE = "<script>alert(1)</script>\"'&\x1b[2J"
#: Elements that have no end.
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, its texts and its errors."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


ENVIRONMENT = {"versions": {"python": "3", "torch": "2"}, "machine": "m", "device": "cpu", "threads": 1}
SOURCE = Source("art-aft scan m", "print(1)", {"model file": "m"}, {0: "zero", 1: "one"})


def evidence(**facts):
    return {
        "detector": "universal_sparse",
        "label": 1,
        "statistic": 0.9,
        "threshold": 0.5,
        "score": 1.8,
        "scores": [None, 0.9],
        "details": "L2 1",
        "shift": False,
        **facts,
    }


def scan(verdict="infected", **facts):
    infected = verdict == "infected"
    return {
        "verdict": verdict,
        "kind": "all-to-one" if infected else None,
        "targets": [1] if infected else [],
        "score": 1.8 if infected else 0.7,
        "false_alarm_rate": None,
        "evidence": [evidence()],
        "label_matrix": [[0.0, 1.0], [0.25, 0.75]],
        "notes": [],
        "remarks": [],
        "omitted": ["last_layer"],
        "n_images": 60,
        "effort": "normal",
        **ENVIRONMENT,
        **facts,
    }


def purification(**facts):
    state = {"held_out_accuracy": 0.95, "adversarial_success": 0.5, "adversarial_labels": [0.2, 0.8]}
    return {
        "settings": {"nb_epochs": 3},
        "n_images": 108,
        "n_held_out": 20,
        "stages": [{"name": "Stage 1", "seconds": 1.5}],
        "notes": [],
        "remarks": [],
        "images_trusted": True,
        "finite": True,
        "accepted": True,
        "changed": True,
        "defence": "auto",
        "max_accuracy_drop": 0.1,
        "before": state,
        "after": {**state, "held_out_accuracy": 0.9},
        "trials": [{"accuracy": 0.9, "accepted": True, "seconds": 2.0}],
        **ENVIRONMENT,
        **facts,
    }


def row(defence, asr, der, **facts):
    scores = {"acc": 0.9, "asr": asr, "ra": 0.8, "der": der, "seconds": 2.0}
    return {
        "defence": defence,
        **scores,
        "clean_subset": 0,
        "n_clean_images": 100,
        "victim": {"attack": "badnets", "data": "digits", "target": 0, "seen": False},
        **ENVIRONMENT,
        **facts,
    }


ROWS = [row("none", 1.0, 0.5), row("aft", 0.02, 0.99, settings={"eps": 1}), row("nad", 0.4, 0.7)]
PAGES = {
    "scan": scan_report(scan(), SOURCE),
    "purification": purification_report(purification(), SOURCE),
    "comparison": comparison_report(ROWS, SOURCE),
}


def test_what_is_escaped_stays_readable():
    assert escaped(HOSTILE) == "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;\\x1b[2J"
    assert SOURCE.label(1) == "label 1 (“one”)"
    assert Source("", "", classes={3: "3"}).label(3) == "label 3"  # a number says nothing more


@pytest.mark.parametrize("name", PAGES)
def test_a_page_stands_by_itself(name):
    page = Page(PAGES[name])
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {each for each in names if each.startswith("on")} | names & {"src", "href", "action", "srcset", "style"}
    assert not re.search(r"url\(|@import|https?:|//", PAGES[name])
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert ("content", "width=device-width, initial-scale=1") in page.attributes


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_its_parts_in_order(name):
    page = Page(PAGES[name])
    places = [
        page.text.index(f"\n{title}\n") for title in ("Evidence", "What was not looked at", "Settings", "Versions")
    ]
    places += [page.text.index("Run it again"), page.text.index("art-aft scan m"), page.text.index("print(1)")]
    assert places == sorted(places)
    assert page.tags.count("h1") == 1
    assert "svg" in page.tags


def test_text_of_strangers_is_text():
    hostile = Source(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {0: HOSTILE, 1: HOSTILE})
    shared = {"versions": {"python": HOSTILE}, "machine": HOSTILE, "device": HOSTILE}
    found = evidence(detector=HOSTILE, details=HOSTILE)
    pages = [
        scan_report(scan(evidence=[found], omitted=[HOSTILE], **shared), hostile),
        scan_report(scan("cannot tell", notes=[HOSTILE], kind=None, **shared), hostile),
        purification_report(
            purification(notes=[HOSTILE], defence=HOSTILE, settings={HOSTILE: {HOSTILE: HOSTILE}}, **shared), hostile
        ),
        comparison_report(
            [
                row("none", 1.0, 0.5, victim={"attack": HOSTILE, HOSTILE: HOSTILE}, **shared),
                row(HOSTILE, 0.1, 0.9, **shared),
            ],
            hostile,
        ),
    ]
    for markup in pages:
        page = Page(markup)
        assert "script" not in page.tags
        assert "\x1b" not in markup
        assert page.text.count("<script>alert(1)</script>") >= 5


VERDICTS = {
    ("infected", "all-to-one"): "A backdoor is reported",
    ("infected", "all-to-all"): "A backdoor is reported",
    ("no evidence", None): "Nothing was found",
    ("cannot tell", None): "The scan cannot tell",
}


def test_every_verdict_of_a_scan_has_its_words():
    assert {verdict for verdict, _ in VERDICTS} == set(STATUS)
    tones = {}
    for (verdict, kind), headline in VERDICTS.items():
        report = scan(verdict, kind=kind, targets=[1, 0] if kind else [])
        said = scan_verdict(report, SOURCE)
        assert said.headline == headline
        tones[verdict] = said.tone
        assert Page(scan_report(report, SOURCE)).text.count(said.sentences[0]) == 1
    assert tones == {"infected": "bad", "no evidence": "good", "cannot tell": "unsure"}


def test_the_words_of_a_scan_say_what_it_found():
    assert "would get label 1 (“one”)." in scan_verdict(scan(), SOURCE).sentences[0]
    assert "label 1 (“one”) or label 0 (“zero”)" in scan_verdict(scan(targets=[1, 0]), SOURCE).sentences[0]
    assert "does not clear the model" in " ".join(scan_verdict(scan("no evidence"), SOURCE).sentences)
    noted = scan_verdict(scan("cannot tell", notes=["only 3 images"]), SOURCE).sentences
    assert "Why: only 3 images." in noted
    assert "--reference" in noted[-1]
    assert "25 % of the models" in " ".join(scan_verdict(scan(false_alarm_rate=0.25), SOURCE).sentences)
    shifted = Page(scan_report(scan(kind="all-to-all", targets=[1, 0]), SOURCE)).text
    assert "What the trigger would change" in shifted
    assert "last layer" in Page(PAGES["scan"]).text.partition("What was not looked at")[2]


@pytest.mark.parametrize(
    ("facts", "tone", "words"),
    [
        ({}, "good", "It gets 90.0 % right on 20 clean images that were held out; before, 95.0 %."),
        ({"accepted": False}, "bad", "it lost more than 10 points"),
        ({"accepted": False, "remaining_label": 3}, "bad", "one label still stands out"),
        ({"accepted": False, "images_trusted": False}, "unsure", "the images cannot tell"),
        ({"accepted": False, "finite": False}, "bad", "training diverged"),
        ({"changed": False}, "unsure", "changed nothing"),
    ],
)
def test_every_end_of_a_purification_has_its_words(facts, tone, words):
    said = purification_verdict(purification(**facts))
    assert said.tone == tone
    assert words in " ".join(said.sentences)
    assert ("No purified model was written" in said.sentences[0]) is not purification(**facts)["accepted"]


@pytest.mark.parametrize(
    ("rows", "tone", "headline"),
    [
        (ROWS, "good", "AFT did best"),
        ([ROWS[0], ROWS[2]], "unsure", "NAD did best"),
        ([ROWS[0], row("nad", 1.0, 0.5)], "bad", "No defence helped"),
        ([ROWS[0], row("aft", 0.0, 0.9, acc=0.7)], "unsure", "AFT did best"),
        ([row("none", 0.4, 0.5), ROWS[1]], "unsure", "The attack hardly worked"),
        ([*ROWS, row("nad", 0.0, 1.0, clean_subset=1), row("aft", 1.0, 0.5, clean_subset=1)], "unsure", "NAD did best"),
    ],
)
def test_every_end_of_a_comparison_has_its_words(rows, tone, headline):
    said = comparison_verdict(rows)
    assert (said.tone, said.headline) == (tone, headline)


def rectangles(markup):
    return re.findall(r'<rect class="(\w+)".*? width="([\d.]+)" height="([\d.]+)"', markup)


def test_bars_are_as_long_as_their_values():
    drawn = rectangles(bars("t", [1.0, None, 2.0, float("inf")], first=1, marked=3))
    assert [(kind, float(height)) for kind, _, height in drawn] == [("plain", 50.0), ("marked", 100.0)]
    assert [float(height) for *_, height in rectangles(bars("t", [-1.0, 3.0]))] == [25.0, 75.0]
    # All negative: the highest value has the highest bar.
    assert [float(height) for *_, height in rectangles(bars("t", [-4.0, -1.0]))] == [0.0, 100.0]
    lines = re.findall(
        r'width="([\d.]+)" height="10"', meters([("a", 1.0, "", True), ("b", 0.25, "", False)], most=2.0)
    )
    assert lines == ["500.0", "125.0"]
    assert 'x1="500.0"' in meters([("a", 4.0, "", True)], limit=2.0)


def test_no_values_at_all_are_a_picture_too():
    for values in ([], [None], [0.0, 0.0], [-1.0]):
        Page(bars("t", values))
    Page(meters([]))


def test_of_many_labels_those_that_differ_are_drawn():
    values = [1.0] * 1000
    values[7], values[999] = 9.0, -9.0
    markup = bars("t", values, marked=500)
    assert len(rectangles(markup)) == 40
    assert "The 40 of 1000 that differ most." in markup
    assert ">500</text>" in markup
    assert "too many" in matrix("m", [[0.0] * 41] * 41)


def test_columns_of_numbers_are_told_from_text():
    markup = table(["a", "b", "c"], [["x", "1.5 ±0.2", "word"], ["y", "", "3"]])
    assert '<td>1.5 ±0.2</td><td class="text">word</td>' in markup


CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync --enable-logging=stderr --hide-scrollbars"


def opened(page, folder, *flags):
    """Open a page in Chromium, with everything that it prints."""
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_all_of_it_on_a_narrow_screen(name, tmp_path):
    """A copy measures itself with a script, which the page's own policy would forbid."""
    measuring = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' ')</script></body>"
    markup = re.sub(r"<meta http-equiv.*?>", "", PAGES[name]).replace("</body>", measuring)
    page = tmp_path / "page.html"
    page.write_text(markup, encoding="utf-8")
    for width in (400, 1400):
        dom = opened(page, tmp_path, f"--window-size={width},900", "--dump-dom")
        needed, given = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())
        assert needed <= given


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "light"), [(1, True), (0, False)])
def test_a_browser_draws_it_light_and_dark(scheme, light, tmp_path):
    image = pytest.importorskip("PIL.Image")
    page, shot = tmp_path / "page.html", tmp_path / "shot.png"
    page.write_text(PAGES["scan"], encoding="utf-8")
    opened(
        page,
        tmp_path,
        "--window-size=1400,900",
        f"--screenshot={shot}",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    picture = image.open(BytesIO(shot.read_bytes())).convert("L")
    assert picture.size == (1400, 900)
    assert (picture.getpixel((2, 890)) > 200) is light
    assert len(picture.getcolors()) > 20


def test_settings_that_are_zero_are_settings():
    settings = re.findall(r"<dt>victim: (\w+)</dt><dd>(.*?)</dd>", PAGES["comparison"])
    assert settings == [("attack", "badnets"), ("data", "digits"), ("target", "0")]
