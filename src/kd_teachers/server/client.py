"""Requests to an OpenAI-compatible server, which may be slow, or away for a while."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import requests
from tqdm import tqdm

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP's words for: try again
_LONGEST_WAIT_S = 60.0


class TeacherLost(ConnectionError):  # noqa: N818 - what has happened, not what was done wrong
    """A teacher elsewhere does not answer any more."""


class Client:
    """Asks one server, again and again where that may help.

    Args:
        url: As OpenAI's clients take it, such as ``http://host:8000/v1``.
        model: The name that the server knows the teacher by.
        timeout_s: So long an answer may take.
        attempts: Tries before the teacher is given up.
        wait_s: Between the first two of them; twice as long each time, a minute at most.
        api_key_env: Name of the environment variable that has a key.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        timeout_s: float,
        attempts: int,
        wait_s: float,
        api_key_env: str | None,
    ) -> None:
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._attempts, self._wait_s = attempts, wait_s
        key = os.environ.get(api_key_env) if api_key_env else None
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.model = model

    def find_model(self) -> str:
        """The model's name, the server's only one where none was given.

        Raises:
            ValueError: If the server has it not, or several to choose from.
            TeacherLost: If it does not answer.
        """
        answer = self._ask(lambda: requests.get(f"{self._url}/models", **self._options()))
        names = [one["id"] for one in answer.get("data", [])]
        if self.model is None and len(names) == 1:
            self.model = names[0]
        if self.model not in names:
            raise ValueError(
                f"config: teacher_server.model is {self.model}, but {self._url} serves "
                f"{', '.join(names) or 'none'}; name one of these"
            )
        assert self.model is not None
        return self.model

    def score(self, texts: Sequence[Sequence[int]], top_k: int) -> list[dict[str, Any]]:
        """The choices of a completion request that asks for the prompts' own log-probabilities.

        Raises:
            ValueError: If the server refuses the request.
            TeacherLost: If it does not answer.
        """
        body = {
            "model": self.model,
            "prompt": [list(text) for text in texts],
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": top_k,
            "prompt_logprobs": top_k,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }
        answer = self._ask(
            lambda: requests.post(f"{self._url}/completions", json=body, **self._options())
        )
        choices = sorted(answer.get("choices", []), key=lambda one: one.get("index", 0))
        if len(choices) != len(texts):
            raise ValueError(
                f"teacher_server: {len(choices)} answers to {len(texts)} texts from {self._url}; "
                "it must serve OpenAI's completions for lists of token ids"
            )
        return choices

    def _options(self) -> dict[str, Any]:
        return {"timeout": self._timeout_s, "headers": self._headers}

    def _ask(self, request: Callable[[], requests.Response]) -> dict[str, Any]:
        wait = self._wait_s
        for attempt in range(1, self._attempts + 1):
            try:
                response = request()
                if response.status_code not in _BUSY:
                    return self._read(response)
                why = f"HTTP {response.status_code}"
            except requests.exceptions.JSONDecodeError:
                raise ValueError(f"teacher_server: {self._url} answers with no JSON") from None
            except requests.RequestException as err:
                why = type(err).__name__
            if attempt < self._attempts:
                tqdm.write(f"teacher_server: {self._url}: {why}; asks again in {wait:g} s")
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
        raise TeacherLost(
            f"teacher_server: {self._url} has not answered in {self._attempts} attempts ({why})"
        )

    def _read(self, response: requests.Response) -> dict[str, Any]:
        if response.status_code >= 400:
            text = " ".join(response.text.split())[:300]
            raise ValueError(
                f"teacher_server: {self._url} refuses with HTTP {response.status_code}: {text}"
            )
        answer: dict[str, Any] = response.json()
        return answer
