"""Decodes with TensorRT Edge-LLM, NVIDIA's runtime for language models on Jetson, over its server on this machine.

`roboalign export --edge-llm-python` makes the folder that this backend opens; `tensorrt-edgellm-serve` runs in an
environment of its own and builds its engines there. The backend speaks the server's chat interface, version 0.11.

The server takes messages and answers tokens with the 50 best candidates of each. That is enough to decode under any
mask: where the mask forbids the server's choice, the best candidate that it allows is taken, and the server is asked
again from there. So thought budget, length constraint and tokens are those of every backend. What is different:

- There are no hidden states, so no action head: `actions="fast"` only.
- What was written so far goes back as text. Action tokens are one token each either way; a thought may be cut into
  other tokens than the ones that were written.
- The picture is cut and scaled by the server. Its count of prompt tokens is compared with ours.

None of it was run on a Jetson.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from roboalign.sdk.backends import Decoding
from roboalign.sdk.bundle import EDGE_LLM_NAME, PolicySpec, policy_spec_from_json
from roboalign.sdk.errors import BackendError, BundleError, ConfigError, missing_extra
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.types import FloatArray

__all__ = ["SERVER_VERSION", "URL_VARIABLE", "EdgeLlmBackend", "serve_command"]

SERVER_VERSION = "0.11"
"""Version of TensorRT Edge-LLM whose interface this is."""

URL_VARIABLE = "ROBOALIGN_EDGE_LLM_URL"
"""Environment variable with the server's address; without it, the address in `edge_llm.json`."""

_CANDIDATES = 50
"""The most that the server lists for a token."""

_MAX_REQUESTS = 64
"""Requests for one answer; more mean that the model does not write what it was trained to."""

_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 5.0, 120.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_command(folder: Path, name: str, port: int = 8000) -> str:
    """Returns the line that starts the server of a folder; without `--host`, it would answer the whole network."""
    model = folder / "model"
    return (
        f"tensorrt-edgellm-serve {model} --served-model-name {name} --host {_LOOPBACK[0]} --port {port} "
        "--reasoning-parser none"
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """One token that the server chose, and what else it could have been."""

    token: int
    scores: Mapping[int, float]


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """A `Decoding` whose scores are asked for when somebody looks at them."""

    backend: EdgeLlmBackend
    ids: list[int]
    num_prompt: int
    picture: str
    ahead: list[_Step] = field(default_factory=list)
    """What the server wrote beyond `ids`."""
    num_requests: int = 0
    cache: object = None

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def logits(self) -> FloatArray:
        """float32[V]: logarithms of the candidates' probabilities, minus infinity for all others."""
        if not self.ahead:
            self.backend.ask(self)
        scores = np.full(self.backend.vocab_size, -np.inf, np.float32)
        for token, score in self.ahead[0].scores.items():
            if 0 <= token < len(scores):
                scores[token] = score
        return scores


class EdgeLlmBackend:
    """The `Backend` of a model that `tensorrt-edgellm-serve` serves on this machine."""

    def __init__(self, folder: Path, record: Mapping[str, Any], url: str) -> None:
        self._folder = folder
        self._spec = policy_spec_from_json(record["policy"], str(folder / EDGE_LLM_NAME))
        self._name = str(record["name"])
        self._link = _Link(url, serve_command(folder, self._name, urlsplit(url).port or 80))
        self._tokenizer = _read_tokenizer(folder)
        self.vocab_size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        """Width of the scores."""
        self._think_open, self._think_close = self._id("<think>"), self._id("</think>")
        self._action_start = self._id("<ACTION_START>")
        self._num_coefficients = FastCodec.load(folder).num_coefficients

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> EdgeLlmBackend:
        """Reads a prepared folder and asks its server what it serves. `threads` are the server's own business.

        Raises:
            BundleError: the folder was not prepared, or by another version.
            BackendError: nobody answers, or the server serves something else.
            ConfigError: the address is not one of this machine.
        """
        folder = Path(path)
        record = _read_record(folder)
        backend = cls(folder, record, os.environ.get(URL_VARIABLE) or str(record["url"]))
        try:
            backend._check_server()
        except BaseException:
            backend.close()
            raise
        return backend

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model; it has no action head, whatever it was trained with."""
        return self._spec

    @property
    def folder(self) -> Path:
        """The prepared folder."""
        return self._folder

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Takes a prompt and a picture; nothing is sent before somebody wants scores."""
        picture = _picture_url(pixel_values, self._spec)
        return cast(
            Decoding, _Sequence(backend=self, ids=list(prompt_ids), num_prompt=len(prompt_ids), picture=picture)
        )

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Takes one more token; what the server wrote ahead is kept while it is the same."""
        sequence = cast(_Sequence, decoding)
        sequence.ids.append(token_id)
        if sequence.ahead and sequence.ahead[0].token == token_id:
            del sequence.ahead[0]
        else:
            sequence.ahead = []

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Cannot be had: BackendError."""
        raise BackendError(
            f"TensorRT Edge-LLM {SERVER_VERSION} gives no hidden states of {self._name}, which an action head needs; "
            "act with actions='fast'"
        )

    def close(self) -> None:
        """Closes the connection; the server goes on."""
        self._link.close()

    def ask(self, decoding: object) -> None:
        """Fills what the server writes ahead of a sequence, at least one token of it."""
        sequence = cast(_Sequence, decoding)
        sequence.num_requests += 1
        if sequence.num_requests > _MAX_REQUESTS:
            raise BackendError(
                f"{self._name} was corrected {_MAX_REQUESTS} times within one answer; "
                "is it the model that this folder was prepared with?"
            )
        num_tokens, stop = self._wanted(sequence)
        answer = self._link.post("/v1/chat/completions", self._request(sequence, num_tokens, stop))
        sequence.ahead, num_read = _parse_answer(answer, self._link.url)
        self._check_prompt(sequence, num_read)
        if not sequence.ahead and stop:
            # It stopped at once, on a token that it does not list: ask what that was.
            answer = self._link.post("/v1/chat/completions", self._request(sequence, 1, []))
            sequence.ahead, _ = _parse_answer(answer, self._link.url)
        if not sequence.ahead:
            raise BackendError(f"the server at {self._link.url} wrote nothing for {self._name}, expected one token")

    def _wanted(self, sequence: _Sequence) -> tuple[int, list[str]]:
        """How many tokens to write at most, and where to stop: by the span that the sequence is in."""
        written = sequence.ids[sequence.num_prompt :]
        if self._action_start in written:
            done = len(written) - 1 - written.index(self._action_start)
            return max(1, self._num_coefficients - done), ["<ACTION_END>"]
        if self._think_open in written and self._think_close not in written:
            done = len(written) - 1 - written.index(self._think_open)
            return max(1, self._spec.max_thought_tokens - done), ["</think>"]
        return 1, []

    def _request(self, sequence: _Sequence, num_tokens: int, stop: list[str]) -> Mapping[str, object]:
        content = [
            {"type": "image_url", "image_url": {"url": sequence.picture}},
            {"type": "text", "text": self._user_text(sequence.ids[: sequence.num_prompt])},
        ]
        # The template of the prepared folder opens the answer after the user's turn, and leaves it open.
        written = self._tokenizer.decode(sequence.ids[sequence.num_prompt :], skip_special_tokens=False)
        return {
            "model": self._name,
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": written}],
            "add_generation_prompt": False,
            "temperature": 0.0,
            "max_tokens": num_tokens,
            "logprobs": True,
            "top_logprobs": _CANDIDATES,
            **({"stop": stop} if stop else {}),
        }

    def _user_text(self, prompt_ids: Sequence[int]) -> str:
        """What stands between the picture and the end of the user's turn."""
        text = str(self._tokenizer.decode(list(prompt_ids), skip_special_tokens=False))
        before, after = f"<|im_start|>user\n{self._spec.prompt.image_text}", "<|im_end|>\n<|im_start|>assistant\n"
        if not (text.startswith(before) and text.endswith(after)):
            raise BackendError(
                f"the prompt {text[:40]!r}... is not of the form 'qwen' with its picture first, as the server's is"
            )
        return text[len(before) : -len(after)]

    def _check_prompt(self, sequence: _Sequence, num_read: int) -> None:
        """Compares the server's count of prompt tokens with ours, where it counts them."""
        ours = len(sequence.ids)
        # Whether it counts the picture's placeholder once or repeated is not documented.
        known = {ours, ours - self._spec.prompt.num_image_tokens + 1}
        has_thought = sequence.ids[sequence.num_prompt + 1 :] != []
        if num_read and not has_thought and num_read not in known:
            raise BackendError(
                f"the server at {self._link.url} read a prompt of {num_read} tokens, expected {ours}: it cuts the "
                "picture into other patches, or has another template; prepare the folder again and serve it"
            )

    def _check_server(self) -> None:
        health = self._link.get("/health")
        abilities = health.get("capabilities")
        if not isinstance(abilities, dict) or "input_modalities" not in abilities:
            raise BackendError(
                f"what answers at {self._link.url} is no server of TensorRT Edge-LLM {SERVER_VERSION}; start it with: "
                f"{self._link.command}"
            )
        if health.get("model") != self._name:
            raise BackendError(
                f"the server at {self._link.url} serves {health.get('model')!r}, expected {self._name!r}; start: "
                f"{self._link.command}"
            )
        if not abilities.get("chat") or "image" not in abilities["input_modalities"]:
            raise BackendError(f"{self._name} at {self._link.url} takes no pictures; its vision engine is missing")
        room = abilities.get("max_model_len")
        if isinstance(room, int) and room < self._spec.max_tokens:
            raise BackendError(
                f"the server at {self._link.url} holds {room} tokens, and an answer may have "
                f"{self._spec.max_tokens}; start it with --max-kv-cache-capacity {self._spec.max_tokens}"
            )

    def _id(self, token: str) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise BundleError(f"{self._folder}/tokenizer.json has no token {token!r}; prepare the folder again")
        return found


class _Link:
    """The server's address and the connection to it."""

    def __init__(self, url: str, command: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname not in _LOOPBACK or parts.path.strip("/"):
            raise ConfigError(
                f"{url!r} is no address of a server on this machine, expected http://127.0.0.1:PORT; its server knows "
                "no passwords of ours, so it is not used over a network: serve the policy with 'roboalign serve'"
            )
        self.url, self.command = url.rstrip("/"), command
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=_CONNECT_TIMEOUT_S)
        self._is_open = False

    def get(self, path: str) -> Mapping[str, Any]:
        return self._exchange("GET", path, None)

    def post(self, path: str, content: Mapping[str, object]) -> Mapping[str, Any]:
        return self._exchange("POST", path, json.dumps(content).encode())

    def close(self) -> None:
        self._connection.close()
        self._is_open = False

    def _exchange(self, method: str, path: str, body: bytes | None) -> Mapping[str, Any]:
        try:
            if not self._is_open:
                self._connection.connect()
                self._connection.sock.settimeout(_ANSWER_TIMEOUT_S)
                self._is_open = True
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            status, reply = response.status, response.read()
        except TimeoutError as err:
            self.close()
            raise BackendError(f"the server at {self.url} did not answer within {_ANSWER_TIMEOUT_S:g} s") from err
        except (OSError, http.client.HTTPException) as err:
            self.close()
            raise BackendError(f"nobody answers at {self.url} ({err}); start the server with: {self.command}") from err
        try:
            answer = json.loads(reply)
        except ValueError as err:
            raise BackendError(f"{self.url}{path} answered no JSON (status {status}); what runs there?") from err
        if status != 200 or not isinstance(answer, dict):
            problem = answer.get("error") if isinstance(answer, dict) else None
            said = problem.get("message") if isinstance(problem, dict) else str(answer)[:200]
            raise BackendError(f"the server at {self.url} refuses {path} (status {status}): {said}")
        return answer


def _read_record(folder: Path) -> Mapping[str, Any]:
    path = folder / EDGE_LLM_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = str(record["edge_llm"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BundleError(
            f"{folder} was not prepared for TensorRT Edge-LLM ({err}); make it with: roboalign export RUN "
            "--edge-llm-python PYTHON"
        ) from err
    if not version.startswith(f"{SERVER_VERSION}."):
        raise BundleError(
            f"{folder} was prepared with TensorRT Edge-LLM {version}, and this version of roboalign speaks to "
            f"{SERVER_VERSION}; prepare it again"
        )
    return cast(Mapping[str, Any], record)


def _read_tokenizer(folder: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as err:
        raise missing_extra("tokenizers", "cpu", "the edge-llm backend") from err
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as err:  # tokenizers raises bare Exception
        raise BundleError(f"{folder}/tokenizer.json cannot be read ({err}); prepare the folder again") from err


def _picture_url(pixel_values: FloatArray, spec: PolicySpec) -> str:
    """The picture as the robot took it, without loss, as the server takes it: in the address."""
    from PIL import Image

    scaled = (pixel_values.transpose(1, 2, 0) * spec.prompt.pixel_std + spec.prompt.pixel_mean) * 255.0
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _parse_answer(answer: Mapping[str, Any], url: str) -> tuple[list[_Step], int]:
    """Returns the tokens with their candidates, and the prompt's length."""
    try:
        choice = answer["choices"][0]
        rows = (choice.get("logprobs") or {}).get("content") or []
        steps = [
            _Step(
                int(row["token_id"]),
                {int(one["token_id"]): float(one["logprob"]) for one in row["top_logprobs"]},
            )
            for row in rows
        ]
        return steps, int(answer["usage"]["prompt_tokens"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as err:
        raise BackendError(
            f"the server at {url} answered in another form than TensorRT Edge-LLM {SERVER_VERSION} ({err!r})"
        ) from err
