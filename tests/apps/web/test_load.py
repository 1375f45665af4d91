"""Many clients at once: each request is answered or refused in words, in order, and memory does not grow."""

import threading
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

from belvedere.apps.web.shelf import Shelf
from tests.apps.web.conftest import Server, start, stop
from tests.apps.web.test_safety import resident

pytestmark = pytest.mark.slow

CLIENTS, EACH = 20, 5


def join(server: Server, seed: int) -> str:
    """Put a request into the queue and return its number."""
    data = ["tiny", ["car"], "", "", 64, 64, 1, 1, seed, 1]
    return httpx.post(f"{server.url}gradio_api/call/make", json={"data": data}, timeout=60).json()["event_id"]


def test_two_hundred_requests_of_twenty_clients(tmp_path: Path, tiny_model: Path) -> None:
    server = start(tmp_path / "kept", "--model", f"tiny={tiny_model}")
    try:
        clients = [Client(server.url, verbose=False) for _ in range(CLIENTS)]
        warm = clients[0].predict("tiny", ["car"], steps=1, count=1, api_name="/make")
        held, answers, refusals, lock = [resident(server)], dict[int, str](), list[str](), threading.Lock()

        def ask(client: Client, first: int) -> None:
            for number in range(first, first + EACH):
                while True:
                    try:
                        told = client.predict("tiny", ["car"], seed=number, steps=1, count=1, api_name="/make")
                    except Exception as error:
                        with lock:
                            refusals.append(str(error))
                        time.sleep(0.5)
                        continue
                    with lock:
                        answers[number] = told[1][0]["seed"]
                    break

        for first in (0, CLIENTS * EACH):
            threads = [threading.Thread(target=ask, args=(one, first + i * EACH)) for i, one in enumerate(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            held.append(resident(server))
        asked = [join(server, seed) for seed in range(500, 509)]
        for event in asked:
            httpx.get(f"{server.url}gradio_api/call/make/{event}", timeout=60)
        kept = Shelf(server.folder / "results").newest("Make", len(asked))
    finally:
        code = stop(server)
    assert warm and code == 0
    assert answers == {number: number for number in range(2 * CLIENTS * EACH)}, "each has its own answer, none is lost"
    assert all("queue is full" in words.lower() for words in refusals), refusals[:3]
    assert [entry.facts["seed"] for entry in reversed(kept)] == list(range(500, 509)), "first come, first served"
    first, second = (after - before for before, after in pairwise(held))
    assert second < first / 2 + (8 << 20), "the second hundred leaves more than what it takes to warm up"
