"""How long a person waits for the studio: ``python benchmarks/studio.py`` (needs Debian's chromium and playwright).

Each round starts ``belvedere serve`` on an empty folder and opens it in a headless browser, and takes: the seconds from
the command to the first answer and to a page whose button can be pressed, and those from a click on Make to a picture
that is shown, the first time (nothing is loaded yet) and the second.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from timing import spread

from belvedere.apps.record import processor

SHOWN = ".bv-large .bv-card a[download]"


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return once ``url`` answers."""
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("belvedere serve ended")


def round_of(browser: Any, folder: Path) -> dict[str, float]:
    """Return the seconds of one start, one page and two pictures."""
    url = f"http://127.0.0.1:{(port := free_port())}/"
    command = [sys.executable, "-m", "belvedere", "serve", "--port", str(port), "--folder", str(folder), "--no-open"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_for_answer(url, process)
        seconds = {"answer": time.perf_counter() - began}
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        button = page.get_by_role("button", name="Make", exact=True)
        button.click(trial=True)
        seconds["usable"] = time.perf_counter() - began
        for name in ("first picture", "second picture"):
            before = page.locator(SHOWN).evaluate_all("links => links.map(link => link.href)")
            clicked = time.perf_counter()
            button.click()
            page.wait_for_function(
                """before => {
                    const links = [...document.querySelectorAll('.bv-large .bv-card a[download]')];
                    const images = [...document.querySelectorAll('.bv-large img')];
                    return links.length && links.every(link => !before.includes(link.href))
                        && images.every(image => image.complete && image.naturalWidth);
                }""",
                arg=before,
            )
            seconds[name] = time.perf_counter() - clicked
            page.locator(".bv-bar").wait_for(state="detached")
        page.close()
        return seconds
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "studio.json")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("no chromium: apt-get install chromium")
    rounds = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for i in range(options.rounds):
            rounds.append(round_of(browser, Path(temporary) / str(i)))
            print({name: round(taken, 2) for name, taken in rounds[-1].items()}, flush=True)
    result: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "rounds": rounds}
    for name in rounds[0]:
        result[name] = spread([each[name] for each in rounds])
        print(f"{name:16} " + "  ".join(f"{kind} {seconds:.2f} s" for kind, seconds in result[name].items()))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
