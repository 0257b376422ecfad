"""A small server that scores texts as vLLM does, with faults when it is told so."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

NAME = "tiny-teacher"


class Scorer:
    """What the server knows, and what it is to do wrong.

    Attributes:
        echo: Answer in OpenAI's form alone, without ``prompt_logprobs``.
        asked: The bodies of all requests.
        faults: Number of a scoring request, from 0 → what is done instead of an answer: a status,
            ``drop`` the connection, or a function of the answer.
        always: The same for every request; None for nothing.
        most: Log-probabilities that it gives at the most.
    """

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.echo, self.most = False, 10**6
        self.asked: list[dict] = []
        self.faults: dict[int, int | str | Callable[[dict], dict]] = {}
        self.always: int | str | Callable[[dict], dict] | None = None
        self.lock = threading.Lock()

    def answer(self, body: dict) -> dict:
        """One choice for each text."""
        return {"choices": [self._choice(i, text, body) for i, text in enumerate(body["prompt"])]}

    def _choice(self, index: int, text: list[int], body: dict) -> dict:
        with self.lock, torch.no_grad():
            logits = self.model(torch.tensor([text])).logits[0].double()
        rows = logits.log_softmax(-1)
        k = min(body["logprobs"], self.most, rows.shape[-1])
        shown = [
            self._row(row, k, token) for row, token in zip(rows, [*text[1:], None], strict=True)
        ]
        named = [{f"token_id:{i}": value for i, value in row.items()} for row in shown]
        if self.echo:
            return {"index": index, "logprobs": {"top_logprobs": [None, *named]}}
        full = [{str(i): {"logprob": v, "rank": 1} for i, v in row.items()} for row in shown[:-1]]
        return {
            "index": index,
            "prompt_logprobs": [None, *full],
            "logprobs": {"top_logprobs": named[-1:]},
        }

    def _row(self, row: torch.Tensor, k: int, token: int | None) -> dict[int, float]:
        values, ids = row.topk(k)
        found = dict(zip(ids.tolist(), values.tolist(), strict=True))
        # vLLM adds the prompt's own token.
        return found if token is None else found | {token: row[token].item()}


@contextmanager
def serving(scorer: Scorer) -> Iterator[str]:
    """Serve while it lasts; the URL."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args) -> None:
            """Nothing is printed."""

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": NAME}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with scorer.lock:
                number = len(scorer.asked)
                scorer.asked.append(body)
            fault = scorer.faults.get(number, scorer.always)
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
            elif isinstance(fault, int):
                self._send(fault, {"error": "it is told to fail"})
            else:
                answer = scorer.answer(body)
                self._send(200, answer if fault is None else fault(answer))

        def _send(self, status: int, content: dict) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
