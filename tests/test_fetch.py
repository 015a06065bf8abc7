"""qks.fetch against a local server with every bad manner that is known of servers."""

import csv
import errno
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from qks.core import QKSError, load_image
from qks.fetch import (
    FETCHERS,
    FetchPolicy,
    NUSWideFetchOptions,
    OpenImagesFetchOptions,
    fetch_images,
    fetch_nuswide,
    fetch_openimages,
)
from qks.fetch.download import USER_AGENT, Downloader, HostGate, NoImage, retry_after
from qks.fetch.images import ReportRow, check_items, fetch_one, format_row, read_report, remove_parts
from qks.fetch.urls import ImageAddress, check_target, read_nuswide_urls, read_openimages_ids

QUICK = FetchPolicy(delay=0, backoff=0.01, retries=2, timeout=0.5, deadline=5)


def photograph(seed, size=(40, 30), kind="JPEG"):
    "An image file of noise, different for every seed."
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


PLACEHOLDER = photograph(10**6)


class Handler(BaseHTTPRequestHandler):
    "Pages are functions of the handler, called with the number of times that the page was asked for before."

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            count = server.asked.count(self.path)
            server.asked.append(self.path)
            server.times.append(time.monotonic())
            server.agents.add(self.headers["User-Agent"])
        try:
            name = self.path[1:].partition("/")[0]
            if name.isdecimal():
                self.send(photograph(int(name)))
            else:
                getattr(self, name, self.missing)(count)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, body=b"", status=200, kind="image/jpeg", length=None, **headers):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not False:
            self.send_header("Content-Length", len(body) if length is None else length)
        else:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if length not in (None, False) and length > len(body):
            self.close_connection = True

    def missing(self, count):
        self.send(b"not here", 404, "text/html")

    def removed(self, count):
        self.send(b"", 410)

    def forbidden(self, count):
        self.send(b"", 403)

    def unmodified(self, count):
        self.send(b"", 304)

    def busy(self, count):
        self.send(b"", 429, Retry_After="1") if count < 1 else self.send(photograph(101))

    def later(self, count):
        if count < 1:
            self.send(b"", 503, Retry_After=formatdate(time.time() + 2, usegmt=True))
        else:
            self.send(photograph(102))

    def tomorrow(self, count):
        self.send(b"", 429, Retry_After="86400")

    def shaky(self, count):
        self.send(b"", 500) if count < 2 else self.send(photograph(103))

    def broken(self, count):
        self.send(b"", 502)

    def short_once(self, count):
        self.send(photograph(104)[:300], length=9999) if count < 1 else self.send(photograph(104))

    def short(self, count):
        self.send(photograph(105)[:700], length=len(photograph(105)))

    def unsaid_short(self, count):
        self.send(photograph(106)[:-300], length=False)

    def unsaid(self, count):
        self.send(photograph(107), length=False)

    def html(self, count):
        self.send(b"<!DOCTYPE html><p>Sign in", kind="text/html; charset=utf-8")

    def disguised(self, count):
        self.send(b"\n <HTML>gone</HTML>")

    def text(self, count):
        self.send(photograph(108), kind="text/plain")

    def untyped(self, count):
        self.send(photograph(109), kind=None)

    def octets(self, count):
        self.send(photograph(110), kind="binary/octet-stream")

    def png(self, count):
        self.send(photograph(111, kind="PNG"), kind="image/png")

    def empty(self, count):
        self.send(b"")

    def bomb(self, count):
        self.send(photograph(112), length=10**12)

    def same(self, count):
        self.send(PLACEHOLDER)

    def gone(self, count):
        self.send(b"", 302, Location="/photo_unavailable.png")

    def moved(self, count):
        self.send(b"", 301, Location="/113")

    def circle(self, count):
        self.send(b"", 302, Location="/circle")

    def astray(self, count):
        self.send(b"", 302, Location="ftp://127.0.0.1/x.jpg")

    def gibberish(self, count):
        self.wfile.write(b"\x00\xff not http\r\n\r\n")
        self.close_connection = True

    def slow(self, count):
        with self.server.lock:
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        time.sleep(0.15)
        with self.server.lock:
            self.server.open -= 1
        self.send(photograph(int(self.path.rpartition("/")[2])))

    def held(self, count):
        "Twelve pages at once, the others only when the test allows."
        if len(self.server.asked) > 12:
            self.server.release.wait(20)
        self.send(photograph(int(self.path.rpartition("/")[2])))

    def stall(self, count):
        self.send(photograph(114)[:500], length=5000)
        time.sleep(1.5)

    def silent(self, count):
        time.sleep(1.5)

    def endless(self, count):
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.close_connection = True
        for _ in range(2000):
            self.wfile.write(b"\xff" * 10_000)

    def drip(self, count):
        self.send(b"", length=1000)
        for _ in range(100):
            self.wfile.write(b".")
            self.wfile.flush()
            time.sleep(0.05)

    def reset(self, count):
        if count >= 1:
            return self.send(photograph(115))
        self.send(photograph(115)[:300], length=5000)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
        self.connection.close()


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def server(monkeypatch):
    "A server, with what it was asked; `site` is its address."
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = Quiet(("127.0.0.1", 0), Handler)
    server.lock = threading.Lock()
    server.release = threading.Event()
    server.asked = []
    server.times = []
    server.agents = set()
    server.open = 0
    server.most_open = 0
    server.site = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


POLICY_FIELDS = {field.name for field in fields(FetchPolicy)}


def fetch(items, root, policy=QUICK, **options):
    "Fetch a list; options are those of `fetch_images`, and fields of the policy."
    changes = {name: options.pop(name) for name in POLICY_FIELDS & set(options)}
    return fetch_images(items, root, policy=replace(policy, **changes), **options)


def run(server, root, *pages, **options):
    "Fetch pages, each as PAGE.jpg; returns the report."
    items = [(f"{page.replace('/', '-')}.jpg", f"{server.site}/{page}") for page in pages]
    return fetch(items, root, **options)


def files(root):
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.name != "fetch-report.csv"
    )


# --- single answers ---


@pytest.mark.parametrize(
    ("page", "outcome", "requests", "detail"),
    [
        ("1", "saved", 1, ""),
        ("png", "saved", 1, ""),
        ("untyped", "saved", 1, ""),
        ("octets", "saved", 1, ""),
        ("unsaid", "saved", 1, ""),
        ("moved", "saved", 1, ""),
        ("shaky", "saved", 3, ""),
        ("short_once", "saved", 2, ""),
        ("reset", "saved", 2, ""),
        ("missing", "dead", 1, "404"),
        ("removed", "dead", 1, "410"),
        ("gone", "placeholder", 1, "photo_unavailable"),
        ("forbidden", "refused", 1, "403"),
        ("unmodified", "refused", 1, "304"),
        ("html", "refused", 1, "text/html"),
        ("text", "refused", 1, "text/plain"),
        ("disguised", "refused", 1, "HTML"),
        ("circle", "refused", 6, "redirects"),
        ("bomb", "refused", 1, "1,000,000,000,000"),
        ("astray", "dead", 1, "address"),
        ("broken", "failed", 3, "502"),
        ("short", "failed", 3, "complete message"),
        ("unsaid_short", "failed", 3, "truncated"),
        ("empty", "failed", 3, "empty"),
        ("gibberish", "failed", 3, "Protocol"),
        ("tomorrow", "failed", 1, "86400"),
        ("stall", "failed", 3, "Timeout"),
        ("silent", "failed", 3, "Timeout"),
    ],
)
def test_single_answers(server, tmp_path, page, outcome, requests, detail):
    report = run(server, tmp_path, page)
    row = read_report(tmp_path / "fetch-report.csv")[f"{page}.jpg"]
    assert report.outcomes == {f"{page}.jpg": outcome} and row.outcome == outcome
    assert detail in row.detail
    assert server.asked.count(f"/{page}") == requests
    assert files(tmp_path) == ([f"{page}.jpg"] if outcome == "saved" else [])
    assert report.complete == (outcome == "saved")
    if outcome == "saved":
        content = (tmp_path / f"{page}.jpg").read_bytes()
        load_image(tmp_path / f"{page}.jpg")
        assert (row.bytes, row.sha256, report.bytes) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
            len(content),
        )


def test_a_body_over_the_limit_is_not_read_to_its_end(server, tmp_path):
    report = run(server, tmp_path, "endless", max_bytes=100_000)
    assert "over the limit of 100,000" in report.problems["endless.jpg"].detail and files(tmp_path) == []


def test_a_dripping_body_has_a_deadline(server, tmp_path):
    start = time.monotonic()
    report = run(server, tmp_path, "drip", deadline=0.3, retries=1)
    assert "longer than 0.3 s" in report.problems["drip.jpg"].detail and time.monotonic() - start < 5


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.jpg",
        "http://",
        "http://127.0.0.1:99999999/x",
        "file:///etc/hostname",
        "gopher://x/y",
        "http://" + "a" * 70 + "/x",
        "x",
        "",
    ],
)
def test_addresses_that_lead_nowhere(tmp_path, url):
    report = fetch([("x.jpg", url)], tmp_path, retries=0)
    assert report.outcomes["x.jpg"] in ("dead", "failed") and files(tmp_path) == []


# --- waiting ---


def test_retry_after_in_seconds_and_as_a_date_is_honoured(server, tmp_path):
    assert run(server, tmp_path, "busy").complete
    assert server.times[1] - server.times[0] >= 0.95
    assert run(server, tmp_path, "later").complete
    assert server.times[3] - server.times[2] >= 0.95  # the date has whole seconds, so 2 may be little more than 1


def test_a_request_to_wait_holds_for_the_whole_host(server, tmp_path):
    report = run(server, tmp_path, "busy", *map(str, range(20)), workers=1)
    assert report.complete and server.times[1] - server.times[0] >= 0.95


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0 "}, 0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "9" * 50}, 999_999_999),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "date": "Thu, 01 Jan 1970 00:01:00 GMT"}, 40),
        ({"retry-after": "٣"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, now=10) == seconds


def test_backoff_grows(server, tmp_path):
    run(server, tmp_path, "broken", backoff=0.1, retries=3)
    gaps = np.diff(server.times)
    assert (gaps >= [0.1, 0.2, 0.4]).all()


def test_a_host_is_asked_with_pauses(server, tmp_path):
    assert run(server, tmp_path, *map(str, range(9)), delay=0.1).complete
    assert max(server.times) - min(server.times) >= 8 * 0.1 * 0.8


def test_a_host_is_not_asked_too_often_at_once(server, tmp_path):
    assert run(server, tmp_path, *(f"slow/{i}" for i in range(12)), workers=8, per_host=3).complete
    assert 1 < server.most_open <= 3
    assert server.agents == {USER_AGENT} and "qks" in USER_AGENT


def test_a_host_that_only_fails_is_left_alone(server, tmp_path):
    report = run(server, tmp_path, *(f"broken/{i}" for i in range(30)), workers=2, retries=0, give_up=5)
    assert report.counts == {"failed": 30} and len(server.asked) <= 6
    assert any("times in a row" in row.detail for row in report.problems.values())


def test_one_bad_host_does_not_stop_another(server, tmp_path):
    other = Quiet(("127.0.0.1", 0), Handler)
    refused = f"http://127.0.0.1:{other.server_port}"
    other.server_close()  # nobody listens there now
    items = [(f"{i}.jpg", f"{refused}/{i}") for i in range(20)] + [
        (f"good{i}.jpg", f"{server.site}/{i}") for i in range(5)
    ]
    report = fetch(items, tmp_path, retries=0, give_up=3)
    assert report.counts == {"failed": 20, "saved": 5}


# --- placeholders ---


def test_the_same_bytes_at_three_addresses_are_a_placeholder(server, tmp_path):
    report = run(server, tmp_path, "1", "same/a", "2", "same/b", "same/c", "3", "same/d", workers=1)
    assert report.counts == {"saved": 3, "placeholder": 4}
    left = files(tmp_path)
    assert [name for name in left if not name.endswith(".quarantined")] == ["1.jpg", "2.jpg", "3.jpg"]
    assert {f"same-{name}.jpg.quarantined" for name in "abc"} <= set(left)


def test_two_addresses_may_share_their_bytes(server, tmp_path):
    assert run(server, tmp_path, "same/a", "same/b").complete


def test_one_address_for_many_targets_is_no_placeholder(server, tmp_path):
    assert fetch([(f"{i}.jpg", f"{server.site}/1") for i in range(6)], tmp_path).complete


def test_placeholders_are_learned_across_runs_and_undone_with_a_higher_limit(server, tmp_path):
    for page in "ab":
        assert run(server, tmp_path, f"same/{page}").complete
    assert run(server, tmp_path, "same/c").counts == {"placeholder": 1}
    assert run(server, tmp_path, "same/a", "same/b", "same/c").counts == {"placeholder": 3} and len(server.asked) == 3
    assert run(server, tmp_path, "same/a", "same/b", "same/c", "same/d", retry_dead=True, same_bytes=9).complete


def test_a_known_placeholder_is_never_put_in_place(server, tmp_path):
    report = run(server, tmp_path, "same/a", placeholders={hashlib.sha256(PLACEHOLDER).hexdigest()})
    assert report.counts == {"placeholder": 1} and files(tmp_path) == []


def test_placeholders_of_a_mirror_are_found_and_kept_aside(server, tmp_path):
    for name in "abcd":
        (tmp_path / f"same-{name}.jpg").write_bytes(PLACEHOLDER)
    (tmp_path / "1.jpg").write_bytes(photograph(1))
    pages = ["1", "same/a", "same/b", "same/c", "same/d"]
    first = run(server, tmp_path, *pages, workers=1)
    assert first.outcomes["1.jpg"] == "present" and first.counts["present"] == 1
    assert not set(first.outcomes.values()) & {"saved", "dead"}
    assert files(tmp_path) == ["1.jpg"] + [f"same-{name}.jpg.quarantined" for name in "abcd"]
    second = run(server, tmp_path, *pages)  # a file of a mirror says nothing about its address, which is asked now
    assert second.counts == {"present": 1, "placeholder": 4}
    assert sorted(server.asked) == [f"/{page}" for page in pages[1:]]
    assert files(tmp_path) == ["1.jpg"] + [f"same-{name}.jpg.quarantined" for name in "abcd"]


# --- again and again ---


def test_a_second_run_asks_only_for_what_may_have_changed(server, tmp_path):
    pages = ["1", "2", "missing", "removed", "gone", "html", "broken"]
    first = run(server, tmp_path, *pages)
    assert first.counts == {"saved": 2, "dead": 2, "placeholder": 1, "refused": 1, "failed": 1}
    server.asked.clear()
    second = run(server, tmp_path, *pages, retries=0)
    assert sorted(server.asked) == ["/broken", "/html"]
    assert second.counts == {"present": 2, "dead": 2, "placeholder": 1, "refused": 1, "failed": 1}
    assert "3 of the dead and the placeholders are known" in str(second)
    server.asked.clear()
    run(server, tmp_path, *pages, retries=0, retry_dead=True)
    assert sorted(server.asked) == ["/broken", "/gone", "/html", "/missing", "/removed"]


def test_another_address_for_a_dead_image_is_asked(server, tmp_path):
    fetch([("x.jpg", f"{server.site}/missing")], tmp_path)
    assert fetch([("x.jpg", f"{server.site}/5")], tmp_path).complete


def test_files_that_lie_there_are_verified_without_a_request(server, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(photograph(i))
    (tmp_path / "3.jpg").write_bytes(photograph(3)[:600])
    (tmp_path / "4.jpg").write_bytes(b"")
    report = run(server, tmp_path, *"01234")
    assert report.counts == {"present": 3, "saved": 2} and sorted(server.asked) == ["/3", "/4"]
    assert files(tmp_path) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "3.jpg.quarantined", "4.jpg", "4.jpg.quarantined"]


def test_a_file_of_another_size_than_reported_is_verified_again(server, tmp_path):
    run(server, tmp_path, "1")
    (tmp_path / "1.jpg").write_bytes(photograph(1)[:-10])
    server.asked.clear()
    assert run(server, tmp_path, "1").complete and server.asked == ["/1"]
    assert (tmp_path / "1.jpg").read_bytes() == photograph(1)


def test_new_files_have_the_rights_of_any_other(server, tmp_path):
    run(server, tmp_path, "1")
    (tmp_path / "other").touch()
    assert (tmp_path / "1.jpg").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_parts_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    old = ".1.jpg.0a1b2c3d.part"
    new = ".2.jpg.0a1b2c3d.part"
    others = ["x.part", ".3.jpg.part", "1.jpg"]
    for name in (old, new, *others):
        (tmp_path / name).touch()
        if name != new:
            os.utime(tmp_path / name, (0, 0))
    remove_parts([tmp_path, tmp_path / "none"], older_than=60)
    assert files(tmp_path) == sorted([new, *others])


SCRIPT = """
import signal, sys
from qks.fetch import FetchPolicy, fetch_images
signal.signal(signal.SIGINT, signal.default_int_handler)
site, root = sys.argv[1:]
print("ready", flush=True)
items = [(f"{i % 3}/{i}.jpg", f"{site}/held/{i}") for i in range(40)]
fetch_images(items, root, policy=FetchPolicy(workers=4, delay=0, backoff=0.01, timeout=2))
print("done", flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_run_leaves_only_images_and_is_taken_up(server, tmp_path, end):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.site, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        until = time.monotonic() + 60
        while len(list(tmp_path.rglob("*.jpg"))) < 8 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(end)
        assert process.wait(60) != 0
    server.release.set()
    images = list(tmp_path.rglob("*.jpg"))
    assert 8 <= len(images) < 40
    for path in images:
        assert load_image(path).size == (40, 30)
    if end == signal.SIGINT:
        assert not list(tmp_path.rglob("*.part"))
    server.asked.clear()
    report = fetch([(f"{i % 3}/{i}.jpg", f"{server.site}/held/{i}") for i in range(40)], tmp_path)
    assert report.complete and len(server.asked) == 40 - len(images)
    for i in range(40):
        assert (tmp_path / f"{i % 3}/{i}.jpg").read_bytes() == photograph(i)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"tar",
        b"target,url,outcome,bytes,sha256,detail\n1.jpg,http",
        b"target,url,outcome,bytes,sha256,detail\n1.jpg,u,saved,12,ab,",
    ],
)
def test_a_report_that_was_cut_is_taken_up(server, tmp_path, lines):
    (tmp_path / "fetch-report.csv").write_bytes(lines)
    (tmp_path / "1.jpg").write_bytes(photograph(1))
    assert run(server, tmp_path, "1", "2").counts == {"present": 1, "saved": 1}
    with open(tmp_path / "fetch-report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["target"] for row in rows) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    "lines",
    [
        b"image,labels\n1.jpg,cat\n",
        b"\xff\xfe\x00",
        b"no header, and no end",
        b"target,url,outcome,bytes,sha256,detail\n1.jpg,u\n",
        b"target,url,outcome,bytes,sha256,detail\n1.jpg,u,eaten,1,,\n",
        b"target,url,outcome,bytes,sha256,detail\n1.jpg,u,saved,many,,\n",
        b"target,url,outcome,bytes,sha256,detail\n\xff,u,saved,1,,\n",
    ],
)
def test_a_file_that_is_no_report_is_left_as_it_is(server, tmp_path, lines):
    (tmp_path / "fetch-report.csv").write_bytes(lines)
    with pytest.raises(QKSError, match=r"fetch-report.csv line \d is no line of a fetch report"):
        run(server, tmp_path, "1")
    assert (tmp_path / "fetch-report.csv").read_bytes() == lines and not server.asked


def test_details_stay_on_their_line(tmp_path):
    row = ReportRow("a, b.jpg", 'http://x/"', "failed", 0, "", "two\r\nlines, and a \x00")
    assert format_row(row).count(b"\n") == 1
    (tmp_path / "r.csv").write_bytes(b"target,url,outcome,bytes,sha256,detail\n" + format_row(row))
    assert read_report(tmp_path / "r.csv")["a, b.jpg"].outcome == "failed"


# --- the disk ---


def test_a_full_disk_ends_in_one_sentence(server, tmp_path, monkeypatch):
    run(server, tmp_path, "1")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "3.jpg"))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QKSError, match="No space left on device.*what is fetched stays"):
        run(server, tmp_path, *map(str, range(1, 30)))
    assert files(tmp_path) == ["1.jpg"]
    monkeypatch.undo()
    assert run(server, tmp_path, *map(str, range(1, 30))).complete


def test_a_target_appears_in_one_step(server, tmp_path, monkeypatch):
    def killed(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(QKSError, match="Input/output error"):
        run(server, tmp_path, "1")
    assert files(tmp_path) == []


def test_a_stopped_run_does_not_wait_out_its_pauses(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    start = time.monotonic()
    with pytest.raises(QKSError, match="No space"):
        run(server, tmp_path, "broken/1", "busy", "1", backoff=60)
    assert time.monotonic() - start < 30


def test_a_place_that_cannot_be_written_ends_in_one_sentence(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(QKSError, match="cannot be read or written"):
        run(server, tmp_path / "file", "1")
    with pytest.raises(QKSError, match="cannot be read or written"):
        fetch([("file/1.jpg", f"{server.site}/1")], tmp_path)


# --- lists ---


@pytest.mark.parametrize(
    "target",
    [
        "/x.jpg",
        "../x.jpg",
        "a/../../x.jpg",
        "C:/x.jpg",
        "c:x.jpg",
        "a\\x.jpg",
        "a//x.jpg",
        "./x.jpg",
        "",
        "x",
        "x.jpg/",
        "fetch-report.csv",
        "a\n.jpg",
        "a\0.jpg",
        "a/" + "x" * 250 + ".jpg",
        "ü" * 120 + ".jpg",
        "a/" * 600 + "x.jpg",
        ".x.jpg",
        "\u202ex.jpg",
        "\ud800.jpg",
    ],
)
def test_no_target_leaves_the_folder(tmp_path, target):
    with pytest.raises(QKSError, match="^list line 3: "):
        check_target(target, "list line 3")
    with pytest.raises(QKSError, match="^item 1: "):
        fetch([(target, "http://127.0.0.1:1/x")], tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_items_are_checked():
    with pytest.raises(QKSError, match="item 2: 'a.jpg' already has another address"):
        check_items([("a.jpg", "http://x"), ("a.jpg", "http://y")])
    assert check_items([]) == []


HEADER = "Photo_file    Photo_id    url_Large   url_Middle   url_Small  url_Original"


def urls_file(tmp_path, *lines, header=HEADER, end="\r\n", name="NUS-WIDE-urls.txt"):
    (tmp_path / name).write_bytes(end.join([header, *lines, ""]).encode())
    return tmp_path / name


def test_nuswide_urls(tmp_path):
    lines = [
        r"C:\ImageData\Flickr\actor\0001_1.jpg   1  http://h/b  http://h/m  http://h/s  http://h/o",
        r"C:\ImageData\Flickr\two words\0002_2.jpg" + "\t2\thttp://h/b\tnull\thttp://h/s\tnull\t",
        "",
        "actor/0003_3.jpg 3 null null http://h/s null",
        r"C:\ImageData\Flickr\actor\0004_4.jpg 4 null null null null",
    ]
    targets = ["actor/0001_1.jpg", "two words/0002_2.jpg", "actor/0003_3.jpg", "actor/0004_4.jpg"]
    for path in (
        urls_file(tmp_path, *lines),
        urls_file(tmp_path, *lines, end="\n"),
        urls_file(tmp_path, *lines, header=f"\ufeff%%%{HEADER}%%%"),
    ):
        assert list(read_nuswide_urls(path)) == list(zip(targets, ["http://h/m", "http://h/b", "http://h/s", ""]))
    for size, first in (("large", "b"), ("small", "s"), ("original", "o")):
        assert next(read_nuswide_urls(path, size)) == (targets[0], f"http://h/{first}")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (r"C:\Windows\x.jpg 1 null null null null", 2),
        (r"C:\ImageData\Flickr\..\..\x.jpg 1 null null null null", 2),
        (r"\\host\share\x.jpg 1 null null null null", 2),
        ("a.jpg 1 null null null", 2),
        ("a.jpg x null null null null", 2),
        ("a.jpg 1 null ftp://x null null", 2),
        ("a.jpg 1 null null null null null", 2),
        pytest.param("x" * 10**6, 2, id="long"),
        ("\x00\x01", 2),
        ("a.jpg 1 null http://x null null\r\na.jpg 1 null http://y null null", 3),
    ],
)
def test_bad_nuswide_urls(tmp_path, row, line):
    path = urls_file(tmp_path, row)
    with pytest.raises(QKSError, match=rf"NUS-WIDE-urls.txt line {line}\b"):
        list(read_nuswide_urls(path))


def test_bad_nuswide_files(tmp_path):
    with pytest.raises(QKSError, match="line 1 is not the header"):
        list(read_nuswide_urls(urls_file(tmp_path, header="a.jpg 1 null null null null")))
    with pytest.raises(QKSError, match="lists no image"):
        list(read_nuswide_urls(urls_file(tmp_path)))
    with pytest.raises(QKSError, match="lists no image"):
        list(read_nuswide_urls(urls_file(tmp_path, header="", end="")))
    with pytest.raises(QKSError, match="size is 'huge'"):
        list(read_nuswide_urls(urls_file(tmp_path), "huge"))
    with pytest.raises(QKSError, match="cannot be read"):
        list(read_nuswide_urls(tmp_path / "none.txt"))
    with pytest.raises(QKSError, match="cannot be read"):
        list(read_nuswide_urls(tmp_path))
    (tmp_path / "latin.txt").write_bytes(HEADER.encode() + b"\n\xe4.jpg 1 null null null null\n")
    with pytest.raises(QKSError, match="latin.txt line 2 is not UTF-8"):
        list(read_nuswide_urls(tmp_path / "latin.txt"))


IDS = ["000026e7ee790996", "000062a39995e348"]


def test_openimages_ids(tmp_path):
    path = urls_file(
        tmp_path,
        f'{IDS[0]},test,https://h/o,"a, ""b""\nc",https://h/t,0.0',
        f"{IDS[1]},train,https://h/o2,t,,",
        header="ImageID,Subset,OriginalURL,Title,Thumbnail300KURL,Rotation",
        name="images.csv",
    )
    names = [f"test/{IDS[0]}.jpg", f"train/{IDS[1]}.jpg"]
    assert list(read_openimages_ids(path)) == list(zip(names, ["https://h/t", "https://h/o2"]))
    assert list(read_openimages_ids(path, "original")) == list(zip(names, ["https://h/o", "https://h/o2"]))
    mirror = [(name, f"https://open-images-dataset.s3.amazonaws.com/{name}") for name in names]
    assert list(read_openimages_ids(path, "mirror")) == mirror
    assert list(read_openimages_ids(path, "mirror", only={IDS[1]})) == mirror[1:]
    (tmp_path / "ids.txt").write_text("".join(f"{name[:-4]}\n" for name in names))
    assert list(read_openimages_ids(tmp_path / "ids.txt")) == mirror
    for wrong in (f"{IDS[0]}.jpg", IDS[0].upper() + "x", "test/" + IDS[0]):
        with pytest.raises(
            QKSError, match=f"1 of the 2 ImageIDs asked for are none, such as '{wrong}': expected 16 hex digits"
        ):
            list(read_openimages_ids(path, only={IDS[1], wrong}))
    with pytest.warns(
        UserWarning,
        match="1 of the 2 ImageIDs asked for are not in .*, such as 00000000000000ff: they may be in another list",
    ):
        assert len(list(read_openimages_ids(path, only={IDS[1], "00000000000000ff"}))) == 1


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("../x,test,http://x", "line 2: "),
        (f"{IDS[0]},tests,http://x", "line 2: "),
        (f"{IDS[0]},test", "line 2 has 2 columns"),
        pytest.param(f'{IDS[0]},test,"' + "x\n" * 10**5, "line .* no valid CSV", id="no end"),
        (f"{IDS[0]},test,ftp://x", "line 2: .* no address"),
        (f"{IDS[0]},test,http://x\n{IDS[0]},test,http://y", "line 3: .* already appears in line 2"),
        pytest.param("x" * 10**6, "line 2 is no valid CSV", id="long"),
        ("", "lists no image"),
    ],
)
def test_bad_openimages_ids(tmp_path, rows, problem):
    path = urls_file(tmp_path, rows, header="ImageID,Subset,OriginalURL", name="images.csv", end="\n")
    with pytest.raises(QKSError, match=f"images.csv {problem}"):
        list(read_openimages_ids(path))


def test_bad_openimages_files(tmp_path):
    with pytest.raises(QKSError, match="line 1 is no header"):
        list(read_openimages_ids(urls_file(tmp_path, header="ImageID,LabelName")))
    with pytest.raises(QKSError, match="source is 'tape'"):
        list(read_openimages_ids(urls_file(tmp_path), "tape"))


def mutated(lines, random):
    "A file with one to three things wrong in it."
    lines = [bytearray(line) for line in lines]
    for _ in range(random.integers(1, 4)):
        i = random.integers(len(lines))
        kind = random.integers(7)
        line = lines[i]
        at = random.integers(len(line) + 1)
        if kind == 0:
            del line[at:]  # a cut line
        elif kind == 1:
            line[at:at] = random.bytes(random.integers(1, 9))  # binary junk
        elif kind == 2:
            line[at:at] = random.choice(
                [b"../", b"/", b"C:", b"\\..\\", b"\x00", b"\r", b'"', b"%", b"null"]
            )  # wrong words
        elif kind == 3:
            line += b" extra,column"
        elif kind == 4:
            lines.insert(random.integers(len(lines)), bytearray(line))  # a row twice
        elif kind == 5 and len(lines) > 1:
            del lines[i]
        elif kind == 6:
            line[:] = line.decode("latin-1").encode("utf-16")  # a wrong encoding
    return b"\n".join(map(bytes, lines))


@pytest.mark.parametrize("seed", range(10))
def test_mutated_lists_are_read_or_refused_in_one_sentence(tmp_path, seed):
    random = np.random.default_rng(seed)
    refused = 0
    nuswide = [
        HEADER.encode(),
        *(
            rf"C:\ImageData\Flickr\zoo\000{i}_{i}.jpg {i} null http://h/{i} http://h/s{i} null".encode()
            for i in range(6)
        ),
    ]
    openimages = [
        b"ImageID,Subset,OriginalURL,Thumbnail300KURL",
        *(f"000026e7ee79099{i},test,http://h/{i},".encode() for i in range(6)),
    ]
    for case in range(200):
        lines, read = ((nuswide, read_nuswide_urls), (openimages, read_openimages_ids))[case % 2]
        path = tmp_path / "list"
        content = mutated(lines, random)
        path.write_bytes(content)
        try:
            items = list(read(path))
        except QKSError as error:
            refused += 1
            assert str(error).startswith((f"{path} line ", f"{path} lists no image")) and "\n" not in str(error)
        else:
            data = content.decode("utf-8-sig").split("\n")[1:]
            assert len(items) == len({line.strip() for line in data} - {""}), content  # nothing is silently left out
            check_items(items)
    assert 50 < refused < 200


# --- both data sets, from list to folder ---


def test_fetch_nuswide(server, tmp_path):
    path = urls_file(
        tmp_path,
        *(rf"C:\ImageData\Flickr\zoo\000{i}_{i}.jpg {i} null {server.site}/{i} null null" for i in range(3)),
        r"C:\ImageData\Flickr\zoo\0009_9.jpg 9 null null null null",
    )
    report = fetch_nuswide(tmp_path / "nuswide", NUSWideFetchOptions(path), QUICK)
    assert report.counts == {"saved": 3, "dead": 1} and not report.complete
    assert files(tmp_path / "nuswide") == [f"Flickr/zoo/000{i}_{i}.jpg" for i in range(3)]
    assert (tmp_path / "nuswide/fetch-report.csv").is_file()
    assert "4 images listed, 3 in place" in str(report) and "404, 410 or no address" in str(report)


def test_fetch_openimages(server, tmp_path):
    path = urls_file(
        tmp_path,
        *(f"{name},test,{server.site}/missing,{server.site}/{i}" for i, name in enumerate(IDS)),
        header="ImageID,Subset,OriginalURL,Thumbnail300KURL",
        name="images.csv",
    )
    (tmp_path / "only.txt").write_text(f"{IDS[1]}\n")
    assert fetch_openimages(tmp_path / "oi", OpenImagesFetchOptions(path, only=tmp_path / "only.txt"), QUICK).complete
    assert files(tmp_path / "oi") == [f"test/{IDS[1]}.jpg"]


@pytest.mark.parametrize("name", FETCHERS)
def test_every_fetcher_checks_its_options(name):
    with pytest.raises(QKSError, match="is 7: give"):
        FETCHERS[name].options(7)


def test_the_table_of_fetchers_and_the_policy_load_nothing_heavy():
    heavy = ["torch", "numpy", "PIL", "httpx"]
    script = f"import sys; from qks.fetch import FETCHERS, FetchPolicy; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


# --- numbers ---


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 0},
        {"per_host": 1.5},
        {"timeout": -1},
        {"delay": float("nan")},
        {"same_bytes": 1},
        {"give_up": 0},
        {"backoff": "1"},
    ],
)
def test_a_bad_policy_is_refused(change):
    with pytest.raises(QKSError, match=next(iter(change))):
        FetchPolicy(**change)


def test_a_stopped_gate_lets_nobody_through():
    stop = threading.Event()
    gate = HostGate("h", FetchPolicy(), stop)
    stop.set()
    with pytest.raises(NoImage, match="stopped"), gate:
        pass
    assert gate.slots.acquire(blocking=False)


def test_a_download_that_fails_leaves_the_old_file(server, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"old")
    downloader = Downloader(QUICK)
    with pytest.raises(NoImage):
        downloader.download(f"{server.site}/short", tmp_path / "x.jpg")
    downloader.close()
    assert (tmp_path / "x.jpg").read_bytes() == b"old" and files(tmp_path) == ["x.jpg"]


@pytest.mark.parametrize("value", [{"timeout": 0}, {"deadline": 0.0}, {"retries": 1.5}, {"retries": True}], ids=str)
def test_settings_under_which_nothing_comes(value):
    with pytest.raises(QKSError, match="is 0: every download would fail|give a whole number"):
        FetchPolicy(**value)


def test_a_system_that_opens_no_more_files_costs_no_image(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(photograph(1))

    def full(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(QKSError, match="cannot be read .Too many open files"):
        fetch_one(ImageAddress("a.jpg", ""), tmp_path, Downloader(QUICK))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_rows_that_are_not_asked_for_are_not_kept(tmp_path):
    "Twice the same image is a mistake of the list only where it is wanted; a wanted id that is not there is reported."
    (tmp_path / "list.txt").write_text("train/0000000000000001\n" + "train/0000000000000002\n" * 2)
    assert [target for target, _ in read_openimages_ids(tmp_path / "list.txt", only={"0000000000000001"})] == [
        "train/0000000000000001.jpg"
    ]
    with pytest.warns(UserWarning, match="1 of the 1 ImageIDs"):
        assert not list(read_openimages_ids(tmp_path / "list.txt", only={"0000000000000003"}))
