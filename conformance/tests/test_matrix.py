"""The page of certificates: every state is there, nothing escapes, nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

import bridge
from bridge.capabilities import Capabilities
from bridge_conformance.certificate import (
    Area,
    Certificate,
    Failure,
    KnownFailure,
    NotVerified,
    describe,
)
from bridge_conformance.matrix import page, rows

VOID = {"meta", "br", "hr", "link", "img", "input"}
EVIL = "<script>alert(1)</script>\" onload='x' &amp; \x1b[31m \x00 \ud800"


def make(**changes: Any) -> Certificate:
    facts: dict[str, Any] = {
        "suite_version": "1",
        "bridge_version": "0.1.0",
        "backend": "made_up",
        "distribution": "made-up",
        "runtime_version": "2.0",
        "device": "cpu",
        "mode": "full",
        "date": "2026-01-02T03:04:05+00:00",
        "hardware": {"devices": {"cpu": "a processor"}, "usable_cpus": 2},
        "python": "3.11.7",
        "platform": "Linux x86_64",
        "capabilities": describe(Capabilities(formats=frozenset(["onnx"]))),
        "areas": (Area(name="predict", title="``bind()`` answers.", passed=5),),
    }
    return Certificate(**{**facts, **changes})


def every_state() -> Certificate:
    return make(
        areas=(
            Area(name="all_well", title="A.", passed=17),
            Area(name="broken", title="B.", passed=1, failed=2),
            Area(name="listed", title="C.", passed=1, known=3),
            Area(name="untried", title="D.", not_verified=4),
            Area(name="unclaimed", title="E.", not_claimed=7),
            Area(name="mixed", title="F.", passed=5, not_verified=1, not_claimed=1),
        ),
        failures=tuple(
            Failure(id=f"TestBroken::test_{n}", area="broken", text=f"text {n}") for n in "ab"
        ),
        known_failures=(
            KnownFailure(
                id="TestListed::test_a",
                area="listed",
                reason="One reason.",
                issue="https://example.org/issues/1",
                since="made-up 2.0",
            ),
            KnownFailure(
                id="TestListed::test_b",
                area="listed",
                reason="One reason.",
                issue="https://example.org/issues/1",
                since="made-up 2.0",
            ),
            KnownFailure(
                id="TestListed::test_c",
                area="listed",
                reason="Another reason.",
                issue="javascript:alert(1)",
            ),
        ),
        not_verified=(
            *(
                NotVerified(id=f"TestUntried::test_{n}", area="untried", reason="No writer.")
                for n in range(4)
            ),
            NotVerified(id="TestMixed::test_x", area="mixed", reason="No device."),
        ),
        counts={
            "onnx": {
                "cases": 2024,
                "native": 9,
                "bridge": 8,
                "beyond_native": 1,
                "refused": 0,
                "lost": 2,
            }
        },
        measured={"TestThreads::test_speed": {"speed_up": 1.81234, "how": "side by side"}},
    )


class Page(HTMLParser):
    """Reads a page, and fails where its tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        assert len(about) == len(attrs)
        self.tags.append((tag, about))
        if "id" in about:
            assert about["id"]
            self.ids.append(about["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data


def cells(text: str) -> dict[tuple[int, str], tuple[str, str, str]]:
    """Class, words and target of each cell of the matrix, by row and area."""
    table = re.search(r'<table class="matrix">(.*?)</table>', text, re.DOTALL)
    assert table is not None
    found = {}
    for number, row in enumerate(re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)[1:]):
        for state, inner in re.findall(r'<td class="([\w-]+)">(.*?)</td>', row, re.DOTALL):
            area = re.search(r'data-area="([^"]*)"', inner)
            target = re.search(r'href="#([^"]*)"', inner)
            assert area is not None
            assert target is not None
            words = " ".join(re.sub(r"<[^>]*>", "", inner).split())
            found[number, area[1]] = (state, words, target[1])
    return found


def test_every_state_has_its_own_words_sign_and_class() -> None:
    found = cells(page([every_state()]))
    shown = {area: (state, words) for (_, area), (state, words, _) in found.items()}
    assert shown == {
        "all well": ("passed", "✓ 17 passed"),
        "broken": ("failed", "✕ 2 failed✓ 1 passed"),
        "listed": ("known", "✓ 1 passed△ 3 known"),
        "untried": ("not-verified", "○ 4 not verified"),
        "unclaimed": ("not-claimed", "— 7 not claimed"),
        "mixed": ("passed", "✓ 5 passed○ 1 not verified"),
    }


def test_an_area_that_a_run_lacks_is_not_verified() -> None:
    others = make(areas=(Area(name="other", title="O.", passed=1), Area(name="none", title="N.")))
    found = cells(page([make(), others]))
    assert found[0, "other"][:2] == ("not-verified", "○ not verified: not in this run")
    assert found[1, "predict"][:2] == ("not-verified", "○ not verified: not in this run")
    assert found[1, "none"][:2] == ("not-verified", "○ 0 not verified")


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (make(), "✓ certified"),
        (every_state(), "✕ failed"),
        (make(areas=()), "○ not verified"),
        (make(capabilities=describe(Capabilities(predicts=False))), "○ not verified"),
    ],
    ids=["certified", "failed", "empty", "build-only"],
)
def test_the_verdict_stands_in_the_row_and_in_the_count(one: Certificate, verdict: str) -> None:
    found = page([one])
    word = verdict.partition(" ")[2].replace(" ", "-")
    badges = re.findall(r'<span class="badge ([\w-]+)">([^<]*)</span>', found)
    assert badges[3:] == [(word, verdict)] * 2  # after the three of the head: matrix, details
    counts = re.findall(r'<li><b>(\d+)</b><span class="badge ([\w-]+)">', found)
    assert [kind for count, kind in counts if count == "1"] == [word]
    assert sorted(count for count, _ in counts) == ["0", "0", "1"]
    assert ("Build only" in found) is not one.predicts


def test_each_link_of_the_page_has_its_target() -> None:
    text = page([every_state(), make(), make(backend="odd", areas=(Area(name="a b", title=""),))])
    found = Page(text)
    assert len(set(found.ids)) == len(found.ids)
    targets = [about["href"] or "" for _, about in found.tags if "href" in about]
    inner = {target[1:] for target in targets if target.startswith("#")}
    assert inner <= set(found.ids)
    assert len(inner) == 3 + 6 + 1 + 1


def test_details_tell_ids_texts_and_reasons() -> None:
    found = Page(page([every_state()]))
    for said in (
        "TestBroken::test_a",
        "text b",
        "TestListed::test_b",
        "Another reason.",
        "Seen since made-up 2.0.",
        "TestUntried::test_3",
        "No writer.",
        "7 not asked",
        "2,024",
        "✕ 2",  # lost cases stand out
        "1.812",
        "side by side",
        "2 CPUs usable",
        "2026-01-02 03:04 UTC",
    ):
        assert said in found.text, said
    assert found.text.count("One reason.") == 1  # a reason is told once, with all its ids
    assert found.text.count("No writer.") == 1


def test_nothing_outside_the_page_is_used() -> None:
    found = Page(page([every_state()]))
    links = {about["href"] for _, about in found.tags if "href" in about}
    assert {link for link in links if link and not link.startswith("#")} == {
        "https://example.org/issues/1"  # not the one that is no web address
    }
    for tag, about in found.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "source"}
        assert not {"src", "srcset", "action", "style", "background"} & set(about)
        assert not [name for name in about if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", page([]), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_policy_lets_only_the_own_script_run() -> None:
    found = Page(page([make()]))
    assert len(found.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(found.scripts[0].encode()).digest()).decode()
    (policy,) = [about["content"] for _, about in found.tags if "http-equiv" in about]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_whatever_a_certificate_says_stays_text() -> None:
    area = f"area {EVIL}"
    evil = make(
        **dict.fromkeys(
            ("suite_version", "backend", "distribution", "runtime_version", "python", "platform"),
            EVIL,
        ),
        device=f"cpu:{EVIL}",
        hardware={EVIL: EVIL, "devices": {EVIL: EVIL}},
        areas=(Area(name=area, title=EVIL, passed=9, failed=1, known=1, not_verified=1),),
        failures=(Failure(id=EVIL, area=area, text=EVIL),),
        known_failures=(
            KnownFailure(
                id=EVIL, area=area, reason=EVIL, issue=f"https://example.org/{EVIL}", since=EVIL
            ),
        ),
        not_verified=(NotVerified(id=EVIL, area=area, reason=EVIL),),
        counts={EVIL: {EVIL: 3}},
        measured={EVIL: {EVIL: EVIL}},
    )
    text = page([evil])
    text.encode("utf-8")
    assert "\x00" not in text
    assert "\x1b" not in text
    found, plain = Page(text), Page(page([make()]))
    assert len(found.scripts) == 1
    known = {(tag, name) for tag, about in plain.tags for name in about}
    known |= {(tag, name) for tag, about in Page(page([every_state()])).tags for name in about}
    assert {(tag, name) for tag, about in found.tags for name in about} <= known
    assert "<script>alert(1)</script>" in found.text


def test_a_page_without_certificates_is_a_page() -> None:
    found = Page(page([]))
    assert "Conformance of backends" in found.text
    assert "bind() answers." in Page(page([make()])).text
    assert found.tags[0] == ("html", {"lang": "en"})


def test_the_page_does_not_depend_on_the_order_of_certificates() -> None:
    many = [make(backend=name, device=device) for name in "ba" for device in ("cuda:0", "cpu")]
    assert page(many) == page(many[::-1])
    heads = re.findall(r"<b>([ab])</b> (\S+?)</a>", page(many))
    assert heads == [("a", "cpu"), ("a", "cuda:0"), ("b", "cpu"), ("b", "cuda:0")]


def test_runs_that_differ_in_python_alone_say_so() -> None:
    measured = {"TestA::test_a": {"ms": 1}}
    many = [make(python=python, measured=measured) for python in ("3.11.7", "3.12.1")]
    assert Page(page(many)).text.count("cpu, Python 3.12.1") == 1  # the table of numbers
    assert page(many).count("<small>Python 3.12.1</small>") == 1
    assert "<small>Python" not in page([many[0], make(device="cuda")])


def test_rows_tell_of_each_kind_of_device() -> None:
    quick = make(backend="onnxruntime", mode="quick", date="2026-03-01T00:00:00+00:00")
    many = (Area(name="predict", title="", passed=9),)
    old = make(backend="onnxruntime", areas=many)
    older = make(backend="onnxruntime", date="2025-01-01T00:00:00+00:00")
    found = {row.backend: row for row in rows([older, quick, old])}
    assert set(found) == set(bridge.backends())
    row = found["onnxruntime"]
    assert row.conformance == "cpu: certified (9 passed); cuda: not verified"
    assert row.devices == ("cpu", "cuda")
    assert row.formats[0] == "ONNX"
    assert found["tensorrt"].conformance == "cuda: not verified"
