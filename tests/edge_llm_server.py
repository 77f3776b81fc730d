"""A stub of TensorRT Edge-LLM's server: its chat interface of version 0.11, with a model given as a function.

It refuses what the real one refuses: unknown fields, more than 50 candidates, another model's name, pictures it cannot
read. The real one renders the prompt with the checkpoint's template, and so does this one. No NVIDIA code runs here.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from tokenizers import Tokenizer

Scores = Callable[[Sequence[int]], np.ndarray]

FIELDS = {
    *("messages", "model", "logit_bias", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "n"),
    *("seed", "stop", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "guided_decoding"),
    *("apply_chat_template", "add_generation_prompt", "enable_thinking", "reuse_context", "cache_generated_tokens"),
}
IMAGE_PAD = "<|image_pad|>"
END = "<|im_end|>"


class RefusedError(Exception):
    """What the server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EdgeLlmStub:
    """The model behind the server, and what was asked of it."""

    def __init__(self, folder: Path, scores: Scores, *, name: str, num_image_tokens: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.template = jinja2.Template((folder / "model" / "chat_template.jinja").read_text(encoding="utf-8"))
        self.scores, self.name, self.num_image_tokens = scores, name, num_image_tokens
        self.lists_stop_tokens = True
        self.counts_prompt = True
        self.max_model_len = 4096
        self.modalities = ["text", "image"]
        self.requests: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.pictures: list[np.ndarray] = []

    def health(self) -> dict[str, Any]:
        abilities = {"chat": True, "input_modalities": self.modalities, "max_model_len": self.max_model_len}
        return {"status": "healthy", "model": self.name, "capabilities": abilities}

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        unknown = set(request) - FIELDS
        if unknown:
            raise RefusedError(400, f"Extra inputs are not permitted: {sorted(unknown)}")
        if request.get("top_logprobs", 0) > 50:
            raise RefusedError(400, "top_logprobs: Input should be less than or equal to 50")
        if request.get("model", self.name) != self.name:
            raise RefusedError(404, f"model {request['model']!r} is not served by this process")
        ids = self._prompt(request["messages"])
        steps, finish = self._write(ids, request["max_tokens"], request.get("stop", []))
        content = [self._row(token, scores, request["top_logprobs"]) for token, scores in steps]
        usage = {"prompt_tokens": len(ids) if self.counts_prompt else 0, "completion_tokens": len(steps)}
        choice = {"index": 0, "message": {"role": "assistant"}, "finish_reason": finish}
        choice["logprobs"] = {"content": content} if content else None  # type: ignore[assignment]
        self.answers.append({"model": self.name, "choices": [choice], "usage": usage})
        return self.answers[-1]

    def _prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        seen = []
        for message in messages:
            content = message["content"]
            if isinstance(content, list):
                content = [self._part(part) for part in content]
            seen.append({"role": message["role"], "content": content})
        text = self.template.render(messages=seen, add_generation_prompt=False)
        assert text.count(IMAGE_PAD) == 1
        text = text.replace(IMAGE_PAD, IMAGE_PAD * self.num_image_tokens)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        head, _, payload = part["image_url"]["url"].partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise RefusedError(403, "local media paths are disabled")
        self.pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))))
        return {"type": "image"}

    def _write(self, ids: list[int], num_tokens: int, stop: list[str]) -> tuple[list[tuple[int, np.ndarray]], str]:
        steps: list[tuple[int, np.ndarray]] = []
        for _ in range(num_tokens):
            scores = self.scores([*ids, *(token for token, _ in steps)])
            token = int(scores.argmax())
            steps.append((token, scores))
            text = self.tokenizer.decode([token for token, _ in steps], skip_special_tokens=False)
            if text.endswith(END) or any(word in text for word in stop):
                return steps if self.lists_stop_tokens else steps[:-1], "stop"
        return steps, "length"

    def _row(self, token: int, scores: np.ndarray, count: int) -> dict[str, Any]:
        logs = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
        best = np.argsort(-logs, kind="stable")[:count]
        top = [{"token": "", "token_id": int(one), "bytes": [], "logprob": float(logs[one])} for one in best]
        return {"token": "", "token_id": token, "logprob": float(logs[token]), "top_logprobs": top}


@contextmanager
def serving(stub: EdgeLlmStub) -> Iterator[str]:
    """Serves a stub on a free port and yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, stub.health())

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self._answer(200, stub.complete(request))
            except RefusedError as err:
                self._answer(err.status, {"error": {"message": str(err), "code": err.status}})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
